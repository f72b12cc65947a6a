"""Build and update an index: encode what is new, in any number of processes, then save the new state."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.ranks import ALONE, Ranks
from cir_cot.retriever import Retriever
from cir_cot.storage import locked

from .faiss_index import Index
from .gallery_index import GalleryIndex
from .gallery_scan import encode_rank, read_scan
from .index_files import STORES, Metadata, read_metadata
from .qdrant_address import absolute
from .qdrant_index import QdrantIndex
from .vector_store import IDENTITY, Vectors, claim_logs, read_identity, remove_logs

LOGS = "encoding"  # the folder of logs below the index while it is built
# The class of a kind by what stands before its colon; every other kind is FAISS's.
KINDS: dict[str, type[GalleryIndex]] = {"qdrant": QdrantIndex}


@dataclass(frozen=True)
class IndexSettings:
    """What an index keeps from its first build on.

    Attributes:
        kind: "exact", a FAISS factory string such as "IVF4096,Flat", or "qdrant:<server or folder>#<collection>".
        width: how many dimensions of each vector are stored; None for all of the retriever's.
        dtype: of the stored numbers: float32, float16 or int8.
    """

    kind: str = "exact"
    width: int | None = None
    dtype: str = "float32"

    def metadata(self, dim: int) -> Metadata:
        """Return the settings as index.json holds them, for a retriever of `dim` dimensions."""
        width = self.width or dim
        return {"kind": absolute(self.kind), "dtype": self.dtype, "dim": dim, "width": width}


def index_class(kind: str) -> type[GalleryIndex]:
    """Return the class of a kind of index."""
    return KINDS.get(kind.partition(":")[0], Index)


def open_index(folder: str | Path) -> GalleryIndex:
    """Open an index that `build` wrote; InputError when there is none.

    Example:
        index = open_index("runs/index")
        index.search(vectors, k=10)
    """
    metadata = read_metadata(Path(folder))
    return index_class(metadata["kind"]).load(folder)


@contextmanager
def change(folder: str | Path) -> Iterator[GalleryIndex]:
    """Open an index to change and save it; other processes that would write it are refused meanwhile."""
    # Locking makes the folder: refuse one without an index first.
    read_metadata(Path(folder))
    with locked(Path(folder)):
        index = open_index(folder)
        try:
            yield index
        finally:
            index.close()


def build(
    retriever: Retriever,
    images: ImageStore,
    names: Sequence[str],
    folder: str | Path,
    settings: IndexSettings | None = None,
    payloads: Mapping[str, dict] | None = None,
    batch_size: int = 32,
    ranks: Ranks = ALONE,
    progress: bool = False,
) -> int:
    """Make the gallery `names` the content of the index in `folder`, which is built or updated.

    An interrupted run is continued by calling this again. Of several processes the one of rank 0 writes the index.

    Args:
        retriever: encodes the pictures.
        images: the pictures.
        names: their ids, in the order of the gallery.
        folder: the index.
        settings: how vectors are stored; an update cannot change it.
        payloads: {image id: payload}; None keeps those of an index that is updated.
        batch_size: pictures encoded at a time.
        ranks: this process among those that build together.
        progress: show a progress bar.

    Returns:
        How many pictures this process encoded.

    Example:
        images = list_pictures("photos")
        build(retriever, images, list(images.files), "runs/index", IndexSettings(dtype="float16"))
    """
    folder = Path(folder)
    metadata = (settings or IndexSettings()).metadata(retriever.dim)
    check_settings(metadata)
    with locked(folder) if ranks.first else nullcontext():
        ranks.wait()
        # Open the index that is there, and refuse one that cannot become the wanted index.
        old = _open_old(folder, retriever, metadata)
        if ranks.first:
            claim_logs(folder / LOGS, retriever)
        ranks.wait()
        # Encode what is new.
        names, unnamed = split_names(names)
        known = set() if old is None else set(old.list_hashes())
        count = encode_rank(
            retriever, images, names, folder / LOGS, known, batch_size, ranks, progress
        )
        ranks.wait()
        # Save the new state, then remove the logs.
        if ranks.first:
            rows, unreadable = _read_gallery(folder / LOGS, images, names, unnamed, ranks.count)
            metadata |= {"images": escaped(str(images.root)), "unreadable": unreadable}
            _save(folder, rows, old, metadata, payloads)
            remove_logs(folder / LOGS)
        if old is not None:
            old.close()
        ranks.wait()
    return count


def check_settings(metadata: Metadata) -> None:
    """Refuse a dtype, a width or a kind that does not exist."""
    dtype, width, dim = metadata["dtype"], metadata["width"], metadata["dim"]
    # Those that every class shares, then those of the kind's class.
    if dtype not in STORES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(STORES)}")
    if not 1 <= width <= dim:
        raise InputError(f"width {width}: give 1 to {dim}, the numbers of a vector")
    index_class(metadata["kind"]).check_settings(metadata)


def split_names(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names that are valid text, and {escaped name: problem} of the others."""
    valid = []
    problems = {}
    for name in names:
        # JSON holds text only, so a name of other bytes cannot be an id.
        if escaped(name) == name:
            valid.append(name)
        else:
            problems[escaped(name)] = "the name of its file is no UTF-8; rename the file"
    return valid, problems


def escaped(name: str) -> str:
    """Return a file's name with escapes for the bytes in it that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _open_old(folder: Path, retriever: Retriever, metadata: Metadata) -> GalleryIndex | None:
    """Open the index in the folder, if there is one; InputError when its retriever or settings differ."""
    if not (folder / "index.json").exists():
        return None
    # Vectors of two retrievers, or of two settings, must not be mixed.
    old = open_index(folder)
    old.check(retriever, str(folder))
    # kind, dtype, dim and width are settled by the first build.
    for key, wanted in metadata.items():
        # Earlier versions kept a folder as it was given.
        held = absolute(old.metadata[key]) if key == "kind" else old.metadata[key]
        if held != wanted:
            raise InputError(
                f"{folder}: its {key} is {held!r}; encode into a new folder to change that"
            )
    return old


def _read_gallery(
    logs: Path, images: ImageStore, names: Sequence[str], unnamed: Mapping[str, str], world: int
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Read what all processes found -> (id, hash) of each readable picture, {id: problem} of the others."""
    hashes, unreadable = read_scan(logs, world)
    unreadable |= unnamed
    # Rows are in the order of the gallery, however many processes encoded it.
    rows = [(name, hashes[name]) for name in names if name in hashes]
    if not rows:
        first = next(iter(unreadable.values()), "none is there")
        raise InputError(f"{images.root}: no picture can be read; {first}")
    return rows, unreadable


def _save(
    folder: Path,
    rows: Sequence[tuple[str, str]],
    old: GalleryIndex | None,
    metadata: Metadata,
    payloads: Mapping[str, dict] | None,
) -> None:
    """Save the index of (id, hash) rows: new vectors from the logs, the others from the old index."""
    # Keep the payloads of pictures that are still there.
    if payloads is None:
        payloads = {} if old is None else old.list_payloads()
    held = {name: payloads[name] for name, _ in rows if name in payloads}
    # Gather the vectors, and replace the old state.
    metadata |= read_identity(folder / LOGS / IDENTITY)
    fresh = Vectors(folder / LOGS, metadata["dim"])
    if old is None:
        index = index_class(metadata["kind"]).create(rows, fresh, held, metadata)
    else:
        index = old.update(rows, fresh, held, metadata)
    # Write index.json last; it names what was written.
    index.save(folder)
    index.close()
