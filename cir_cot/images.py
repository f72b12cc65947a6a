"""Pictures by image id, below one folder: hostile, broken and oddly coded files end in one clear InputError.

What is guaranteed: no file outside the folder is opened (ids are checked, links are followed before the check),
no file is decoded before its size in bytes and pixels is known, and a picture is either whole, of a shape that every
model takes, or refused.
"""

import hashlib
import io
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from .errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
)  # by content: FashionIQ's .jpg files hold several; JPEG opens MPO, too
MAX_PIXELS = 2**26  # 67 megapixels, 200 MB as RGB: above any camera in the public benchmarks
MAX_BYTES = 2**26
MAX_RATIO = 200  # longer side to shorter one: the processors of Qwen-VL raise on more
# what Pillow's decoders and EXIF reader raise on broken data
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    ZeroDivisionError,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Box = tuple[float, float, float, float]


class ImageStore:
    """The pictures of a dataset: `store.load(id)` -> RGB picture, `store.path(id)` -> file, `id in store`.

    Without `files` an id is the file `<root>/<id>` with one of EXTENSIONS; `files` maps ids to relative paths (a
    mapping, or a function of the id that workers can pickle). `boxes` (id -> x, y, w, h in pixels) are GeneCIS's
    objects: the picture is cut to the box as its official loader does. InputError where the folder does not exist.
    """

    def __init__(
        self,
        root: str | Path,
        files: Mapping[str, str] | Callable[[str], str] | None = None,
        boxes: Mapping[str, Box] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ):
        if not Path(root).is_dir():
            raise InputError(f"{root}: no such folder of pictures")
        self.root = Path(root).resolve()
        self.files, self.boxes = files, boxes or {}
        self.max_pixels, self.max_bytes = max_pixels, max_bytes

    def path(self, image_id: str) -> Path:
        """The picture's file; InputError lists what was looked for, or says why the id is refused."""
        names = self._names(image_id)
        for name in names:
            path = self._inside(name, image_id)
            if path.is_file():
                return path
        raise InputError(f"image {image_id!r} is missing: no {' or '.join(names)} in {self.root}")

    def __contains__(self, image_id: str) -> bool:
        try:
            return bool(self.path(image_id))
        except InputError:
            return False

    def load(self, image_id: str) -> Image.Image:
        """The picture in RGB, upright by its EXIF orientation, transparency on white; InputError names the file."""
        path = self.path(image_id)
        picture = decode(self._read(path), str(path), self.max_pixels)
        return (
            crop_box(picture, self.boxes[image_id], str(path))
            if image_id in self.boxes
            else picture
        )

    def fingerprint(self, image_id: str) -> str:
        """Digest of what `load` decodes: the file's bytes, and the box if there is one."""
        content = self._read(self.path(image_id)) + repr(self.boxes.get(image_id, "")).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def _names(self, image_id: str) -> list[str]:
        if self.files is None:
            return [image_id + extension for extension in EXTENSIONS]
        if callable(self.files):
            return [self.files(image_id)]
        if image_id not in self.files:
            raise InputError(
                f"image {image_id!r} is unknown: it is not among the {len(self.files)} of {self.root}"
            )
        return [self.files[image_id]]

    def _inside(self, name: str, image_id: str) -> Path:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
            raise InputError(
                f"image {image_id!r} is refused: {name!r} leaves the folder {self.root}"
            )
        try:
            path = (self.root / name).resolve()
            path.is_file()  # raises on a name the file system cannot hold
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"image {image_id!r} cannot be looked up in {self.root}: {error}"
            ) from error
        if not path.is_relative_to(self.root):
            raise InputError(
                f"image {image_id!r} is refused: {name!r} is a link out of the folder {self.root}"
            )
        return path

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                raw = file.read(self.max_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if len(raw) > self.max_bytes:
            size = path.stat()[stat.ST_SIZE]
            raise InputError(
                f"{path}: {size} bytes, more than the {self.max_bytes} allowed; save it smaller"
            )
        return raw


def decode(raw: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode bytes of a JPEG, PNG, WebP or GIF -> upright RGB; truncated, corrupt, huge and thin ones are refused."""
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise InputError(
                    f"{where}: {width} x {height} pixels, more than the {max_pixels} allowed; resize it"
                )
            if max(width, height) > MAX_RATIO * min(width, height) > 0:
                raise InputError(
                    f"{where}: {width} x {height} pixels, one side more than {MAX_RATIO} times the other, which no "
                    "Qwen-VL model takes; crop or pad it"
                )
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except BOMBS as error:
        raise InputError(
            f"{where}: far more than the {max_pixels} pixels allowed; resize it"
        ) from error
    except InputError:
        raise
    except (*DECODE_ERRORS, struct.error) as error:
        raise InputError(
            f"{where}: no readable picture, corrupt or truncated ({error}); replace the file"
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any colour mode -> RGB: transparency (RGBA, LA, palette) on white, 16 bits scaled to 8, CMYK converted."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L"):
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def crop_box(picture: Image.Image, box: Box, where: str) -> Image.Image:
    """GeneCIS's object picture, with its official loader's quirk: 0.7 of the box is added to the left and the top
    only (unless the picture ends there), then black bars make it square."""
    x, y, width, height = box
    left, top = max(0, x - 0.7 * width), max(0, y - 0.7 * height)
    right, bottom = min(picture.width, left + 1.7 * width), min(picture.height, top + 1.7 * height)
    side = max(round(right) - round(left), round(bottom) - round(top))
    if round(right) <= round(left) or round(bottom) <= round(top) or side * side > MAX_PIXELS:
        raise InputError(
            f"{where}: cannot cut the box {box} out of {picture.width} x {picture.height} pixels"
        )
    cut = picture.crop((left, top, right, bottom))
    square = Image.new("RGB", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square


def list_pictures(root: str | Path) -> ImageStore:
    """Return a store of every picture below a folder, ids being paths without their extension; InputError if none."""
    if not Path(root).is_dir():
        raise InputError(f"{root}: no such folder of pictures")
    files: dict[str, str] = {}
    for path in sorted(Path(root).rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            file = path.relative_to(root)
            name = file.with_suffix("").as_posix()
            if name in files:
                raise InputError(
                    f"{root}: {files[name]} and {file} have one image id, {name!r}; rename one of them"
                )
            files[name] = file.as_posix()
    if not files:
        raise InputError(f"{root}: no picture in it ({', '.join(EXTENSIONS)})")
    return ImageStore(root, files)
