"""Train a Combiner on frozen CLIP features, dense or a mixture of experts (CLIP4Cir and CLIP4Cir-MoE, stage 2).

    accelerate launch train/moe.py --config train/configs/moe_fashioniq.yaml --model runs/clip --root DIR

Also: python train/moe.py, cir-cot moe. --model is the run folder of `cir-cot clip`, or any CLIP or SigLIP checkpoint.
Every picture and text is encoded once, in --features; after that neither CLIP nor a picture is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cir_cot.cli import run
from cir_cot.heads.moe import COMBINERS, ROUTINGS, MoeRetriever
from cir_cot.models.clip import PAD_RATIO, load_clip
from cir_cot.models.feature_cache import FeatureCache, picture_vectors, text_vectors
from cir_cot.training.arguments import ClipArguments, option, parse_arguments
from cir_cot.training.dataset import CirDataset, load_rows, texts_of, used
from cir_cot.training.run import train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer

HEAD = ("combiner", "experts", "top_k", "routing", "projection", "hidden", "temperature")


@dataclass
class MoeArguments(ClipArguments):
    """Train a Combiner on frozen CLIP features (see the module's docstring)."""

    combiner: Literal[COMBINERS] = option(
        "improved", "dense: CLIP4Cir's. faithful: CLIP4Cir-MoE's. improved: ours."
    )
    experts: int = option(4, "Experts.")  # CLIP4Cir-MoE, as is top_k
    top_k: int = option(2, "Experts that a row passes.")
    routing: Literal[ROUTINGS] = option(
        "learned", "random: a control, what experts are worth without a choice."
    )
    projection: int | None = option(
        None, "Width P of the projections; default: 4 times CLIP's."
    )  # CLIP4Cir
    hidden: int | None = option(
        None, "Width H of the hidden layer; default: 8 times CLIP's."
    )  # CLIP4Cir
    balance_weight: float | None = option(
        None, "Weight of the balance of loads; default: 0.01 with improved, else 0."
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
        """Weights of the router's losses; ours: 0.01 is that of Switch (arXiv 2101.03961), 0.001 ST-MoE's."""
        improved = self.combiner == "improved"
        given = {"balance": self.balance_weight, "router_z": self.z_weight}
        default = {"balance": 1e-2 * improved, "router_z": 1e-3 * improved}
        return {name: default[name] if value is None else value for name, value in given.items()}


def encode(head: MoeRetriever, rows: CirDataset, args: MoeArguments) -> CirDataset:
    """Encode every picture and text once -> the same rows with vectors for pictures; the head knows the texts'."""
    encoder = head.backbone.to(args.device)
    with args.main_process_first(
        local=False, desc="CLIP features"
    ):  # the others find them on the disk
        cache = FeatureCache(
            args.features or Path(args.output_dir) / "features", encoder.identity()
        )
        pictures = picture_vectors(cache, encoder.encode_images, rows.images, used(rows.records))
        head.texts = text_vectors(cache, encoder.encode_texts, texts_of(rows))
    if args.should_save:
        print(
            f"{cache.computed} of {len(pictures) + len(head.texts)} CLIP features computed, the others were cached"
        )
    return CirDataset(rows.records, pictures, rows.captions)


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    args = parse_arguments(MoeArguments, argv)
    check_run_folder(args)
    rows, left_out = load_rows(args, vary_captions=True)
    if left_out and args.should_save:
        print(left_out)
    encoder = load_clip(args.model, args.pad_ratio, fallback=PAD_RATIO)
    torch.manual_seed(args.seed)  # before the head: it starts at random
    head = MoeRetriever(encoder, args.model, **{name: getattr(args, name) for name in HEAD})
    with run_folder(args):
        done = train_and_save(CirTrainer(head, args, encode(head, rows, args)), argv)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
