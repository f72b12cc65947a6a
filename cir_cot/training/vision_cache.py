"""Cache the features of a frozen vision tower: within one step, or on the disk for every run.

A picture's key is a digest of the patches that the tower would take as input, so it covers the
content of the picture and everything that the processor did to it. A query, a target and a gallery
that show the same picture share its features. The tower runs on missing pictures only, and the
language model gets the same input as without a cache.

`feature_folder` keeps the features on the disk.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cir_cot.digests import new_digest
from cir_cot.errors import InputError
from cir_cot.models.backbone import Backbone
from cir_cot.records import Record

from .arguments import CirArguments
from .dataset import used
from .feature_folder import FeatureFolder

SHARD = 2**28  # bytes of features held in memory before they are written, 256 MiB
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size of an element


class VisionCache:
    """Cache a vision tower's features by picture: (L, t, H), of the merger and each deepstack layer.

    Without `open`, features live in host memory until the end of `attached`.

    Args:
        tower: the frozen vision tower of a Qwen-VL.
        folder: where `open` keeps features.
        limit: how many different pictures a run may show. More are a sign of augmentation, which
            would fill the disk.
        name: distinguishes this process's files from those of others.

    Example:
        with VisionCache(tower, "features").open(identity).attached() as cache:
            hidden = backbone(inputs)
            cache.flush()
    """

    def __init__(
        self,
        tower: nn.Module,
        folder: str | Path | None = None,
        limit: int | None = None,
        name: str = "0",
    ):
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise InputError(
                "a cache of vision features needs a frozen vision tower: leave out vision_cache, "
                "or train without train_vision"
            )
        self.tower = tower
        self.folder = None if folder is None else Path(folder)
        self.limit = limit
        self.name = name
        self.identity: dict[str, str] = {}
        self.memory: dict[str, Tensor] = {}  # features that are not on the disk (yet)
        self.disk: FeatureFolder | None = None
        self.seen: set[str] = set()

    def open(self, identity: Mapping[str, str]) -> "VisionCache":
        """Use the folder and the features in it; return the cache.

        Raises:
            InputError: the folder is damaged, or holds features of another tower.
        """
        assert self.folder is not None, "a cache in memory has no folder to open"
        self.identity = dict(identity)
        self.disk = FeatureFolder(self.folder, identity, self.name)
        return self

    def __len__(self) -> int:
        return len(self.memory) + (0 if self.disk is None else len(self.disk))

    def __contains__(self, key: str) -> bool:
        return key in self.memory or (self.disk is not None and key in self.disk)

    @contextmanager
    def attached(self) -> Iterator["VisionCache"]:
        """Make the tower look its features up first, within a `with` block.

        The block replaces `tower.forward` on the instance. A forward hook cannot do this: it could
        change the input or the output, but the tower must not run at all where every picture is
        known. A wrapping module would rename the weights in every checkpoint. The method of the
        class is untouched and is used again after the block, also after an exception.

        At the end of the block a cache in memory forgets its features: over a run they would
        accumulate.
        """
        original = self.tower.forward  # bound to the class's method

        def cached(patches: Tensor, grid_thw: Tensor, **options) -> BaseModelOutputWithPooling:
            return self._features(original, patches, grid_thw, options)

        self.tower.forward = cached
        try:
            yield self
        finally:
            del self.tower.forward  # removes the instance override
            if self.disk is None:
                self.forget()

    @torch.no_grad()
    def _features(
        self, run: Callable, patches: Tensor, grid: Tensor, options: Mapping
    ) -> BaseModelOutputWithPooling:
        """Return what the tower would return, and run it on the missing pictures only."""
        # The grids are read once: each read waits for the device.
        grids = grid.tolist()
        blocks = patches.split([math.prod(shape) for shape in grids])  # a block (p, d) a picture
        keys = content_keys(blocks, grids)
        # Run the tower on the first occurrence of each missing picture.
        missing = [row for row, key in enumerate(keys) if key not in self and key not in keys[:row]]
        if missing:
            self.seen.update(keys)
            self._check_limit()
            missing_patches = torch.cat([blocks[row] for row in missing])
            out = run(missing_patches, grid_thw=grid[missing], **options)
            self._remember({keys[row]: math.prod(grids[row]) for row in missing}, out)
        # Join the features of all pictures in their order.
        layers = torch.cat([self._get(key) for key in keys], dim=1)  # (L, t, H)
        layers = layers.to(patches.device, non_blocking=True)
        out = BaseModelOutputWithPooling(pooler_output=layers[0])
        out.deepstack_features = list(layers[1:])
        return out

    def _check_limit(self) -> None:
        if self.limit is not None and len(self.seen) > self.limit:
            raise InputError(
                f"the vision cache met more different pictures than the {self.limit} of the data: "
                "they are augmented or cropped at random; leave out vision_cache"
            )

    def _remember(self, patches: Mapping[str, int], out: Any) -> None:
        """Keep the features that the tower returned for pictures, given by key with their number of patches."""
        deep = getattr(out, "deepstack_features", None) or []
        layers = torch.stack([out.pooler_output, *deep]).cpu()  # (L, t, H)
        total = sum(patches.values())
        counts = [count * layers.shape[1] // total for count in patches.values()]
        for key, value in zip(patches, layers.split(counts, dim=1), strict=True):
            self.memory[key] = value.clone()
        held = sum(value.nbytes for value in self.memory.values())
        if self.disk is not None and held >= SHARD:
            self.flush()

    def _get(self, key: str) -> Tensor:
        if key in self.memory:
            return self.memory[key]
        assert self.disk is not None, "every key has been computed or is on the disk"
        return self.disk[key]

    def forget(self) -> None:
        """Drop the features that are only in memory."""
        self.memory.clear()

    def flush(self) -> None:
        """Write what is not on the disk yet, and find what other processes have written."""
        assert self.disk is not None, "a cache in memory has nothing to write"
        self.disk.add(self.memory)
        self.memory = {}


def tower_identity(tower: nn.Module, processor: Any, precision: str) -> dict[str, str]:
    """Return what decides a picture's features: weights, processor settings and precision."""
    weights = new_digest()
    for name, value in sorted(tower.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    # Settings that begin with _ are transformers' own bookkeeping.
    settings = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "vision tower": weights.hexdigest(),
        "processor": hashlib.blake2b(text.encode()).hexdigest()[:32],
        "precision": precision,
    }


