"""Export a chain head as one merged checkpoint for other engines, and compare their embeddings with its own.

The comparison covers targets, queries without a chain, and queries with a given chain, over a few pictures and texts;
one of the texts is a special token.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.files import read_json, write_text_atomic
from cir_cot.fingerprint import ALIKE, ROUNDING, rounding_error
from cir_cot.prompts import PARTS, PROMPTS_VERSION, QUERY, RET, TARGET
from cir_cot.records import Cot

from .sentence_transformers import write_sentence_form

if TYPE_CHECKING:
    from cir_cot.models.chat import ChatEncoder

    from .sentence_transformers import ChainHead

# Largest difference of a component of a unit vector where the model is shallow; see `tolerance_of`.
TOLERANCE = 1e-3
PROBES = 6  # pictures that are compared
TEXTS = (
    "make it red",
    "the same without sleeves",
    "a second one, to the left",
    "<|im_end|>",
    "日本",
    "x",
)


def probes(images: str | None) -> list[Image.Image]:
    """Return six pictures to compare embeddings of: synthetic ones, or the first of the folder `images`."""
    if images:
        from cir_cot.images import list_pictures

        store = list_pictures(images)
        files = cast(Mapping[str, str], store.files)  # list_pictures finds files by id
        return [store.load(name) for name in list(files)[:PROBES]]
    # Draw 3 x 3 cells of random colours.
    draw = random.Random(0)
    pictures = []
    for _ in range(PROBES):
        picture = Image.new("RGB", (3, 3))
        picture.putdata([tuple(draw.choices(range(256), k=3)) for _ in range(9)])
        pictures.append(picture.resize((168, 168), Image.Resampling.NEAREST))
    return pictures


def embeddings(retriever: ChainHead, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """Encode targets, queries without a chain ("fast"), and queries with a given chain -> {case: vector (D,)}."""
    from cir_cot.retriever import inference

    # A text and a chain for each picture, all different.
    texts = list(TEXTS[: len(pictures)])
    chains = [
        Cot("a thing", f"what changes: {number}", "another thing")
        for number in range(len(pictures))
    ]
    # Every form of input that an engine will see.
    with inference(retriever):
        cases = {
            "target": retriever.encode_target(pictures),
            "fast": retriever.encode_query(pictures, texts, reading="fast").embeddings,
            "chain": retriever.embed_with(pictures, texts, chains).embeddings,
        }
    return _by_case(cases)


def _by_case(cases: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name every vector by its case and row: {"target": (N, D)} -> {"target 0": (D,), …}."""
    found = {}
    for case, rows in cases.items():
        for row, vector in enumerate(rows):
            found[f"{case} {row}"] = vector
    return found


def write_export(retriever: ChainHead, out: Path, pictures: Sequence[Image.Image]) -> None:
    """Write the merged checkpoint, what engines need to use it, and probes with the exact tokens of each case."""
    # Engines take plain weights.
    retriever.backbone.merge()
    retriever.save(out)
    encoder = retriever.encoder()
    _write_probes(encoder, out / "probes", pictures)
    # Prompts and readout, for whoever writes the inputs of an engine.
    recipe = {
        "prompts": PROMPTS_VERSION,
        "target_prompt": TARGET,
        "query_prompt": QUERY,
        "chain": "".join(f"<{part}>…</{part}>" for part in PARTS),
        "retrieval_token": RET,
        "retrieval_token_id": encoder.ret_id,
        "readout": retriever.readout,
        "projection": "head.safetensors: project.weight" if retriever.projection else None,
        "normalize": True,
        "dim": retriever.dim,
    }
    write_text_atomic(out / "serving.json", json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")
    write_sentence_form(retriever, out)


def _write_probes(encoder: ChatEncoder, folder: Path, pictures: Sequence[Image.Image]) -> None:
    """Write the probe pictures, and probes.json with the input ids of each case."""
    folder.mkdir(exist_ok=True)
    cases = {}
    for row, picture in enumerate(pictures):
        picture.save(folder / f"{row}.png")
        # A chain would come between the prompt and the retrieval token.
        inputs = {
            "target": encoder.target([picture]),
            "fast": encoder.query([picture], [TEXTS[row]], [[encoder.ret_id]])[0],
        }
        for case, tensors in inputs.items():
            cases[f"{case} {row}"] = {
                "image": f"{row}.png",
                "input_ids": tensors["input_ids"][0].tolist(),
            }
    write_text_atomic(folder / "probes.json", json.dumps(cases))


def sentence_embeddings(
    out: Path, pictures: Sequence[Image.Image], device: str | None
) -> dict[str, torch.Tensor] | str:
    """Encode with sentence-transformers -> {case: vector}, or a line that says why it cannot be compared."""
    if not (out / "modules.json").is_file():
        return "not checked: the export has no modules.json; export again"
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(out), device=device, local_files_only=True)
    except ImportError as error:  # raised as well for a version that the export refuses
        return f"not checked: {error}"
    # Targets and queries without a chain; sentence-transformers takes no chains.
    queries = [
        {"image": picture, "text": text} for picture, text in zip(pictures, TEXTS, strict=False)
    ]
    rows = {"target": model.encode(list(pictures), convert_to_tensor=True)}
    rows["fast"] = model.encode(queries, convert_to_tensor=True)
    return _by_case({case: vectors.cpu() for case, vectors in rows.items()})


