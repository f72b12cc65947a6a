"""Measure chain decoding with a continuous batch beside batches one after another, and beside transformers' generate.

All ways use the same weights and queries. The model is untrained: each row's tokens are prescribed, of log-normal
lengths, and all ways generate exactly these. For each batch size are counted the forward passes over new tokens, the
row-steps (rows x tokens of these passes), the tokens fed in all, with prompts and visual tokens, the bytes of hidden
states that are held when decoding ends, and the time, the ways in turns. "ours" reads embeddings from the decoding pass
of a continuous batch; "batches" decodes batch after batch; "generate" keeps all hidden states; "two_passes" generates
text and encodes it again. "fed_together" is ours
with the rests of tags fed in one pass, as on GPUs.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

from cir_cot.cli import run
from cir_cot.files import write_text_atomic
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.decoding import Queue, decode
from cir_cot.models.backbone import load_backbone
from cir_cot.models.chat import POSITIONS
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.profiling.told_chains import WORDS, Prescribed, Told, make_chains
from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot


def make_head(hidden: int, layers: int) -> CotRetriever:
    """Return a tiny chain head."""
    tokenizer = tiny_tokenizer([cot_to_text(Cot(*[" ".join(WORDS)] * 3))], 400)
    sizes = {"hidden": hidden, "layers": layers, "intermediate": 4 * hidden}
    base = tiny_model("qwen2_5_vl", tokenizer, **sizes), tiny_processor("qwen2_5_vl", tokenizer)
    return CotRetriever(load_backbone(base), "tiny").eval()


@contextmanager
def counted(head: CotRetriever, seen: dict) -> Iterator[None]:
    """Count what the language model is given: tokens, passes over new tokens, and their rows x tokens."""
    seen |= {"forward_passes": 0, "row_steps": 0, "tokens": 0}

    def count(_, args, kwargs):
        given = kwargs.get("input_ids")
        rows, tokens = (given if given is not None else kwargs["inputs_embeds"]).shape[:2]
        seen["tokens"] += rows * tokens
        if kwargs.get("pixel_values") is None:
            seen["forward_passes"] += 1
            seen["row_steps"] += rows * tokens

    handle = head.backbone.plain.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Case:
    """Hold the queries of a measurement, their prescribed chains, and the ways to decode them.

    Args:
        head: the model.
        chains: token ids of each query's chain.
        size: rows of a batch.
    """

    def __init__(self, head: CotRetriever, chains: list[list[int]], size: int):
        self.head = head
        self.chains = chains
        self.groups = [
            list(range(at, min(at + size, len(chains)))) for at in range(0, len(chains), size)
        ]
        self.size = size
        draw = random.Random(1)
        self.images = [
            Image.new("RGB", (84, 84), tuple(draw.choices(range(256), k=3))) for _ in chains
        ]
        self.texts = [" ".join(draw.choices(WORDS, k=4)) for _ in chains]

    def inputs(self, numbers: Sequence[int], answers: list[list[int]] | None = None) -> dict:
        """Return model inputs of some queries: prompts to be written on, or with complete answers."""
        images = [self.images[number] for number in numbers]
        texts = [self.texts[number] for number in numbers]
        side = "left" if answers is None else "right"
        return self.head.encoder(side).query(images, texts, answers or [[]] * len(numbers))[0]

    def ours(self, seen: dict, together: bool = False) -> torch.Tensor:
        """Return vectors (B, D) of a continuous batch."""
        return self._decoded(seen, [self.groups], together)

    def fed_together(self, seen: dict) -> torch.Tensor:
        """Return vectors (B, D) of a continuous batch that is fed prescribed tokens together."""
        return self.ours(seen, together=True)

    def batches(self, seen: dict) -> torch.Tensor:
        """Return vectors (B, D) of batches one after another."""
        return self._decoded(seen, [[group] for group in self.groups], False)

    def _decoded(self, seen: dict, runs: list, together: bool) -> torch.Tensor:
        grammar = Told(self.head.encoder("left"), PARTS, 384)
        rows = [grammar.told(chain) for chain in self.chains]
        vectors = torch.zeros(len(rows), self.head.dim)
        for groups in runs:
            queue = Queue(self.inputs, [list(group) for group in groups])
            *_, last = decode(
                self.head.backbone,
                grammar,
                queue,
                rows,
                self.head.embed_states,
                self.size,
                together=together,
            )
            vectors += last.vectors
        seen["retained"] = last.vectors.nbytes
        return vectors

    def with_hidden_states(self, seen: dict) -> torch.Tensor:
        """Return embeddings (B, D) from all hidden states of generate.

        It does not encode the token that ends a row, so that one more token follows the retrieval token.
        """
        ends = [self.head.backbone.ret_id, self.head.backbone.processor.tokenizer.eos_token_id]
        picked = []
        seen["retained"] = 0
        for group in self.groups:
            chains = [self.chains[number] for number in group]
            wanted = [[*chain, *ends] for chain in chains]
            states = generate(self.head, self.inputs(group), wanted, True).hidden_states
            held = sum(layer.nbytes for step in states for layer in step)
            seen["retained"] = max(seen["retained"], held)
            picked += [states[len(chain) + 1][-1][row, -1] for row, chain in enumerate(chains)]
        return self.head.embed_states(torch.stack(picked))

    def two_passes(self, seen: dict) -> torch.Tensor:
        """Return embeddings (B, D) of a second pass over the generated text."""
        ret = self.head.backbone.ret_id
        seen["retained"] = 0
        parts = []
        for group in self.groups:
            inputs = self.inputs(group)
            wanted = [[*self.chains[number], ret] for number in group]
            answer = generate(self.head, inputs, wanted, hidden=False)
            rows = [row[inputs["input_ids"].shape[1] :].tolist() for row in answer.sequences]
            answers = [[*row[: row.index(ret)], ret] for row in rows]
            parts.append(self.head.read(self.inputs(group, answers)))
        return torch.cat(parts)


def generate(head: CotRetriever, inputs: dict, rows: list[list[int]], hidden: bool) -> object:
    """Return what transformers' generate gives for prescribed rows; the last token of a row ends it."""
    ends = {row[-1] for row in rows}
    return head.backbone.plain.generate(
        **{name: value for name, value in inputs.items() if name != POSITIONS},
        max_new_tokens=max(map(len, rows)),
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=head.backbone.processor.tokenizer.pad_token_id,
        logits_processor=[Prescribed(rows, inputs["input_ids"].shape[1])],
        output_hidden_states=hidden,
        return_dict_in_generate=True,
    )


