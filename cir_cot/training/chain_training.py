"""Train the chain retriever on rows of any source, as `cir-cot sft` and `cir_cot.train` do."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.feature_cache import FeatureCache, PictureSource, picture_vectors

from .dataset import CirDataset
from .distributed import training_ranks
from .progress import show_in_one_line
from .run import load_head, train_and_save
from .run_folder import run_folder
from .sft_arguments import SftArguments
from .trainer import CirTrainer
from .validation import Validation

SETTINGS = ("chain_dropout", "target_encoder")  # arguments that are the head's own settings


def require_chains(
    rows: CirDataset, args: SftArguments, cure: str = "give --chains FILE, or --lm_weight 0"
) -> None:
    """Raise InputError, with the cure, where chains are to be learned and no row has one."""
    if args.lm_weight and all(record.cot is None for record in rows.records):
        raise InputError(f"{args.root}: no record has a chain; {cure} to train without")


def train_chains(
    args: SftArguments,
    rows: CirDataset,
    validation: Validation | None,
    argv: Sequence[str],
    announce: Callable[[str], object],
) -> tuple[CotRetriever, str]:
    """Build the head, train it, and complete the run folder.

    Args:
        args: of the recipe; `check_run_folder` has passed them.
        rows: what to train on.
        validation: what to evaluate on meanwhile.
        argv: how it was called, for run.json.
        announce: called with the estimate of tokens and memory before the first step.

    Returns:
        The trained head, and what was done in one line.
    """
    # 1. Build the head.
    head = load_head(CotRetriever, args, SETTINGS)
    assert isinstance(head, CotRetriever), "load_head returns the kind that it is given"
    freeze(head, args)
    with run_folder(args):
        if head.foreign is not None and args.contrastive_weight:
            rows = encode_targets(head, rows, args)
        # 2. Create the trainer.
        trainer = CirTrainer(head, args, rows, validation)
        show_in_one_line(trainer, args.folder.name)
        # 3. Train, and save the run folder.
        done = train_and_save(trainer, argv, announce)
    return head, done


def encode_targets(head: CotRetriever, rows: CirDataset, args: SftArguments) -> CirDataset:
    """Encode every target picture once with the frozen encoder.

    Returns:
        The same rows with an embedding in place of each target picture.
    """
    assert head.foreign is not None, "the caller has a foreign encoder"
    encoder = head.foreign.to(args.device)
    names = [record.targets[0] for record in rows.records]
    folder = args.features or args.folder / "features"
    # Every process computes a share of the embeddings, and finds the others on the disk.
    ranks = training_ranks(args)
    cache = FeatureCache(folder, encoder.identity())
    images = cast(PictureSource, rows.images)
    targets = picture_vectors(cache, encoder.encode_images, images, names, ranks)
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
