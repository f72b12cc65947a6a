"""TODO."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.files import read_json, write_text_atomic
from cir_cot.prompts import PARTS, PROMPTS_VERSION, QUERY, RET, TARGET
from cir_cot.records import Cot

from .sentence_transformers import write_sentence_form

TOLERANCE = 1e-3  # largest difference of a number of a unit vector: what merging in bfloat16 leaves; float32 is at 1e-6
SHADES, TEXTS = (
    6,
    (
        "make it red",
        "the same without sleeves",
        "a second one, to the left",
        "<|im_end|>",
        "日本",
        "x",
    ),
)


def probes(images: str | None) -> list[Image.Image]:
    """Return six pictures to compare embeddings of."""
    if images:
        from cir_cot.images import list_pictures

        store = list_pictures(images)
        return [store.load(name) for name in list(store.files)[:SHADES]]
    draw = random.Random(0)
    cells = [[tuple(draw.choices(range(256), k=3)) for _ in range(9)] for _ in range(SHADES)]
    pictures = [Image.new("RGB", (3, 3)) for _ in cells]
    for picture, colours in zip(pictures, cells, strict=True):
        picture.putdata(colours)
    return [picture.resize((168, 168), Image.Resampling.NEAREST) for picture in pictures]


def embeddings(retriever, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """Return {case: vector (D,)} of targets, of queries without a chain, and of queries with a given one."""
    from cir_cot.retriever import inference

    texts = list(TEXTS[: len(pictures)])
    chains = [
        Cot("a thing", f"what changes: {number}", "another thing")
        for number in range(len(pictures))
    ]
    with inference(retriever):
        cases = {
            "target": retriever.encode_target(pictures),
            "fast": retriever.encode_query(pictures, texts, reading="fast").embeddings,
            "chain": retriever.embed_with(pictures, texts, chains).embeddings,
        }
    return {
        f"{case} {row}": vector for case, rows in cases.items() for row, vector in enumerate(rows)
    }


def write_export(retriever, out: Path, pictures: Sequence[Image.Image]) -> None:
    """Write the merged checkpoint, what engines need to use it, and probes with the exact tokens of each case."""
    retriever.backbone.merge()
    retriever.save(out)
    encoder = retriever.encoder()
    folder = out / "probes"
    folder.mkdir(exist_ok=True)
    cases = {}
    for row, picture in enumerate(pictures):
        picture.save(folder / f"{row}.png")
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


def sentence_embeddings(
    out: Path, pictures: Sequence[Image.Image], device: str | None
) -> dict[str, torch.Tensor] | str:
    """Return {case: vector} as sentence-transformers reads the export, or a line that says why it cannot be asked."""
    if not (out / "modules.json").is_file():
        return "not checked: the export has no modules.json; export again"
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(out), device=device, local_files_only=True)
    except ImportError as error:  # also what it raises for a version that the export refuses
        return f"not checked: {error}"
    queries = [
        {"image": picture, "text": text} for picture, text in zip(pictures, TEXTS, strict=False)
    ]
    rows = {"target": model.encode(list(pictures), convert_to_tensor=True)}
    rows["fast"] = model.encode(queries, convert_to_tensor=True)
    return {
        f"{case} {row}": vector.cpu()
        for case, part in rows.items()
        for row, vector in enumerate(part)
    }


def compare(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float
) -> dict:
    """Return the parity report: the largest difference and the smallest cosine of each case, and whether all pass."""
    rows = {}
    for case, vector in ours.items():
        if case not in theirs:
            continue
        other = theirs[case].double()
        if other.shape != vector.shape or not other.isfinite().all():
            rows[case] = {"difference": None, "cosine": None, "passed": False}
            continue
        difference = (vector.double() - other).abs().max().item()
        cosine = torch.nn.functional.cosine_similarity(vector.double(), other, dim=0).item()
        rows[case] = {"difference": difference, "cosine": cosine, "passed": difference <= tolerance}
    if not rows:
        raise InputError(f"no case to compare; expected are {', '.join(ours)}")
    return {
        "passed": all(row["passed"] for row in rows.values()),
        "tolerance": tolerance,
        "cases": rows,
    }


def read_embeddings(path: str) -> dict[str, torch.Tensor]:
    """Return {case: vector} of another engine's answers."""
    found = read_json(path)
    wrong = not isinstance(found, dict) or not all(
        isinstance(row, list) and row and all(isinstance(number, (int, float)) for number in row)
        for row in found.values()
    )
    if wrong:
        raise InputError(
            f"{path}: an object {{case: list of numbers}} is expected, with the cases of probes.json"
        )
    return {case: torch.tensor(row, dtype=torch.float64) for case, row in found.items()}
