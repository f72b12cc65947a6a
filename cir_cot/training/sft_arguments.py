"""Arguments of the recipe for the chain retriever; `sft` trains with them, `plan` computes what they need."""

from dataclasses import dataclass
from typing import Literal

from .arguments import HELP, QwenArguments, option


@dataclass
class SftArguments(QwenArguments):
    """Train the chain retriever: cross-entropy of the chain, and InfoNCE of the embeddings."""

    chains: list[str] | None = option(
        None, "JSONL files of chains, if the records do not hold them."
    )
    chain_dropout: float | None = option(None, "Share of rows trained without their chain" + HELP)
    train_only: Literal["all", "readout"] = option(
        "all",
        "readout: freeze the language model, so that no chain changes, and train the readout of "
        "the embedding alone.",
    )
    negatives: str | None = option(None, "JSONL file of hard negatives, from cir-cot mine.")
    negatives_per_row: int = option(1, "Hard negatives of a row in each step, drawn from its own.")
    target_encoder: str | None = option(
        None, "Frozen CLIP or SigLIP checkpoint whose embeddings of the targets are learned."
    )
    features: str | None = option(
        None, "Folder that keeps those embeddings; default: OUTPUT_DIR/features."
    )
