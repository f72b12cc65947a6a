"""Find the pictures of a folder: which names count, what is skipped, which ids clash."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InputError

# In the order in which an id is looked up; their case does not matter.
EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
)


@dataclass
class Found:
    """List the pictures below a folder and what else lies there."""

    files: dict[str, str] = field(default_factory=dict)  # id: path below the folder
    clashes: list[tuple[str, str]] = field(default_factory=list)  # two files of one id
    skipped: Counter[str] = field(default_factory=Counter)  # by kind: "hidden", ".txt", …

    def skipped_line(self) -> str:
        """Return "skipped: 2 hidden, 1 .txt", or "" where every file is a picture."""
        counts = [f"{count} {kind}" for kind, count in sorted(self.skipped.items())]
        return f"skipped: {', '.join(counts)}" if counts else ""


def find_pictures(root: str | Path) -> Found:
    """Find every picture below a folder by its name; no file is opened.

    Ids are paths without the extension. Whatever is hidden, as `.cache/` or `._shirt.jpg`, is no picture.

    Raises:
        InputError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of pictures")
    found = Found()
    # sorted, so that ids have the same order on every machine
    for path in sorted(root.rglob("*")):
        file = path.relative_to(root)
        if path.is_dir():
            continue

        # count what is no picture, by kind
        if any(part.startswith(".") for part in file.parts):
            found.skipped["hidden"] += 1
        elif path.suffix.lower() not in EXTENSIONS:
            found.skipped[path.suffix.lower() or "without extension"] += 1
        elif not path.is_file():
            found.skipped["no regular file"] += 1
        else:
            # two files may differ in their extension only
            name = file.with_suffix("").as_posix()
            first = found.files.setdefault(name, file.as_posix())
            if first != file.as_posix():
                found.clashes.append((first, file.as_posix()))
    return found


def unique_pictures(root: str | Path) -> Found:
    """Find the pictures of a folder that has some, each with an id of its own.

    Raises:
        InputError: the folder does not exist or has no picture, or two pictures have the same id.
    """
    found = find_pictures(root)
    if found.clashes:
        first, second = found.clashes[0]
        name = Path(first).with_suffix("").as_posix()
        raise InputError(
            f"{root}: {first} and {second} have the same image id, {name!r}; rename one of them"
        )
    if not found.files:
        names = ", ".join(EXTENSIONS)
        skipped = found.skipped_line() or "or it cannot be read"
        raise InputError(f"{root}: no pictures ({names}) in it, {skipped}")
    return found


def spelled_otherwise(folder: Path, stem: str) -> str | None:
    """Return the name of a picture in a folder whose extension is in upper or mixed case, if any."""
    try:
        paths = [path for path in folder.iterdir() if path.stem == stem]
        names = [path.name for path in paths if path.is_file()]  # no pipe: opening one waits
    except OSError:
        return None
    matches = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    # the order of EXTENSIONS, as for names in lower case
    return min(matches, key=lambda name: EXTENSIONS.index(Path(name).suffix.lower()), default=None)