def content_keys(blocks: Sequence[Tensor], grids: Sequence[Sequence[int]]) -> list[str]:
    """Return 128-bit digests of pictures' patches (p, d) and of their grids, the same on every device.

    A digest is two sums of the values' bits times fixed random 64-bit numbers, computed where the
    patches are. Different pictures collide with a probability of about 2^-100. A picture that was
    constructed to collide could only harm the training of whoever constructed it.
    """
    integer = BITS[blocks[0].element_size()]
    sums = []
    for block in blocks:
        bits = block.contiguous().view(integer).flatten().long()  # (n,)
        lanes = _lanes(_at_least(len(bits)), str(block.device))[:, : len(bits)]  # (2, n)
        sums.append((bits * lanes).sum(dim=1))  # (2,)
    # The shape of the grid is part of the key: it decides the positions of patches.
    keys = []
    for lanes_of_one, shape in zip(torch.stack(sums).tolist(), grids, strict=True):
        size = "x".join(map(str, shape))
        digest = "-".join(f"{lane % 2**64:016x}" for lane in lanes_of_one)
        keys.append(f"{size}-{digest}")
    return keys


def _at_least(count: int) -> int:
    """Return a power of two that is at least `count`, so that few lengths of lanes are cached."""
    return 1 << max(count - 1, 1).bit_length()


@cache
def _lanes(count: int, device: str) -> Tensor:
    """Return random 64-bit numbers (2, count); a longer row begins with the shorter ones."""
    lanes = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        lanes.append(torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator))
    return torch.stack(lanes).to(device)


def vision_cache(
    head: nn.Module, args: CirArguments, records: Sequence[Record], precision: str
) -> VisionCache | None:
    """Return the cache for a training run: on the disk if asked for, else shared within a step.

    Args:
        precision: mixed precision of the run; features of another one are not the same.

    Raises:
        InputError: `args.vision_cache` with a head that has no Qwen-VL vision tower.
    """
    backbone = next((child for child in head.children() if isinstance(child, Backbone)), None)
    if backbone is None:
        if args.vision_cache:
            raise InputError(
                "vision_cache: this retriever has no Qwen-VL vision tower; leave vision_cache out"
            )
        return None
    tower = backbone.plain.model.visual
    if args.vision_cache:
        # Hard negatives show further pictures, as many as were mined.
        mined = getattr(args, "negatives", None)
        limit = None if mined else len(set(used(records)))
        features = VisionCache(tower, args.vision_cache, limit, str(args.process_index))
        processor = backbone.processor.image_processor
        return features.open(tower_identity(tower, processor, f"{tower.dtype}, {precision}"))
    # The two passes of gradient caching share features. Where parameters are sharded, every process
    # must run the tower at the same moments, so there is no cache.
    frozen = not any(parameter.requires_grad for parameter in tower.parameters())
    if frozen and args.chunk_tokens and not args.shards_parameters:
        return VisionCache(tower)
    return None
