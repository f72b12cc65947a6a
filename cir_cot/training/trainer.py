"""One Trainer for every head: InfoNCE over the targets of all processes, plus the head's own losses.

A head's `aux` are means over rows or tokens. Losses that need all rows of a batch, such as a
router's balance, it computes in `batch_losses` from the `rows` (B, ...) that its forward pass
returns, gathered from all processes.

What is guaranteed, and how:

1. W processes compute the loss and the gradients of one process that holds all rows, whatever the
   number of rows on each (`cir_cot.training.step_losses`).
2. Negatives are gathered, with gradients, on *every* micro-batch. Columns that show one of a query's
   correct targets once more, on any process, are masked by image id.
3. A resumed run equals the uninterrupted one. The order of rows and every random choice about a row
   come from (seed, epoch); transformers saves the optimizer, the schedule and the random state. A
   crash while saving loses that save alone (`cir_cot.training.checkpoints`). A run that would order
   its rows differently is refused.
4. With `chunk_tokens`, a larger batch is processed in chunks (`cir_cot.training.gradcache`): same
   loss, same gradients, memory of one chunk. A batch that fits is one plain step.

transformers' own scaling is switched off: `model_accepts_loss_kwargs` says that the loss is already
normalised over the complete step, by `_get_num_items_in_batch`, which counts rows beside tokens.
"""

import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.utils import DistributedType
from transformers.trainer_utils import TrainOutput

from cir_cot.errors import InputError
from cir_cot.heads.base import Head, HeadOutput
from cir_cot.losses import gather_counts

from .arguments import LAST, CirArguments
from .checkpoints import (
    PREFIX,
    RUN,
    SAVING,
    check_resumable,
    check_same_run,
    commit_checkpoint,
    gathered_weights,
    latest_checkpoint,
    rotate,
)
from .chunks import (
    Batch,
    Chunk,
    collated_parts,
    pad_chunk_count,
    split_into_chunks,
)
from .dataset import TrainingDataset
from .gradcache import ChunkedLoss, cached_step
from .loading import train_loader, worker_error
from .run_folder import identity, resume_facts
from .step_losses import StepLosses, StepTotals, count_step, split_negatives
from .step_metrics import StepMetrics
from .validation import ValidatingTrainer, Validation, ValidationDataset
from .vision_cache import vision_cache


