"""Tell one retriever from another by what it encodes, and how much rounding may change an embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .errors import InputError
from .retriever import Retriever, inference

# Least cosine of two encodings of one image by one shallow model, in any precision; see `least_cosine`.
ALIKE = 0.999
# Relative rounding error of one number, half a unit in its last place.
ROUNDING = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
# Side in pixels of the images that a fingerprint encodes.
SIDE = 224


def rounding_error(dtype: str, depth: int) -> float:
    """Bound the relative error of an embedding by rounding, 4 u sqrt(2 L).

    Each of L blocks adds two rounded updates to the residual stream, and independent errors add up like a random walk:
    u sqrt(2 L) with u the rounding error of one number. Two encodings of a 28-layer Qwen2.5-VL in bfloat16 have a
    cosine of 0.998, which is 1.5 times that; the factor 4 leaves room for other models and pictures.

    Args:
        dtype: a key of ROUNDING.
        depth: L, number of blocks of the language model.
    """
    return 4 * ROUNDING[dtype] * (2 * depth) ** 0.5


def least_cosine(depth: int, dtype: str = "bfloat16") -> float:
    """Return the least cosine of two encodings of one input by one retriever of `depth` blocks.

    Errors of relative size e on both sides change the cosine by e^2. The default dtype is the coarsest, for an index
    does not say in which precision it was encoded.
    """
    return 1 - max(1 - ALIKE, rounding_error(dtype, depth) ** 2)


def fingerprint(retriever: Retriever) -> np.ndarray:
    """Return the embeddings (3, D) of three synthetic images, which tell one retriever from another."""
    # Random cells, enlarged without smoothing: no rounding of an interpolation changes the pixels.
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    images = []
    for cells in colours:
        small = Image.fromarray(cells)
        images.append(small.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    with inference(retriever):
        return retriever.encode_target(images).float().cpu().numpy()


def identity(retriever: Retriever) -> dict[str, Any]:
    """Return what stored vectors are compared by: `probe`, the fingerprint, and `pixels`, the bounds of pictures.

    The fingerprint's pictures are small, so that few bounds change them. `pixels` is None for a retriever that
    has no bounds.
    """
    bounds = getattr(retriever, "pixel_bounds", None)  # only heads on a Qwen-VL have them
    return {"probe": fingerprint(retriever).tolist(), "pixels": bounds() if bounds else None}


def check_identity(stored: Mapping[str, Any], retriever: Retriever, where: str) -> None:
    """Raise InputError if vectors were stored by another retriever, or at other bounds of pictures.

    Args:
        stored: what `identity` returned; earlier versions stored no `pixels`.
        retriever: the one in use.
        where: names what stores the vectors.
    """
    # The bounds first: small ones change the fingerprint, too, and say less there.
    bounds = getattr(retriever, "pixel_bounds", None)
    held = stored.get("pixels")
    if held and bounds and bounds() != held:
        options = " ".join(f"--{name.replace('_', '-')} {held[name]}" for name in held)
        raise InputError(
            f"{where}: encoded at {_named(held)}, and the retriever has {_named(bounds())}; give {options}, or encode "
            "the gallery into a new folder"
        )
    check_fingerprint(stored["probe"], retriever, where)


def _named(bounds: Mapping[str, int]) -> str:
    """Return pixel bounds as text: "min_pixels 3136 and max_pixels 501760"."""
    return " and ".join(f"{name} {value}" for name, value in bounds.items())


def check_fingerprint(stored: Sequence[Sequence[float]], retriever: Retriever, where: str) -> None:
    """Raise InputError if a stored fingerprint (3, D) is not the retriever's; `where` names what stores it."""
    # In float64: the comparison itself must not round.
    theirs = np.array(stored, dtype=np.float64)
    ours = fingerprint(retriever).astype(np.float64)
    if theirs.shape == ours.shape:
        cosine = (theirs * ours).sum(axis=1).min()
        difference = f"cosine {cosine:.3f}"
    else:
        # Another width cannot be the same retriever.
        cosine = -1.0
        difference = f"{theirs.shape[1]} and {ours.shape[1]} numbers"
    depth = getattr(retriever, "depth", 1)  # any retriever may say how deep it is
    if not cosine >= least_cosine(depth):  # a NaN is refused, too
        raise InputError(
            f"{where}: encoded by another retriever ({difference} for the same picture); give the checkpoint that "
            "it was encoded with, or encode the gallery into a new folder"
        )
