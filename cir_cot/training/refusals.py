"""Refuse arguments of transformers that cannot work here, before anything is loaded."""

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from cir_cot.errors import InputError

# Arguments that act on a model of transformers or on its loss -> why they cannot act here.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "the losses here have no class labels to smooth",
    "neftune_noise_alpha": "it adds noise inside models of transformers, and a retriever is none",
    "use_liger_kernel": "it patches models of transformers, and a retriever is none",
    "push_to_hub": "it would publish checkpoints as they come; publish the result with cir-cot push",
}
# Arguments whose least value transformers does not check, or only in the middle of training.
LEAST = {"learning_rate": 0, "weight_decay": 0, "dataloader_num_workers": 0, "adam_epsilon": 0}
UNLISTED = ("azure_ml", "flyte")  # trackers that transformers knows and may not list as installed
DECAYS = ("adam_beta1", "adam_beta2")


def refuse_unusable(args: TrainingArguments) -> None:
    """Raise InputError for an argument that could only fail later, or would do nothing.

    Called before transformers resolves the arguments, so that its own messages come second.
    """
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(args, name):
            raise InputError(f"{name} cannot be used: {reason}; leave it out")
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value < least:
            raise InputError(f"{name} is {value}: give at least {least}")
    for name in DECAYS:
        value = getattr(args, name)
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}: give at least 0 and less than 1")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(
            f"num_train_epochs is {args.num_train_epochs}: nothing would be trained; give more "
            "than 0, or --max_steps"
        )
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise InputError(
            "save_strategy best needs --metric_for_best_model, for example eval_full_R@1"
        )


def refuse_uninstalled(args: TrainingArguments) -> None:
    """Raise InputError for an optimizer or a tracker that is unknown, ill set, or not installed.

    Called after transformers resolved the arguments.
    """
    optimizer = OptimizerNames(args.optim).value
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        # LOMO asks for the model, which the trainer has.
        if isinstance(error, ImportError) or "lomo" not in optimizer:
            raise InputError(f"optim {optimizer}: {' '.join(str(error).split())}") from error
    installed = get_available_reporting_integrations()
    names = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in names:
        if name not in (*installed, *UNLISTED):
            found = ", ".join(installed) or "none"
            raise InputError(
                f"report_to {name}: not installed, or unknown; installed: {found}. Install it, or "
                "give --report_to none"
            )
