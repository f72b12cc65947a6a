"""Vectors of a frozen encoder, computed once and kept on the disk: the second epoch, and the next run, ask the disk.

A cache is a folder of safetensors files below one sub-folder for each *identity*: the digest of everything that decides
a vector (weights, preprocessing). Within it a vector's key is the digest of the content it was computed from. A changed
model, preprocessing, picture or text therefore has no entry, and an old entry can never be taken for it.

A file is written aside, synced and renamed, so a crash loses what was being written and nothing else. Each holds a
digest of its vectors; a file that is torn or altered is deleted with a warning, and what it held is computed again. One
process at a time fills a cache, any number reads it.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import safetensors
import torch
from PIL.Image import Image
from safetensors.torch import save
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.files import write_bytes_atomic
from cir_cot.storage import locked

KEY_BYTES = 16
SHARD = 4096  # vectors a file: what a crash may cost

NAME = re.compile(r"[0-9a-f]{32}\.safetensors")  # of a file that a cache wrote

logger = logging.getLogger(__name__)


def content_key(content: bytes) -> str:
    """Name content by its digest."""
    return hashlib.blake2b(content, digest_size=KEY_BYTES).hexdigest()


class FeatureCache:
    """Vectors (N, D) by content key, below `folder`/`identity`; `computed` counts those that had to be computed."""

    def __init__(self, folder: str | Path, identity: str):
        self.folder, self.computed = Path(folder) / identity, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: no cache can be made here ({error.strerror})"
            ) from error
        self.shards: list[Tensor] = []
        self.places: dict[str, tuple[int, int]] = {}  # key -> (shard, row)
        self.files: set[str] = set()  # those that have been read
        self._read_new()

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def get(self, keys: Sequence[str]) -> Tensor:
        """Return the vectors (N, D) of keys that are all there."""
        return torch.stack(
            [self.shards[shard][row] for shard, row in (self.places[key] for key in keys)]
        )

    def fill(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], Tensor], batch_size: int = 64
    ) -> None:
        """Compute what is missing: `compute` maps indices of `keys`, a batch at a time, to their vectors (B, D).

        InputError where something is missing and another process fills the cache.
        """
        if all(key in self for key in keys):
            return
        with locked(self.folder):
            self._read_new()
            self._compute(keys, compute, batch_size)

    def _compute(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], Tensor], batch_size: int
    ) -> None:
        wanted = [
            index
            for key, index in {key: i for i, key in enumerate(keys)}.items()
            if key not in self
        ]
        for start in range(0, len(wanted), SHARD):
            rows = wanted[start : start + SHARD]
            parts = [compute(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
            self.computed += len(rows)
            self._write([keys[row] for row in rows], torch.cat(parts).float().cpu().contiguous())
            logger.info("%d of %d missing vectors computed", start + len(rows), len(wanted))

    def _write(self, keys: Sequence[str], vectors: Tensor) -> None:
        if not vectors.isfinite().all():
            raise InputError(
                f"{self.folder}: the encoder gave a number that is not finite; nothing of it is kept"
            )
        digests = torch.frombuffer(bytearray(bytes.fromhex("".join(keys))), dtype=torch.uint8).view(
            -1, KEY_BYTES
        )
        name = f"{content_key(''.join(keys).encode())}.safetensors"
        content = save({"keys": digests, "vectors": vectors}, {"digest": _digest(digests, vectors)})
        write_bytes_atomic(self.folder / name, content)
        self.files.add(name)
        self._add(keys, vectors)

    def _read_new(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if NAME.fullmatch(path.name) and path.name not in self.files:
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, "pt") as file:
                digests, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
                whole = (file.metadata() or {}).get("digest") == _digest(digests, vectors)
        except safetensors.SafetensorError:
            whole = False
        if whole and _shaped(digests, vectors):
            self.files.add(path.name)
            self._add([bytes(row).hex() for row in digests.numpy()], vectors)
        else:
            logger.warning("%s is torn or altered: deleted, its vectors are computed again", path)
            path.unlink()

    def _add(self, keys: Sequence[str], vectors: Tensor) -> None:
        self.places |= {key: (len(self.shards), row) for row, key in enumerate(keys)}
        self.shards.append(vectors)


def _digest(keys: Tensor, vectors: Tensor) -> str:
    return content_key(keys.numpy().tobytes() + vectors.numpy().tobytes())


def _shaped(keys: Tensor, vectors: Tensor) -> bool:
    """Tell whether keys (N, 16) and vectors (N, D) are of the shapes and types that their digest does not cover."""
    types = (keys.dtype, vectors.dtype) == (torch.uint8, torch.float32)
    return types and vectors.ndim == 2 and keys.shape == (len(vectors), KEY_BYTES)


class Vectors(dict[str, Tensor]):
    """Vectors (D,) by name; stands in for the pictures of a dataset whose pictures have been encoded."""

    def load(self, name: str) -> Tensor:
        """Return the vector of `name`."""
        return self[name]


def picture_vectors(
    cache: FeatureCache, encode: Callable[[Sequence[Image]], Tensor], images, names: Iterable[str]
) -> Vectors:
    """Vectors of the pictures `names` of a store (`load` and `fingerprint` by name), from the cache or `encode`."""
    names = list(dict.fromkeys(names))
    keys = [images.fingerprint(name) for name in names]
    cache.fill(keys, lambda rows: encode([images.load(names[row]) for row in rows]))
    return Vectors(zip(names, cache.get(keys), strict=True))


def text_vectors(
    cache: FeatureCache, encode: Callable[[Sequence[str]], Tensor], texts: Iterable[str]
) -> Vectors:
    """Vectors of texts, from the cache or `encode`."""
    texts = list(dict.fromkeys(texts))
    keys = [content_key(b"text " + text.encode()) for text in texts]
    cache.fill(keys, lambda rows: encode([texts[row] for row in rows]))
    return Vectors(zip(texts, cache.get(keys), strict=True))
