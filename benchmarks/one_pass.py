"""Measure one-pass chain decoding beside transformers' generate with all hidden states, and beside two passes.

All three modes use the same weights and queries. The model is untrained: each row's tokens are prescribed, of
log-normal lengths, and all modes generate exactly these. Counted are row-steps (rows x steps of the language model
while decoding), token FLOPs (2 x parameters of the language model x tokens, with prompts and visual tokens), the bytes
of hidden states that are held when decoding ends, and the time, the modes in turns.
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
import transformers
from PIL import Image

from cir_cot.cli import run
from cir_cot.files import write_text_atomic
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.decoding import ChainRow, Grammar, decode
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot

WORDS = ("red", "blue", "shirt", "dress", "stripes", "sleeves", "longer", "plain", "collar", "soft")


class Told(Grammar):
    """Choose the prescribed tokens of each row, whatever the model's logits are, and then the retrieval token."""

    def choose(self, row: ChainRow, candidates: Sequence[int]) -> int:
        """Take and return the next prescribed token."""
        if not row.forced:
            return self.encoder.ret_id
        row.ids.append(row.forced.pop(0))
        return row.ids[-1]


class Prescribed(transformers.LogitsProcessor):
    """Do the same in generate: each row's next token is the only possible one; the retrieval token ends a row."""

    def __init__(self, rows: list[list[int]], prompt: int):
        self.rows = rows
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) that leave one token."""
        step = input_ids.shape[1] - self.prompt
        wanted = torch.tensor([row[min(step, len(row) - 1)] for row in self.rows])
        return torch.full_like(scores, -torch.inf).scatter(1, wanted[:, None], 0.0)


def make_head(hidden: int, layers: int) -> CotRetriever:
    """Return a tiny chain head."""
    tokenizer = tiny_tokenizer([cot_to_text(Cot(*[" ".join(WORDS)] * 3))], 400)
    sizes = {"hidden": hidden, "layers": layers, "intermediate": 4 * hidden}
    base = tiny_model("qwen2_5_vl", tokenizer, **sizes), tiny_processor("qwen2_5_vl", tokenizer)
    return CotRetriever(load_backbone(base), "tiny").eval()


def make_chains(
    head: CotRetriever, count: int, median: int, spread: float, seed: int
) -> list[list[int]]:
    """Return tokens of `count` chains with log-normal lengths: `median` tokens, `spread` the sigma of the logarithm."""
    draw = random.Random(seed)
    chains = []
    for _ in range(count):
        length = max(12, round(draw.lognormvariate(0, spread) * median))
        words = [
            " ".join(draw.choices(WORDS, k=max(1, length // 4 * share))) for share in (1, 2, 1)
        ]
        chains.append(head.encoder().plain_ids([cot_to_text(Cot(*words))])[0])
    return chains


@contextmanager
def counted(head: CotRetriever, seen: dict) -> Iterator[None]:
    """Count what the language model is given: tokens, and rows x steps of single tokens."""

    def count(_, args, kwargs):
        rows, tokens = (
            kwargs["input_ids"].shape
            if kwargs.get("input_ids") is not None
            else kwargs["inputs_embeds"].shape[:2]
        )
        seen["tokens"] = seen.get("tokens", 0) + rows * tokens
        seen["row_steps"] = seen.get("row_steps", 0) + (rows if tokens == 1 else 0)

    handle = head.backbone.plain.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def one_pass(head: CotRetriever, inputs: dict, chains: list[list[int]], seen: dict) -> torch.Tensor:
    """Return vectors (B, D) read from the decoding."""
    grammar = Told(head.encoder("left"), PARTS, 384)
    rows = [grammar.row([]) for _ in chains]
    for row, chain in zip(rows, chains, strict=True):
        row.forced = list(chain)
    *_, last = decode(head.backbone, grammar, inputs, rows, head._unit)
    seen["retained"] = last.vectors.nbytes
    return last.vectors


def generate(head: CotRetriever, inputs: dict, rows: list[list[int]], hidden: bool) -> object:
    """Return what transformers' generate gives for prescribed rows; the last token of a row ends it."""
    ends = {row[-1] for row in rows}
    return head.backbone.plain.generate(
        **inputs,
        max_new_tokens=max(map(len, rows)),
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=head.backbone.processor.tokenizer.pad_token_id,
        logits_processor=[Prescribed(rows, inputs["input_ids"].shape[1])],
        output_hidden_states=hidden,
        return_dict_in_generate=True,
    )


