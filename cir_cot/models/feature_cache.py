"""Cache the embeddings of a frozen encoder on the disk, so that later epochs and runs do not compute them again.

A cache is a folder of safetensors files, below one sub-folder for each *identity*: the digest of everything that
determines an embedding (weights, preprocessing). Within it, the key of an embedding is the digest of the content that
was encoded. A changed model, preprocessing, picture or text therefore has no entry, and no old entry is used for it.

Guaranteed: a file is written aside, synced and renamed, so that a crash loses only the file that was being written.
Each file holds a digest of its vectors. A truncated or altered file is deleted with a warning, and its vectors are
computed again. One job at a time fills a cache, alone or on several processes that share the work; any number of
processes read it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import safetensors
import torch
from PIL.Image import Image
from safetensors.torch import save
from torch import Tensor

from cir_cot.digests import DIGEST_BYTES, digest_bytes
from cir_cot.errors import InputError
from cir_cot.files import write_bytes_atomic
from cir_cot.ranks import ALONE, Ranks
from cir_cot.storage import locked

SHARD = 4096  # vectors of a file, the most that a crash loses
NAME = re.compile(r"[0-9a-f]{32}\.safetensors")  # a file that a cache wrote

logger = logging.getLogger(__name__)


class FeatureCache:
    """Keep vectors (D,) by content key below `folder`/`identity`; `computed` counts those that were computed.

    Example:
        cache = FeatureCache("features", encoder.identity())
        vectors = picture_vectors(cache, encoder.encode_images, store, names)
    """

    def __init__(self, folder: str | Path, identity: str):
        self.folder = Path(folder) / identity
        self.computed = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: no cache can be created here ({error.strerror}); choose another folder"
            ) from error
        self.shards: list[Tensor] = []
        self.places: dict[str, tuple[int, int]] = {}  # key -> (shard, row)
        self.files: set[str] = set()  # names of the files that are in memory
        self._read_new()

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def get(self, keys: Sequence[str]) -> Tensor:
        """Return the vectors (N, D) of `keys`, all of which must be in the cache."""
        places = [self.places[key] for key in keys]
        return torch.stack([self.shards[shard][row] for shard, row in places])

    def fill(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[int]], Tensor],
        batch_size: int = 64,
        ranks: Ranks = ALONE,
    ) -> None:
        """Compute the vectors that are missing, and write them to the disk.

        Args:
            keys: Content keys that must be in the cache afterwards.
            compute: Maps indices of `keys`, a batch of them, to vectors (B, D).
            batch_size: Size of such a batch, B.
            ranks: This process among those that fill the cache together; all of them call `fill` with the same keys.

        InputError where a vector is missing while another job fills the cache.
        """
        # Reading needs no lock. Several processes decide together, below.
        if ranks.count == 1 and all(key in self for key in keys):
            return
        with locked(self.folder) if ranks.first else nullcontext():
            # Another job may have filled it since; all processes see the same files before any writes.
            ranks.wait()
            self._read_new()
            missing = self._missing(keys)
            ranks.wait()
            # Compute a share, and read those of the others.
            self._compute(ranks.share(missing), keys, compute, batch_size)
            ranks.wait()
            self._read_new()

    def _missing(self, keys: Sequence[str]) -> list[int]:
        """Return the indices of the keys that have no vector; equal content occurs once."""
        index_of = {key: index for index, key in enumerate(keys)}
        return [index for key, index in index_of.items() if key not in self]

    def _compute(
        self,
        missing: Sequence[int],
        keys: Sequence[str],
        compute: Callable[[Sequence[int]], Tensor],
        batch_size: int,
    ) -> None:
        # Write file by file, so that an interruption costs one file at most.
        for start in range(0, len(missing), SHARD):
            rows = missing[start : start + SHARD]
            batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
            vectors = torch.cat([compute(batch) for batch in batches])  # (R, D)
            self.computed += len(rows)
            self._write([keys[row] for row in rows], vectors.float().cpu().contiguous())
            logger.info("%d of %d missing vectors computed", start + len(rows), len(missing))

    def _write(self, keys: Sequence[str], vectors: Tensor) -> None:
        if not vectors.isfinite().all():
            raise InputError(
                f"{self.folder}: the encoder returned a number that is not finite; nothing of this file is kept. "
                "Check the encoder's checkpoint"
            )
        packed = bytearray(bytes.fromhex("".join(keys)))
        digests = torch.frombuffer(packed, dtype=torch.uint8).view(-1, DIGEST_BYTES)  # (R, 16)
        name = f"{digest_bytes(''.join(keys).encode())}.safetensors"
        content = save({"keys": digests, "vectors": vectors}, {"digest": _digest(digests, vectors)})
        write_bytes_atomic(self.folder / name, content)
        self.files.add(name)
        self._add(keys, vectors)

    def _read_new(self) -> None:
        """Read the files that are not in memory yet."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if NAME.fullmatch(path.name) and path.name not in self.files:
                self._read(path)

    def _read(self, path: Path) -> None:
        """Read a file; delete it with a warning where it is truncated or altered."""
        # A file is intact if its digest is that of its content.
        try:
            with safetensors.safe_open(path, "pt") as file:
                digests = file.get_tensor("keys")  # (R, 16)
                vectors = file.get_tensor("vectors")  # (R, D)
                intact = (file.metadata() or {}).get("digest") == _digest(digests, vectors)
        except safetensors.SafetensorError:
            intact = False
        if intact and _shaped(digests, vectors):
            self.files.add(path.name)
            self._add([bytes(row).hex() for row in digests.numpy()], vectors)
        else:
            logger.warning(
                "%s is truncated or altered: deleted; its vectors are computed again", path
            )
            path.unlink()

    def _add(self, keys: Sequence[str], vectors: Tensor) -> None:
        """Remember where the vectors (R, D) of `keys` are in memory."""
        shard = len(self.shards)
        self.places |= {key: (shard, row) for row, key in enumerate(keys)}
        self.shards.append(vectors)


