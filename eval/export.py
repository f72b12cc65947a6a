"""Export a retriever as one merged checkpoint for other engines, and prove that its embeddings are the same."""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch
from PIL import Image

from cir_cot.cli import run
from cir_cot.prompts import PARTS, PROMPTS_VERSION, QUERY, RET, TARGET
from cir_cot.provenance import git_state, package_versions
from cir_cot.records import Cot, InputError, read_json, write_text_atomic
from cir_cot.sentence_form import write_sentence_form

TOLERANCE = 1e-3  # largest difference of a number of a unit vector: what merging in bfloat16 leaves; float32 is at 1e-6
SHADES, TEXTS = 6, ("make it red", "the same without sleeves", "a second one, to the left", "<|im_end|>", "日本", "x")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(prog="cir-cot export", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a saved retriever that writes chains")
    add("--out", required=True, metavar="DIR", help="folder of the export, new or with --parity an existing one")
    add("--parity", action="store_true", help="export nothing: compare --out, or --embeddings, with --model")
    add("--embeddings", metavar="FILE", help="of another engine, to be compared: JSON, {case: vector}; see probes.json")
    add("--images", metavar="DIR", help="compare over pictures of yours (the first 6) instead of made ones")
    add("--tolerance", type=float, default=TOLERANCE, help=f"largest difference of a number (default {TOLERANCE})")
    add("--device", help="e.g. cuda:1 or cpu; default: a GPU where there is one")
    add(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the export (default float32)"
    )
    add("--json", action="store_true", help="print parity.json's content, and everything else to stderr")
    return parser.parse_args(argv)


def probes(images: str | None) -> list[Image.Image]:
    """Return six pictures to compare embeddings of."""
    if images:
        from cir_cot.encoding import list_pictures

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
    from cir_cot.evaluation import inference

    texts = list(TEXTS[: len(pictures)])
    chains = [Cot("a thing", f"what changes: {number}", "another thing") for number in range(len(pictures))]
    with inference(retriever):
        cases = {
            "target": retriever.encode_target(pictures),
            "fast": retriever.encode_query(pictures, texts, reading="fast").embeddings,
            "chain": retriever.embed_with(pictures, texts, chains).embeddings,
        }
    return {f"{case} {row}": vector for case, rows in cases.items() for row, vector in enumerate(rows)}


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
            cases[f"{case} {row}"] = {"image": f"{row}.png", "input_ids": tensors["input_ids"][0].tolist()}
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
    queries = [{"image": picture, "text": text} for picture, text in zip(pictures, TEXTS, strict=False)]
    rows = {"target": model.encode(list(pictures), convert_to_tensor=True)}
    rows["fast"] = model.encode(queries, convert_to_tensor=True)
    return {f"{case} {row}": vector.cpu() for case, part in rows.items() for row, vector in enumerate(part)}


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> dict:
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
    return {"passed": all(row["passed"] for row in rows.values()), "tolerance": tolerance, "cases": rows}


def read_embeddings(path: str) -> dict[str, torch.Tensor]:
    """Return {case: vector} of another engine's answers."""
    found = read_json(path)
    wrong = not isinstance(found, dict) or not all(
        isinstance(row, list) and row and all(isinstance(number, (int, float)) for number in row)
        for row in found.values()
    )
    if wrong:
        raise InputError(f"{path}: an object {{case: list of numbers}} is expected, with the cases of probes.json")
    return {case: torch.tensor(row, dtype=torch.float64) for case, row in found.items()}


def parity(args: argparse.Namespace, out: Path, pictures: Sequence[Image.Image], ours: dict[str, torch.Tensor]) -> dict:
    """Compare `ours` with the export, and with what sentence-transformers reads in it, or with given embeddings."""
    from cir_cot.heads import load_retriever

    if args.embeddings:
        return compare(ours, read_embeddings(args.embeddings), args.tolerance)
    theirs = embeddings(load_retriever(out, device=args.device, dtype=args.dtype), pictures)
    report, found = compare(ours, theirs, args.tolerance), sentence_embeddings(out, pictures, args.device)
    if isinstance(found, str):
        return report | {"sentence_transformers": found}
    form = compare(ours, found, args.tolerance)
    return report | {"passed": report["passed"] and form["passed"], "sentence_transformers": form["cases"]}


def show(report: dict, stream: TextIO) -> None:
    """Print a line for each case."""
    form = report.get("sentence_transformers", {})
    if isinstance(form, str):
        print(f"sentence-transformers {form}", file=stream)
    cases = {} if isinstance(form, str) else {f"sentence-transformers {case}": row for case, row in form.items()}
    for case, row in (report["cases"] | cases).items():
        words = f"difference {row['difference']:.1e}, cosine {row['cosine']:.6f}" if row["passed"] else "NOT THE SAME"
        print(f"{case:>10}  {words}", file=stream)


def main(argv: Sequence[str]) -> int:
    """Export, compare, report; exit code 1 when embeddings differ by more than the tolerance."""
    args = parse(argv)
    out = Path(args.out)
    if args.embeddings and not args.parity:
        raise InputError("--embeddings compares with an export that is there: add --parity")
    if not args.parity and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; export into a new folder, or compare with --parity")
    from cir_cot.heads import load_retriever
    from cir_cot.heads.cot import CotRetriever

    pictures = probes(args.images)
    retriever = load_retriever(args.model, device=args.device)
    if not isinstance(retriever, CotRetriever) or retriever.target_encoder:
        raise InputError(
            f"{args.model}: a {retriever.kind!r} retriever; export is for chain heads that read both sides"
        )
    ours = embeddings(retriever, pictures)
    if not args.parity:
        if args.dtype != "float32":
            retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
        write_export(retriever, out, pictures)
    del retriever  # one model in memory at a time
    report = parity(args, out, pictures, ours)
    report |= {"model": args.model, "dtype": args.dtype, "git": git_state(), "versions": package_versions()}
    if not args.embeddings:
        write_text_atomic(out / "parity.json", json.dumps(report, indent=1) + "\n")
    show(report, sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    if not report["passed"]:
        print(f"error: the embeddings differ by more than {args.tolerance}: do not serve this", file=sys.stderr)
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    run(main)
