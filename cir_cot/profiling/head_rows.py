"""List the configurations that `benchmarks/heads.py` compares: one row each, made of one or several training runs."""

from dataclasses import dataclass

from cir_cot.heads.combiners import MoeCombiner, count_parameters, hidden_for

CLIP = {"dim": 64, "hidden": 128, "layers": 4}  # sizes of the tiny CLIP
EXPERTS = 4
TOP = 2


@dataclass(frozen=True)
class Stage:
    """Describe a training run.

    `options` holds placeholders: {out} for the benchmark's folder, {configs} for that of the shipped configurations,
    {sum} for the run folder of the stage "sum".
    """

    command: str  # of cir-cot
    options: str
    start: str  # a stage, or a base: qwen or clip
    part: float = 1.0  # of the row's time


def qwen(config: str) -> str:
    """Return the options of a run from a shipped configuration of the quickstart's size."""
    return f"--config {{configs}}/{config}.yaml"


def pool(prompts: int, length: int, top: int = 3) -> Stage:
    """Return the stage of a prompt pool with M prompts of L tokens."""
    options = f"{qwen('prompt_pool')} --pool {prompts} --length {length} --top {top}"
    return Stage("prompt-pool", options, "qwen")


def combiner(options: str) -> Stage:
    """Return the stage of a Combiner, on the features of a stage 1 with half of the budget."""
    # These values are this benchmark's: CLIP4Cir's rates and batch of 4,096 are for a pretrained CLIP and 300 epochs.
    common = "--per_device_train_batch_size 512 --learning_rate 1e-3 --temperature 0.03 --features {out}/features"
    return Stage("moe", f"{common} {options}", "half", 0.5)


def dense_widths(dim: int) -> dict[str, int]:
    """Return the widths H of dense Combiners as large as the mixture of experts.

    Under "parameters" it has as many parameters in all, under "compute" as many as are active for a row.
    """
    projection = 4 * dim
    hidden = 8 * dim
    total = count_parameters(
        lambda: MoeCombiner(dim, projection, hidden, EXPERTS, TOP, False, "learned")
    )
    # Weights and bias of the experts that a row does not use.
    idle = (EXPERTS - TOP) * (2 * projection + 1) * hidden
    return {
        "parameters": hidden_for(total, dim, projection),
        "compute": hidden_for(total - idle, dim, projection),
    }


WIDTHS = dense_widths(CLIP["dim"])
SUM = "--per_device_train_batch_size 128 --learning_rate 1e-3 --temperature 0.03"
STAGES = {
    "sum": Stage("clip", SUM, "clip"),
    "half": Stage("clip", SUM, "clip", 0.5),
    "dense": combiner("--combiner dense"),
    "dense_parameters": combiner(f"--combiner dense --hidden {WIDTHS['parameters']}"),
    "dense_compute": combiner(f"--combiner dense --hidden {WIDTHS['compute']}"),
    "faithful": combiner("--combiner faithful"),
    "improved": combiner("--combiner improved"),
    "random": combiner("--combiner improved --routing random"),
    "one_pass": Stage("prompt-pool", f"{qwen('prompt_pool')} --pool 0 --connector 0", "qwen"),
    "pool": pool(10, 2),
    **{f"pool_m{m}": pool(m, 2) for m in (5, 20)},
    **{f"pool_l{length}": pool(10, length) for length in (1, 5)},
    "chains": Stage("sft", qwen("quickstart_stage1"), "qwen", 0.4),
    "chain": Stage("sft", qwen("quickstart"), "chains", 0.6),
    "chain_clip": Stage("sft", f"{qwen('quickstart')} --target_encoder {{sum}}", "chains", 0.6),
}
# Name of a row: the stage whose retriever is measured, and its reading.
ROWS = {
    "image only": ("sum", "image_only"),
    "text only": ("sum", "text_only"),
    "sum (stage 1)": ("sum", None),
    "dense Combiner": ("dense", None),
    "dense, equal parameters": ("dense_parameters", None),
    "dense, equal active compute": ("dense_compute", None),
    "MoE faithful": ("faithful", None),
    "MoE improved": ("improved", None),
    "MoE, random routing": ("random", None),
    "Qwen, one pass, no pool": ("one_pass", None),
    "prompt pool, M 10, L 2": ("pool", None),
    "prompt pool, M 5, L 2": ("pool_m5", None),
    "prompt pool, M 20, L 2": ("pool_m20", None),
    "prompt pool, M 10, L 1": ("pool_l1", None),
    "prompt pool, M 10, L 5": ("pool_l5", None),
    "chain, Fast": ("chain", "fast"),
    "chain, Full": ("chain", "full"),
    "chain, Full, frozen CLIP space": ("chain_clip", "full"),
}