def _digest(keys: Tensor, vectors: Tensor) -> str:
    return digest_bytes(keys.numpy().tobytes() + vectors.numpy().tobytes())


def _shaped(keys: Tensor, vectors: Tensor) -> bool:
    """Tell whether keys are (R, 16) bytes and vectors (R, D) float32, which their digest does not cover."""
    typed = keys.dtype == torch.uint8 and vectors.dtype == torch.float32
    return typed and vectors.ndim == 2 and keys.shape == (len(vectors), DIGEST_BYTES)


class Vectors(dict[str, Tensor]):
    """Hold vectors (D,) by name, in place of a store of pictures that have been encoded already."""

    def load(self, name: str) -> Tensor:
        """Return the vector of `name`."""
        return self[name]


class PictureSource(Protocol):
    """Load pictures by name, and tell them apart by their content."""

    def load(self, name: str, /) -> Image:
        """Return a picture."""

    def fingerprint(self, name: str, /) -> str:
        """Return a digest of its content."""


def picture_vectors(
    cache: FeatureCache,
    encode: Callable[[Sequence[Image]], Tensor],
    images: PictureSource,
    names: Iterable[str],
    ranks: Ranks = ALONE,
) -> Vectors:
    """Return the vectors of the pictures `names` of a store, from the cache or by `encode`; `ranks` as in `fill`."""
    names = list(dict.fromkeys(names))
    # Of equal names one is enough; two names of one picture share a key.
    keys = [images.fingerprint(name) for name in names]
    cache.fill(keys, lambda rows: encode([images.load(names[row]) for row in rows]), ranks=ranks)
    return Vectors(zip(names, cache.get(keys), strict=True))


def text_vectors(
    cache: FeatureCache,
    encode: Callable[[Sequence[str]], Tensor],
    texts: Iterable[str],
    ranks: Ranks = ALONE,
) -> Vectors:
    """Return the vectors of texts, from the cache or by `encode`; `ranks` as in `fill`."""
    texts = list(dict.fromkeys(texts))
    keys = [digest_bytes(b"text " + text.encode()) for text in texts]
    cache.fill(keys, lambda rows: encode([texts[row] for row in rows]), ranks=ranks)
    return Vectors(zip(texts, cache.get(keys), strict=True))
