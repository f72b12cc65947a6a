"""Show the progress of a training in one line: stage, steps, time left, loss and in-batch recall."""

from typing import Any

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

# Values of a log that the line shows, under these names.
SHOWN = {"loss": "loss", "in_batch_r1": "in-batch R@1"}


class OneLineProgress(ProgressCallback):
    """Show logs in the progress bar, which has the steps and the time left, instead of below it.

    Args:
        stage: what is trained, the first word of the line.
    """

    def __init__(self, stage: str):
        super().__init__()
        self.stage = stage

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.stage)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the newest values into the bar; the history of all values is in metrics.json."""
        values = {name: logs[key] for key, name in SHOWN.items() if logs and key in logs}
        if self.training_bar is not None and values:
            self.training_bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})


def show_in_one_line(trainer: Trainer, stage: str) -> None:
    """Show a training's progress by OneLineProgress, where it shows any."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(OneLineProgress(stage))
