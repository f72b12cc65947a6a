"""Before the run: how many tokens the rows have, what a step will hold in memory, and which chunk size fits.

Tokens are counted on a sample of the very rows, through the very collator. What a token costs is measured, not
modelled: one pass of the very head over a few rows, counting the bytes that autograd keeps for the backward pass.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cir_cot.devices import free_bytes
from cir_cot.models.resizing import TOKEN, is_shrunk

from .gradcache import SIDES, row_tokens, select

SAMPLE = 64  # rows: quantiles of token counts within a few per cent, in seconds
MEASURED = 2  # rows of the measured pass
SHARE = 0.8  # of the free memory that a chunk may take; the rest is for the backward pass's own and for fragments
ROUND = 256


def token_counts(batch: Mapping) -> dict[str, list[int]]:
    """Tokens of each row: read on the query's and the target's side, and visual ones on both."""
    counts = {side: row_tokens(batch[side]) for side in SIDES}
    kinds = [
        batch[side]["mm_token_type_ids"].sum(dim=1)
        for side in SIDES
        if "mm_token_type_ids" in batch[side]
    ]
    return counts | {"visual": sum(kinds).tolist() if kinds else [0] * len(counts["query"])}


def spread(counts: Sequence[int]) -> dict[str, float]:
    """Least, median, 95 % and most of some counts, and their mean."""
    values = torch.tensor(counts, dtype=torch.float)
    names = {"least": 0.0, "median": 0.5, "p95": 0.95, "most": 1.0}
    found = {name: values.quantile(at).item() for name, at in names.items()}
    return found | {"mean": round(values.mean().item(), 1)}


def histogram(counts: Sequence[int], bins: int = 8) -> list[tuple[int, int]]:
    """Pairs (largest count of the bin, rows) over `bins` bins of equal width."""
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // bins))
    filled = [0] * bins
    for count in counts:
        filled[(count - low) // width] += 1
    return [(low + width * (at + 1) - 1, rows) for at, rows in enumerate(filled) if rows]


def standing_bytes(head: nn.Module) -> tuple[int, int]:
    """Bytes of all weights, and of gradients and AdamW's two moments of those that train."""
    weights = sum(value.nbytes for value in (*head.parameters(), *head.buffers()))
    return weights, sum(3 * value.nbytes for value in head.parameters() if value.requires_grad)


def bytes_per_token(
    head: nn.Module, batch: Mapping, device: torch.device, autocast: torch.dtype | None
) -> int:
    """What a forward pass in train mode keeps for the backward pass, for each token of the batch, padding included."""
    inputs = {
        side: {name: value.to(device) for name, value in batch[side].items()} for side in SIDES
    }
    labels = batch["labels"].to(device) if "labels" in batch else None
    known = {value.untyped_storage().data_ptr() for value in (*head.parameters(), *head.buffers())}
    known |= {
        value.untyped_storage().data_ptr() for side in SIDES for value in inputs[side].values()
    }
    training = head.training
    head.train()
    with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        kept = kept_bytes(
            lambda: head(query=inputs["query"], target=inputs["target"], labels=labels), known
        )
    head.train(training)
    rows = len(batch["ids"])
    return kept // sum(rows * max(row_tokens(batch[side])) for side in SIDES)


def estimate(
    head: nn.Module,
    dataset,
    collator,
    args,
    side: int = TOKEN,
    max_pixels: int | None = None,
    free: int | None = None,
) -> dict:
    """Tokens and memory of a run with `args` (CirArguments), from a sample of `dataset` -> facts, see `describe`.

    `side` is that of a visual token in pixels, `max_pixels` the area that pictures are made smaller to, `free` what a
    process has, default: what is free.
    Bytes are those of one process; ZeRO's and FSDP's savings are not counted.
    """
    step = max(1, len(dataset) // SAMPLE)
    rows = [dataset[index, 0] for index in range(0, len(dataset), step)][:SAMPLE]
    batch = collator(rows)
    counts = token_counts(batch)
    both = [query + target for query, target in zip(counts["query"], counts["target"], strict=True)]
    sides = [side for row in rows for side in (row.reference, row.target)]
    pictures = [
        side for side in sides if not torch.is_tensor(side)
    ]  # the others are features already
    large = (
        sum(is_shrunk(one.height, one.width, side, max_pixels) for one in pictures)
        if max_pixels
        else 0
    )
    longest = sorted(range(len(both)), key=both.__getitem__)[-MEASURED:]
    precision = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    each = bytes_per_token(head, select(batch, torch.tensor(longest)), args.device, precision)
    weights, training = standing_bytes(head)
    step_tokens = args.per_device_train_batch_size * (max(counts["query"]) + max(counts["target"]))
    free = free_bytes(args.device) if free is None else free
    room = max(0, free - training)
    proposed = max(
        int(SHARE * room / max(each, 1)) // ROUND * ROUND, -(-max(both) // ROUND) * ROUND
    )
    chunk = min(step_tokens, args.chunk_tokens or step_tokens)
    return {
        "rows": len(dataset),
        "sampled": len(rows),
        "tokens": {name: spread(values) for name, values in counts.items()},
        "histogram": histogram(both),
        "pictures": len(pictures),
        "pictures_above_max_pixels": large,
        "bytes": {
            "weights": weights,
            "gradients_and_optimizer": training,
            "per_token": each,
            "step": each * chunk,
            "step_without_chunks": each * step_tokens,
            "free": free,
        },
        "chunk_tokens": args.chunk_tokens,
        "proposed_chunk_tokens": proposed,
        "fits": each * chunk <= room,
    }


def describe(facts: Mapping) -> str:
    """The estimate in a few lines."""
    tokens, size = facts["tokens"], {name: _mib(value) for name, value in facts["bytes"].items()}
    most = max(rows for _, rows in facts["histogram"])
    lines = [
        f"{facts['rows']} rows, of which {facts['sampled']} sampled: tokens of query {_words(tokens['query'])}, of "
        f"target {_words(tokens['target'])}; visual ones of both {_words(tokens['visual'])}",
        *(
            f"  up to {upper:>6} tokens  {'#' * -(-40 * rows // most)} {rows}"
            for upper, rows in facts["histogram"]
        ),
        f"pictures above max_pixels, made smaller: {facts['pictures_above_max_pixels']} of {facts['pictures']}",
        f"memory of a process: weights {size['weights']}, gradients and optimizer {size['gradients_and_optimizer']}, "
        f"activations of a step {size['step']} (all rows at once {size['step_without_chunks']}); free {size['free']}",
    ]
    if not facts["fits"]:
        lines.append(
            f"this will not fit: set chunk_tokens to at most {facts['proposed_chunk_tokens']}"
        )
    return "\n".join(lines)


def _words(values: Mapping[str, float]) -> str:
    return f"{values['least']:.0f} .. {values['most']:.0f} (mean {values['mean']:.0f})"


def _mib(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"


def kept_bytes(forward: Callable[[], object], known: set[int]) -> int:
    """Bytes that a forward pass keeps for its backward pass, without storages (data pointers) in `known`: weights."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()
    del out
    return sum(sizes.values())