def with_hidden_states(
    head: CotRetriever, inputs: dict, chains: list[list[int]], seen: dict
) -> torch.Tensor:
    """Return embeddings (B, D) from all hidden states.

    generate does not encode the token that ends a row, so that one more token follows the retrieval token.
    """
    ends = [head.backbone.ret_id, head.backbone.processor.tokenizer.eos_token_id]
    states = generate(
        head, inputs, [[*chain, *ends] for chain in chains], hidden=True
    ).hidden_states
    seen["retained"] = sum(layer.nbytes for step in states for layer in step)
    picked = [states[len(chain) + 1][-1][row, -1] for row, chain in enumerate(chains)]
    return head._unit(torch.stack(picked))


def two_passes(
    head: CotRetriever, inputs: dict, chains: list[list[int]], seen: dict, ask: Callable
) -> torch.Tensor:
    """Return embeddings (B, D) of a second pass over the generated text."""
    ret = head.backbone.ret_id
    prompt = inputs["input_ids"].shape[1]
    answer = generate(head, inputs, [[*chain, ret] for chain in chains], hidden=False)
    rows = [row[prompt:].tolist() for row in answer.sequences]
    seen["retained"] = 0
    return head.read(ask([[*row[: row.index(ret)], ret] for row in rows]))


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
    add("--rows", type=int, default=16, help="queries in a batch (default 16)")
    add("--median", type=int, default=95, help="tokens of a chain (default 95, as on scenes)")
    add("--spread", type=float, default=0.6, help="sigma of the log-normal lengths (default 0.6)")
    add("--hidden", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--repeats", type=int, default=3, help="interleaved timings (default 3)")
    add("--json", metavar="FILE", help="write the result here")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure the three modes in turns and write one JSON file."""
    args = parse(argv)
    head = make_head(args.hidden, args.layers)
    chains = make_chains(head, args.rows, args.median, args.spread, seed=0)
    draw = random.Random(1)
    images = [Image.new("RGB", (84, 84), tuple(draw.choices(range(256), k=3))) for _ in chains]
    texts = [" ".join(draw.choices(WORDS, k=4)) for _ in chains]
    inputs = head.encoder("left").query(images, texts, [[]] * len(chains))[0]
    ways = {
        "ours": lambda seen: one_pass(head, inputs, chains, seen),
        "generate": lambda seen: with_hidden_states(head, inputs, chains, seen),
        "two_passes": lambda seen: two_passes(
            head,
            inputs,
            chains,
            seen,
            lambda answers: head.encoder().query(images, texts, answers)[0],
        ),
    }
    facts = take_turns(head, ways, args.repeats)
    result = {
        "name": "one_pass",
        "setting": vars(args) | {"lengths": sorted(map(len, chains))},
        "ours": facts["ours"],
        "peer": {name: facts[name] for name in ("generate", "two_passes")},
        "ratio": {
            "row_steps": facts["generate"]["row_steps"] / facts["ours"]["row_steps"],
            "retained_bytes": facts["generate"]["retained"] / facts["ours"]["retained"],
            "token_flops_vs_two_pass": facts["two_passes"]["token_flops"]
            / facts["ours"]["token_flops"],
            "time": facts["generate"]["seconds"] / facts["ours"]["seconds"],
            "time_vs_two_pass": facts["two_passes"]["seconds"] / facts["ours"]["seconds"],
        },
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps({key: result[key] for key in ("ours", "peer", "ratio")}, indent=1))
    if args.json:
        write_text_atomic(Path(args.json), json.dumps(result, indent=1) + "\n")
    assert max(facts[name]["difference"] for name in ways) < 1e-5, (
        "the three modes must give the same embeddings"
    )
    return 0


if __name__ == "__main__":
    run(main)