def tolerance_of(dtype: str, depth: int, dim: int) -> float:
    """Return the largest difference of a component that rounding explains.

    Two encodings with errors of relative size e differ by a vector of norm sqrt(2) e without a direction, of whose D
    components the largest is about sqrt(2 ln D / D) of the norm.

    Args:
        dtype: the coarser precision of the two.
        depth: blocks of the language model.
        dim: D of the embeddings.
    """
    norm = 2**0.5 * rounding_error(dtype, depth)
    return max(TOLERANCE, norm * (2 * math.log(dim) / dim) ** 0.5)


def stored_dtype(folder: Path) -> str:
    """Return the precision of an export's weights, as its config.json names it; float32 if it does not."""
    config = read_json(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    return name if name in ROUNDING else "float32"


def compare(
    ours: dict[str, torch.Tensor],
    theirs: dict[str, torch.Tensor],
    tolerance: float,
    least: float = ALIKE,
) -> dict:
    """Compare vectors case by case; cases that `theirs` lacks are left out.

    Args:
        ours: {case: vector (D,)} of the head.
        theirs: The same of an engine.
        tolerance: Largest difference of a component.
        least: Least cosine.

    Returns:
        The parity report: difference and cosine of each case, and whether all cases pass.

    InputError if no case is in both.
    """
    rows: dict[str, dict[str, float | bool | None]] = {}
    # Engines may be able to compute some of the cases only.
    for case, vector in ours.items():
        if case not in theirs:
            continue
        # Vectors of another width, or with NaN, have no difference to report.
        other = theirs[case].double()
        if other.shape != vector.shape or not other.isfinite().all():
            rows[case] = {"difference": None, "cosine": None, "passed": False}
            continue
        # In double precision, so that the comparison adds no error of its own.
        difference = (vector.double() - other).abs().max().item()
        cosine = torch.nn.functional.cosine_similarity(vector.double(), other, dim=0).item()
        passed = difference <= tolerance and cosine >= least
        rows[case] = {"difference": difference, "cosine": cosine, "passed": passed}
    if not rows:
        raise InputError(f"no case to compare; give some of {', '.join(ours)}")
    return {
        "passed": all(row["passed"] for row in rows.values()),
        "tolerance": tolerance,
        "least_cosine": least,
        "cases": rows,
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Format a parity report as one line a case."""
    lines = []
    cases = dict(report["cases"])
    # Either a report of sentence-transformers' own, or the reason why there is none.
    form = report.get("sentence_transformers", {})
    if isinstance(form, str):
        lines.append(f"sentence-transformers {form}")
    else:
        cases |= {f"sentence-transformers {case}": row for case, row in form.items()}
    for case, row in cases.items():
        verdict = "NOT THE SAME"
        if row["passed"]:
            verdict = f"difference {row['difference']:.1e}, cosine {row['cosine']:.6f}"
        lines.append(f"{case:>10}  {verdict}")
    return lines


def read_embeddings(path: str) -> dict[str, torch.Tensor]:
    """Read another engine's embeddings from a JSON file -> {case: vector (D,)}."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(map(_is_vector, found.values())):
        raise InputError(
            f"{path}: an object {{case: list of numbers}} is expected, with the cases of probes.json"
        )
    return {case: torch.tensor(row, dtype=torch.float64) for case, row in found.items()}


def _is_vector(row: Any) -> bool:
    """Tell whether JSON content is a list of at least one number."""
    if not isinstance(row, list) or not row:
        return False
    return all(isinstance(number, (int, float)) for number in row)
