"""Train a Combiner on frozen CLIP features, dense or a mixture of experts (CLIP4Cir-MoE, stage 2).

    accelerate launch train/moe.py --config train/configs/moe_fashioniq.yaml --model runs/clip \
        --root DIR

Also: python train/moe.py, cir-cot moe. --model is the run folder of `cir-cot clip`, or any CLIP or
SigLIP checkpoint. Every picture and text is encoded once, into --features; training then reads
neither CLIP nor pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cir_cot.cli import run
from cir_cot.heads.moe import COMBINERS, ROUTINGS, MoeRetriever
from cir_cot.models.clip import PAD_RATIO, load_clip
from cir_cot.models.feature_cache import FeatureCache, picture_vectors, text_vectors
from cir_cot.training.arguments import ClipArguments, option
from cir_cot.training.dataset import CirDataset, load_rows, texts_of, used
from cir_cot.training.distributed import training_ranks
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.run import train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer
from cir_cot.training.validation import load_validation

# Arguments that are the head's own settings.
SETTINGS = ("combiner", "experts", "top_k", "routing", "projection", "hidden", "temperature")


@dataclass
class MoeArguments(ClipArguments):
    """Train a Combiner on frozen CLIP features (CLIP4Cir and CLIP4Cir-MoE, stage 2)."""

    combiner: Literal[COMBINERS] = option(
        "improved", "dense: CLIP4Cir's. faithful: CLIP4Cir-MoE's. improved: ours."
    )
    experts: int = option(4, "Number of experts.")  # CLIP4Cir-MoE, as is top_k
    top_k: int = option(2, "Experts chosen for each row.")
    routing: Literal[ROUTINGS] = option(
        "learned", "random: a control that shows what experts add without a learned choice."
    )
    # Both widths: CLIP4Cir.
    projection: int | None = option(
        None, "Width P of the projections; default: 4 times that of CLIP."
    )
    hidden: int | None = option(None, "Width H of the hidden layer; default: 8 times that of CLIP.")
    balance_weight: float | None = option(
        None, "Weight of the loss that balances experts; default: 0.01 with improved, else 0."
    )
    z_weight: float | None = option(
        None, "Weight of the router's z loss; default: 0.001 with improved, else 0."
    )
    features: str | None = option(
        None, "Folder that keeps the features for later runs; default: OUTPUT_DIR/features."
    )
    learning_rate: float = option(2e-5, "Peak learning rate.")
    weight_decay: float = option(0.0, "Weight decay of AdamW; 0 makes it Adam.")
    per_device_train_batch_size: int = option(4096, "Rows of a step and process.")
    num_train_epochs: float = option(300.0, "Passes over the data.")

    def aux_weights(self) -> dict[str, float]:
        """Return the weights of the router's losses.

        Defaults of the improved Combiner: 0.01 as in Switch (arXiv 2101.03961), 0.001 as in ST-MoE.
        """
        improved = self.combiner == "improved"
        balance = 1e-2 * improved if self.balance_weight is None else self.balance_weight
        router_z = 1e-3 * improved if self.z_weight is None else self.z_weight
        return {"balance": balance, "router_z": router_z}


def encode(head: MoeRetriever, rows: CirDataset, args: MoeArguments) -> CirDataset:
    """Encode every picture and text once, and give the head the embeddings of the texts.

    Returns:
        The same rows with embeddings in place of pictures.
    """
    encoder = head.backbone.to(args.device)
    folder = args.features or args.folder / "features"
    # Every process computes a share of the features, and finds the others on the disk.
    ranks = training_ranks(args)
    cache = FeatureCache(folder, encoder.identity())
    names = used(rows.records)
    pictures = picture_vectors(cache, encoder.encode_images, rows.images, names, ranks)
    head.texts = text_vectors(cache, encoder.encode_texts, texts_of(rows), ranks)
    if args.should_save:
        total = len(pictures) + len(head.texts)
        of_all = "" if ranks.count == 1 else " by this process"
        print(f"{cache.computed} of {total} CLIP features computed{of_all}, the others were cached")
    return CirDataset(rows.records, pictures, rows.captions, shares=rows.shares)


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(MoeArguments, argv, "moe")
    check_run_folder(args)
    # 2. Load the data.
    rows, left_out = load_rows(args, vary_captions=True)
    validation = load_validation(args)
    if left_out and args.should_save:
        print(left_out)
    # 3. Build the head; its weights start at random.
    encoder = load_clip(args.model, args.pad_ratio, fallback=PAD_RATIO)
    torch.manual_seed(args.seed)
    settings = {name: getattr(args, name) for name in SETTINGS}
    head = MoeRetriever(encoder, args.model, **settings)
    with run_folder(args):
        # 4. Create the trainer, on features in place of pictures.
        trainer = CirTrainer(head, args, encode(head, rows, args), validation)
        # 5. Train, and save the run folder.
        done = train_and_save(trainer, argv)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
