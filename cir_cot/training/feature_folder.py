"""Keep the features of a vision tower in a folder that every process and run shares.

The folder holds `identity.json` (the tower's weights and the processor's settings; another tower is
refused) and `features-*.safetensors`, read memory-mapped, with a digest of each picture's features
that is checked when they are first used. Files are written aside, fsynced and renamed, by one
process at a time; the others wait.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cir_cot.digests import digest_bytes
from cir_cot.errors import InputError
from cir_cot.files import read_json, write_bytes_atomic, write_text_atomic
from cir_cot.storage import locked

IDENTITY = "identity.json"


class FeatureFolder:
    """Read and write the features (L, t, H) of pictures by their keys.

    Args:
        folder: created if needed.
        identity: what decides the features, see `tower_identity`.
        name: distinguishes this process's files from those of others.

    Raises:
        InputError: the folder is damaged, or holds features of another tower.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], name: str = "0"):
        self.folder = folder
        self.name = name
        self.stored: dict[str, Any] = {}  # key -> open safetensors file
        # Key -> file and digest of features that have not been used yet.
        self.unchecked: dict[str, tuple[Path, str | None]] = {}
        self.shards: set[str] = set()
        self._check_identity(identity)
        self._read_shards()

    def _check_identity(self, identity: Mapping[str, str]) -> None:
        """Write identity.json into a new folder, or compare it with an existing one."""
        path = self.folder / IDENTITY
        with locked(self.folder, wait=True):
            if not path.is_file():
                write_text_atomic(path, json.dumps(dict(identity), indent=1) + "\n")
        # Another tower, processor or precision gives other features.
        was = read_json(path)
        if not isinstance(was, dict):
            raise InputError(f"{path}: damaged; give --vision_cache a new folder")
        for key, value in identity.items():
            if was.get(key) != value:
                raise InputError(
                    f"{self.folder}: holds features of another {key}; "
                    "give --vision_cache a new folder"
                )

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, key: str) -> bool:
        return key in self.stored

    def __getitem__(self, key: str) -> Tensor:
        """Return the features (L, t, H) of a picture, checked at their first use."""
        value = self.stored[key].get_tensor(key)
        # Earlier versions stored no digests.
        path, digest = self.unchecked.pop(key, (None, None))
        if digest is not None and digest != _digest(value):
            raise InputError(
                f"{path}: altered since it was written; delete it, its pictures are computed again"
            )
        return value

    def add(self, features: Mapping[str, Tensor]) -> None:
        """Write those features that no other process has written, and find what others wrote."""
        if features:
            with locked(self.folder, wait=True):
                self._read_shards()
                self._write({key: features[key] for key in features if key not in self.stored})
        self._read_shards()

    def _write(self, features: dict[str, Tensor]) -> None:
        if not features:
            return
        # The name depends on the content, so no file is written twice under different names.
        keys = hashlib.blake2b("".join(features).encode(), digest_size=8).hexdigest()
        content = save(features, {key: _digest(value) for key, value in features.items()})
        write_bytes_atomic(self.folder / f"features-{self.name}-{keys}.safetensors", content)

    def _read_shards(self) -> None:
        """Open the files that have been added since the last call."""
        for path in sorted(self.folder.glob("features-*.safetensors")):
            if path.name in self.shards:
                continue
            try:
                shard = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path}: not readable ({error}); delete it, its pictures are computed again"
                ) from error
            digests = shard.metadata() or {}  # none in files of earlier versions
            # The first file that holds a picture serves it.
            for key in set(shard.keys()) - self.stored.keys():
                self.unchecked[key] = (path, digests.get(key))
                self.stored[key] = shard
            self.shards.add(path.name)


def _digest(value: Tensor) -> str:
    """Return a digest of features: of their values, type and shape."""
    content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    header = f"{value.dtype} {tuple(value.shape)} ".encode()
    return digest_bytes(header + content)