def take_turns(head: CotRetriever, ways: dict[str, Callable], repeats: int) -> dict[str, dict]:
    """Return each mode's counts, median seconds, and largest difference from the first mode's embeddings."""
    facts = {}
    vectors = {}
    seconds = {name: [] for name in ways}
    parameters = sum(
        weight.numel() for weight in head.backbone.plain.model.language_model.parameters()
    )
    for name, way in [pair for _ in range(repeats) for pair in ways.items()]:
        seen: dict = {}
        with torch.no_grad(), counted(head, seen):
            started = time.perf_counter()
            vectors[name] = way(seen)
            seconds[name].append(time.perf_counter() - started)
        facts[name] = seen | {"token_flops": 2 * parameters * seen["tokens"]}
    for name in ways:
        facts[name]["seconds"] = statistics.median(seconds[name])
        facts[name]["difference"] = (
            (vectors[name] - next(iter(vectors.values()))).abs().max().item()
        )
    return facts


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--rows", type=int, default=48, help="queries (default 48)")
    add("--sizes", type=int, nargs="+", default=[4, 8, 16], help="rows of a batch (default 4 8 16)")
    add("--median", type=int, default=95, help="tokens of a chain (default 95, as on scenes)")
    add("--spread", type=float, default=0.6, help="sigma of the log-normal lengths (default 0.6)")
    add("--hidden", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--repeats", type=int, default=3, help="interleaved timings (default 3)")
    add("--json", metavar="FILE", help="write the result here")
    return parser.parse_args(argv)


def measure(head: CotRetriever, args: argparse.Namespace, size: int) -> dict:
    """Measure all ways at one batch size -> what each counted, and ratios over our continuous batch."""
    chains = make_chains(head, args.rows, args.median, args.spread, seed=0)
    case = Case(head, chains, size)
    ways = {
        "ours": case.ours,
        "fed_together": case.fed_together,
        "batches": case.batches,
        "generate": case.with_hidden_states,
        "two_passes": case.two_passes,
    }
    facts = take_turns(head, ways, args.repeats)
    assert max(fact["difference"] for fact in facts.values()) < 1e-5, (
        "all ways must give the same embeddings"
    )
    ours = facts["ours"]
    ratio = {}
    for peer in ("batches", "generate", "two_passes"):
        ratio[peer] = {
            "row_steps": facts[peer]["row_steps"] / ours["row_steps"],
            "forward_passes": facts[peer]["forward_passes"] / ours["forward_passes"],
            "tokens": facts[peer]["tokens"] / ours["tokens"],
            "time": facts[peer]["seconds"] / ours["seconds"],
        }
    together = facts["fed_together"]["forward_passes"]
    ratio["one_by_one"] = {"forward_passes": ours["forward_passes"] / together}
    return {"size": size, "lengths": sorted(map(len, chains)), "facts": facts, "ratio": ratio}


def table(cases: Sequence[dict]) -> str:
    """Return the measurements as lines of text."""
    lines = [
        f"{'batch':>5}  {'way':12} {'passes':>7} {'row-steps':>9} {'tokens':>8} {'seconds':>8} {'held MB':>8}"
    ]
    for case in cases:
        for way, fact in case["facts"].items():
            lines.append(
                f"{case['size']:5}  {way:12} {fact['forward_passes']:7} {fact['row_steps']:9} {fact['tokens']:8} "
                f"{fact['seconds']:8.2f} {fact['retained'] / 1e6:8.2f}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure all ways at each batch size, print a table and write one JSON file."""
    args = parse(argv)
    head = make_head(args.hidden, args.layers)
    cases = [measure(head, args, size) for size in args.sizes]
    result = {
        "name": "decode",
        "setting": vars(args),
        "cases": cases,
        "ratio": cases[-1]["ratio"]["generate"],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(table(cases))
    print(json.dumps({str(case["size"]): case["ratio"] for case in cases}, indent=1))
    if args.json:
        write_text_atomic(Path(args.json), json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
