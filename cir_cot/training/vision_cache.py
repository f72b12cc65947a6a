"""Features of a frozen vision tower, computed once for each picture: within a step, or on the disk for every run.

A picture's key is a digest of the patches that the tower would read, so it holds the picture's content and everything
the processor did to it; whoever shows the same picture (a query, a target, a gallery) finds the same features. The
tower runs on the pictures that are missing, and the language model is given what it would be given without a cache.

On the disk a cache is a folder: `identity.json` (the tower's weights and the processor's settings; another tower is
refused) and `features-*.safetensors`, read memory-mapped, with a digest of each picture's features, which is checked
when they are first used. Files are written aside, fsynced and renamed, by one process at a time; the others wait.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cir_cot.errors import InputError
from cir_cot.files import read_json, write_bytes_atomic, write_text_atomic
from cir_cot.storage import locked

IDENTITY = "identity.json"
SHARD = 2**28  # bytes of features held in memory before they are written, 256 MiB


class VisionCache:
    """Features (L, t, H) by picture: those of the tower's merger, then those of its deepstack layers if it has any.

    `tower` is a Qwen-VL's vision tower. Without `folder` features live in host memory until `forget`. `limit` bounds
    how many different pictures a run may show: more are a sign of augmentation, which would fill the disk.
    """

    def __init__(
        self,
        tower: nn.Module,
        folder: str | Path | None = None,
        limit: int | None = None,
        name: str = "0",
    ):
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise InputError("a cache of vision features needs a frozen vision tower: leave out vision_cache, or train "
                             "without train_vision")  # fmt: skip
        self.tower, self.limit, self.name = tower, limit, name
        self.folder = None if folder is None else Path(folder)
        self.identity: dict[str, str] = {}
        self.memory: dict[str, Tensor] = {}  # not on the disk (yet)
        self.stored: dict[str, object] = {}  # key -> open shard
        self.unchecked: dict[
            str, tuple[Path, str]
        ] = {}  # key -> file and digest of features that have not been used
        self.seen: set[str] = set()
        self.shards: set[str] = set()

    def open(self, identity: Mapping[str, str]) -> "VisionCache":
        """Use the folder, made if needed, and what is in it -> self; InputError when another tower filled it."""
        path, self.identity = self.folder / IDENTITY, dict(identity)
        with locked(self.folder, wait=True):
            if not path.is_file():
                write_text_atomic(path, json.dumps(identity, indent=1) + "\n")
        was = read_json(path)
        if not isinstance(was, dict):
            raise InputError(f"{path}: damaged; give --vision_cache a new folder")
        if odd := [key for key in identity if was.get(key) != identity[key]]:
            raise InputError(
                f"{self.folder}: holds features of another {odd[0]}; give --vision_cache a new folder"
            )
        self._read_shards()
        return self

    def __len__(self) -> int:
        return len(self.memory) + len(self.stored)

    @contextmanager
    def attached(self) -> Iterator["VisionCache"]:
        """Within it the tower looks up first, and runs on what is missing only.

        At its end, without a folder, all features are forgotten: those of a step would pile up over a run.
        """
        whole = self.tower.forward
        self.tower.forward = lambda patches, grid_thw, **options: self._features(
            whole, patches, grid_thw, options
        )
        try:
            yield self
        finally:
            del self.tower.forward  # the class's own shows again
            if self.folder is None:
                self.forget()

    @torch.no_grad()
    def _features(
        self, run, patches: Tensor, grid: Tensor, options: dict
    ) -> BaseModelOutputWithPooling:
        blocks = patches.split(grid.prod(dim=1).tolist())
        keys = content_keys(blocks, grid)
        missing = [row for row, key in enumerate(keys) if key not in self and key not in keys[:row]]
        if missing:
            self._add(run, keys, blocks, grid, missing, options)
        layers = torch.cat([self._get(key) for key in keys], dim=1).to(
            patches.device, non_blocking=True
        )  # (L, t, H)
        out = BaseModelOutputWithPooling(pooler_output=layers[0])
        out.deepstack_features = list(layers[1:])
        return out

    def _add(
        self, run, keys: list[str], blocks, grid: Tensor, missing: list[int], options: dict
    ) -> None:
        self.seen.update(keys)
        if self.limit is not None and len(self.seen) > self.limit:
            raise InputError(
                f"the vision cache met more different pictures than the {self.limit} of the data: they are augmented "
                "or cut anew each time; leave out vision_cache"
            )
        out = run(torch.cat([blocks[row] for row in missing]), grid_thw=grid[missing], **options)
        deep = getattr(out, "deepstack_features", None) or []
        layers = torch.stack([out.pooler_output, *deep]).cpu()  # (L, t, H)
        counts = grid[missing].prod(dim=1) * layers.shape[1] // grid[missing].prod(dim=1).sum()
        for row, value in zip(missing, layers.split(counts.tolist(), dim=1), strict=True):
            self.memory[keys[row]] = value.clone()
        if self.folder is not None and sum(value.nbytes for value in self.memory.values()) >= SHARD:
            self.flush()

    def __contains__(self, key: str) -> bool:
        return key in self.memory or key in self.stored

    def _get(self, key: str) -> Tensor:
        if key in self.memory:
            return self.memory[key]
        value = self.stored[key].get_tensor(key)
        path, digest = self.unchecked.pop(key, (None, None))
        if digest is not None and digest != _digest(value):
            raise InputError(
                f"{path}: altered since it was written; delete it, its pictures are read anew"
            )
        return value

    def forget(self) -> None:
        """Drop what is in memory alone, at the end of a step."""
        self.memory.clear()

    def flush(self) -> None:
        """Write what is not on the disk yet, and find what other processes have written."""
        if self.memory:
            with locked(self.folder, wait=True):
                self._read_shards()
                self._write(
                    {key: value for key, value in self.memory.items() if key not in self.stored}
                )
            self.memory = {}
        self._read_shards()

    def _write(self, features: Mapping[str, Tensor]) -> None:
        if features:
            stem = f"features-{self.name}-{hashlib.blake2b(''.join(features).encode(), digest_size=8).hexdigest()}"
            content = save(dict(features), {key: _digest(value) for key, value in features.items()})
            write_bytes_atomic(self.folder / f"{stem}.safetensors", content)

    def _read_shards(self) -> None:
        for path in sorted(self.folder.glob("features-*.safetensors")):
            if path.name not in self.shards:
                try:
                    shard = safe_open(path, "pt")
                except (SafetensorError, OSError) as error:
                    raise InputError(
                        f"{path}: not readable ({error}); delete it, its pictures are read anew"
                    ) from error
                digests = shard.metadata() or {}
                new = set(shard.keys()) - self.stored.keys()
                self.unchecked |= {key: (path, digests.get(key)) for key in new}
                self.stored |= dict.fromkeys(new, shard)
                self.shards.add(path.name)


def _digest(value: Tensor) -> str:
    """Return a digest of features: of their numbers, type and shape."""
    content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(
        f"{value.dtype} {tuple(value.shape)} ".encode() + content, digest_size=16
    ).hexdigest()


def tower_identity(tower: nn.Module, processor, precision: str) -> dict[str, str]:
    """What decides a picture's features: the tower's weights, the processor's settings, the precision of the pass."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
    return {
        "vision tower": digest.hexdigest(),
        "processor": hashlib.blake2b(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest()[:32],
        "precision": precision,
    }


def content_keys(blocks: Sequence[Tensor], grid: Tensor) -> list[str]:
    """Digests of pictures' patches (p, d): 128 bits, computed where the patches are, equal on every device.

    Two sums of the values' bits times fixed random 64-bit numbers: different pictures collide with a probability of
    about 2^-100. A picture made to collide could only harm its own maker's training.
    """
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[
        blocks[0].element_size()
    ]
    sums = []
    for block in blocks:
        bits = block.contiguous().view(whole).flatten().long()
        sums.append(
            (bits * _lanes(_at_least(len(bits)), str(block.device))[:, : len(bits)]).sum(dim=1)
        )  # (2,)
    pairs = zip(torch.stack(sums).tolist(), grid.tolist(), strict=True)
    return [
        f"{'x'.join(map(str, shape))}-{'-'.join(f'{lane % 2**64:016x}' for lane in lanes)}"
        for lanes, shape in pairs
    ]


def _at_least(count: int) -> int:
    return 1 << max(count - 1, 1).bit_length()


@cache
def _lanes(count: int, device: str) -> Tensor:
    """Random 64-bit numbers (2, count); those of a longer row begin with those of a shorter one."""
    lanes = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        lanes.append(torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator))
    return torch.stack(lanes).to(device)