class CirTrainer(ValidatingTrainer):
    """Train a head on a dataset with `records`, indexed by (index, draw).

    Example:
        trainer = CirTrainer(head, CirArguments(output_dir="runs/first"), dataset)
        trainer.train()
        trainer.save_model()
    """

    train_dataset: TrainingDataset

    def __init__(
        self,
        model: Head,
        args: CirArguments,
        train_dataset: TrainingDataset,
        validation: Validation | None = None,
        **options: Any,
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=cast(Dataset, train_dataset),
            data_collator=model.collator(),
            eval_dataset=None if validation is None else ValidationDataset(),
            **options,
        )
        self.validation = validation
        self.choose_metric()
        self.model_accepts_loss_kwargs = True  # the loss comes normalised, see above
        self.step_metrics = StepMetrics(args.device)
        processes = self.accelerator.num_processes
        self.step_losses = StepLosses(model, args, self.step_metrics, processes)
        precision = str(self.accelerator.mixed_precision)
        self.vision = vision_cache(model, args, train_dataset.records, precision)
        self.identity: dict = {}

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of this process."""
        return train_loader(
            self.train_dataset, self.data_collator, self.args, self._train_batch_size
        )

    # One step.

    def _get_num_items_in_batch(  # type: ignore[override]  # transformers only passes it on
        self, batch_samples: list[Batch], device: torch.device
    ) -> StepTotals:
        """Count the rows and supervised tokens of an optimizer step over all processes."""
        counts = torch.tensor(count_step(batch_samples), device=device)
        totals = StepTotals(*self.accelerator.reduce(counts, "sum").tolist())
        self.step_metrics.add("supervised_tokens", totals.tokens, 1)
        return totals

    def training_step(  # type: ignore[override]  # see _get_num_items_in_batch
        self, model: nn.Module, inputs: Batch, num_items_in_batch: StepTotals
    ) -> Tensor:
        """Return the loss of a micro-batch and accumulate its gradients.

        The step is plain when the rows of every process fit into one chunk.
        """
        plain_step: Any = super().training_step
        with nullcontext() if self.vision is None else self.vision.attached():
            if not self.args.chunk_tokens:
                return plain_step(model, inputs, num_items_in_batch)
            chunks: list[Chunk] = []
            for part in collated_parts(inputs):
                chunks += split_into_chunks(part, self.args.chunk_tokens)
            # Every process runs as many chunks as the one that has most.
            count = max(gather_counts(len(chunks), self.args.device))
            if count == 1:
                return plain_step(model, chunks[0].batch, num_items_in_batch)
            return self._cached_step(model, pad_chunk_count(chunks, count), num_items_in_batch)

    def _cached_step(self, model: Any, chunks: list[Chunk], totals: StepTotals) -> Tensor:
        """Return the loss of all chunks and accumulate its gradients, by gradient caching.

        `model` is the head or its wrapper of DDP, DeepSpeed or FSDP.
        """
        model.train()
        # Gradients are exchanged once, with the last chunk. ZeRO can postpone its exchange for one
        # complete optimizer step, DDP for as long as asked. FSDP would keep unsharded gradients in
        # the meantime, so it exchanges with every chunk, which gives the same sums.
        kind = self.accelerator.distributed_type
        coalesce = kind == DistributedType.DEEPSPEED and self.args.gradient_accumulation_steps == 1
        no_sync: Any = partial(self.accelerator.no_sync, model)
        if kind == DistributedType.FSDP:
            no_sync = nullcontext
        all_rows = partial(self.step_losses.batch_losses, totals=totals)
        loss = ChunkedLoss(
            forward=partial(self._forward_head, model),
            row_losses=partial(self.step_losses.row_losses, totals=totals),
            batch_losses=all_rows if self.args.contrastive_weight else None,
        )
        backward = partial(self._backward, model, coalesce)
        with model.coalesce_grad_reduction() if coalesce else nullcontext():
            value = cached_step(chunks, loss, backward, no_sync, self.args.device)
        if coalesce:
            model.set_gradient_accumulation_boundary(is_boundary=True)
            model.step()
        return value

    def _forward_head(self, model: nn.Module, chunk: Chunk, final: bool) -> HeadOutput:
        """Run the head on a chunk; only the final pass computes the loss of the chain."""
        inputs = self._prepare_inputs(chunk.batch)
        outputs = model(
            query=inputs["query"],
            target=inputs["target"] if self.args.contrastive_weight else None,
            labels=inputs.get("labels") if final and self.args.lm_weight else None,
        )
        return split_negatives(outputs, inputs.get("negatives"))

    def _backward(self, model: Any, coalesce: bool, loss: Tensor, last: bool) -> None:
        """Run the backward pass of one chunk; only the last one ends the micro-batch."""
        if coalesce:
            model.backward(loss, scale_wrt_gas=False)
            return
        state = self.accelerator.gradient_state
        ends_step = state.sync_gradients
        state._set_sync_gradients(ends_step and last)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **{"scale_wrt_gas": False} if deepspeed else {})
        state._set_sync_gradients(ends_step)

    def compute_loss(  # type: ignore[override]  # see _get_num_items_in_batch
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: StepTotals | None = None,
    ) -> Tensor | tuple[Tensor, HeadOutput]:
        """Return this process's share of the step's loss, a scalar."""
        totals = num_items_in_batch
        if totals is None:
            totals = self._get_num_items_in_batch([inputs], self.args.device)
        chunk = Chunk(inputs)
        outputs = self._forward_head(model, chunk, True)
        loss = torch.as_tensor(self.step_losses.row_losses(outputs, chunk, totals))
        if self.args.contrastive_weight:
            ids = inputs["ids"].to(self.args.device)
            loss = loss + self.step_losses.batch_losses(outputs, ids, totals)
        return (loss, outputs) if return_outputs else loss

    # The run.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each loss, how the batch separates, speed and memory since the last log."""
        if "loss" in logs:
            logs |= self.step_metrics.reduce_and_reset(self.accelerator)
        super().log(logs, start_time)

    def train(  # type: ignore[override]  # the other options of transformers go through `options`
        self, resume_from_checkpoint: str | bool | None = None, **options: Any
    ) -> TrainOutput:
        """Train; resume from a checkpoint folder, or from "last" (True), the newest complete one.

        Raises:
            InputError: the checkpoint is damaged or of another run, or a row cannot be loaded.
        """
        self.identity = identity(self.args, self.train_dataset.records)
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        if checkpoint:
            check_resumable(Path(checkpoint), self._resume_facts())
            if self.is_fsdp_enabled:
                self.model.load_weights(checkpoint)
        if self.args.should_save:  # what a run left that ended while it saved
            shutil.rmtree(self.args.folder / SAVING, ignore_errors=True)
        self.step_metrics.reset()
        try:
            result = super().train(resume_from_checkpoint=checkpoint, **options)
        except InputError as error:
            raise worker_error(error) from error
        self._flush_features()
        result.metrics.update(self.best_facts())
        return result

    def _find_checkpoint(self, resume_from: str | bool | None) -> str | None:
        """Return the checkpoint to resume from; that of "last" must be of this same run."""
        if resume_from not in (LAST, True):
            return cast(str | None, resume_from or None)
        checkpoint = latest_checkpoint(self.args.folder)
        if checkpoint:
            check_same_run(Path(checkpoint), self.identity)
        return checkpoint

    def _flush_features(self) -> None:
        """Write the features of the vision tower that `vision_cache` has not written yet."""
        if self.args.vision_cache:
            assert self.vision is not None, "vision_cache() gives one or refuses"
            self.vision.flush()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        head = self.accelerator.unwrap_model(self.model)
        if self.args.should_save:
            with gathered_weights(head, state_dict if self.args.shards_parameters else None):
                head.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.is_fsdp_enabled:  # with FSDP `train` loads the weights before they are sharded
            self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.args.folder / SAVING)  # where _save_checkpoint writes

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint aside, commit it once it is on the disk, and delete older ones last."""
        run = self.args.folder
        # transformers must not delete any: `rotate` does that.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self._flush_features()
        # The first process commits when all have written their part.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            facts = self._resume_facts() | {RUN: self.identity}
            name = f"{PREFIX}-{self.state.global_step}"
            commit_checkpoint(run, name, None if self.args.save_only_model else facts)
            rotate(run, limit, self.state.global_step, self.state.best_global_step or 0)
        self.accelerator.wait_for_everyone()

    def _resume_facts(self) -> dict:
        """Return what complete.json keeps: what decides the order of rows and their features."""
        features = None if self.vision is None else self.vision.identity or None  # {}: no folder
        return resume_facts(self.args, self.train_dataset, features)
