"""Fine-tune a Qwen-VL to write a chain of thought and to retrieve with it.

    accelerate launch train/sft.py --config train/configs/joint.yaml \
        --model Qwen/Qwen2.5-VL-7B-Instruct --root DIR

Also: python train/sft.py, torchrun --nproc_per_node 2 train/sft.py, cir-cot sft. The run folder
holds the retriever (adapter or weights, head, processor, card), run.json, metrics.json and
checkpoints. --model takes a base checkpoint or a retriever of an earlier stage.
"""

from collections.abc import Sequence

from torch import nn

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.feature_cache import FeatureCache, picture_vectors
from cir_cot.training.dataset import CirDataset, load_rows
from cir_cot.training.distributed import training_ranks
from cir_cot.training.negatives import with_negatives
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.progress import show_in_one_line
from cir_cot.training.run import load_head, train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.sft_arguments import SftArguments
from cir_cot.training.trainer import CirTrainer
from cir_cot.training.validation import load_validation

SETTINGS = ("chain_dropout", "target_encoder")  # arguments that are the head's own settings


def read_rows(args: SftArguments) -> CirDataset:
    """Load records with their chains and pictures; chains are needed unless their weight is 0."""
    rows, left_out = load_rows(args, args.chains or (), vary_captions=True)
    if args.lm_weight and all(record.cot is None for record in rows.records):
        raise InputError(
            f"{args.root}: no record has a chain; give --chains FILE, or --lm_weight 0 to train "
            "without"
        )
    if left_out and args.should_save:
        print(left_out)
    if args.negatives is None:
        return rows
    if args.target_encoder:
        raise InputError("negatives: targets of a foreign encoder take none; leave one of them out")
    return with_negatives(rows, args.negatives, args.negatives_per_row)


def encode_targets(head: CotRetriever, rows: CirDataset, args: SftArguments) -> CirDataset:
    """Encode every target picture once with the frozen encoder.

    Returns:
        The same rows with an embedding in place of each target picture.
    """
    encoder = head.foreign.to(args.device)
    names = [record.targets[0] for record in rows.records]
    folder = args.features or args.folder / "features"
    # Every process computes a share of the embeddings, and finds the others on the disk.
    ranks = training_ranks(args)
    cache = FeatureCache(folder, encoder.identity())
    targets = picture_vectors(cache, encoder.encode_images, rows.images, names, ranks)
    return CirDataset(rows.records, rows.images, rows.captions, targets, rows.shares)


def freeze(head: CotRetriever, args: SftArguments) -> None:
    """Freeze what a stage does not train.

    Without a contrastive loss that is the readout, with `train_only readout` everything else.
    """
    readout = [*head.project.parameters(), head.log_temperature]
    if args.contrastive_weight == 0:
        for parameter in readout:
            parameter.requires_grad_(False)
    if args.train_only == "readout":
        freeze_reasoner(head, readout)


def freeze_reasoner(head: CotRetriever, readout: list[nn.Parameter]) -> None:
    """Freeze all weights except the trainable ones of the readout."""
    # The embedding of the retrieval token is trained too, unless it is the output row as well:
    # that one decides when a chain ends.
    if head.backbone.adapted and not head.backbone.config.tie_word_embeddings:
        readout = [*readout, *head.backbone.plain.get_input_embeddings().parameters()]
    trained = [parameter for parameter in readout if parameter.requires_grad]
    if not trained:
        raise InputError(
            "train_only readout has nothing to train here; give --projection D from the first "
            "stage on"
        )
    head.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    # Without dropout the frozen model computes what it will compute at evaluation.
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(SftArguments, argv, "sft")
    check_run_folder(args)
    # 2. Load the data.
    rows = read_rows(args)
    validation = load_validation(args)
    # 3. Build the head.
    head = load_head(CotRetriever, args, SETTINGS)
    freeze(head, args)
    with run_folder(args):
        if head.foreign is not None and args.contrastive_weight:
            rows = encode_targets(head, rows, args)
        # 4. Create the trainer.
        trainer = CirTrainer(head, args, rows, validation)
        show_in_one_line(trainer, args.folder.name)
        # 5. Train, and save the run folder.
        done = train_and_save(trainer, argv, announce=print)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
