"""One Trainer for every head: InfoNCE over the targets of all processes, plus the head's weighted auxiliary losses.

What is guaranteed, and how:

1. W processes compute the loss and the gradients of one process that holds all rows, whatever the number of rows on
   each: DDP averages gradients over the processes, so every part of a process's loss is scaled such that this average
   is the whole. With R rows and T supervised tokens in an optimizer step, a micro-batch of b rows and t tokens weighs
   its contrastive and auxiliary means with W * b / R and its language-model mean with W * t / T. Summed over ranks and
   gradient accumulation (divided by W in DDP) these are means over all R rows and all T tokens.
2. Negatives are gathered, with gradients, on *every* micro-batch. Columns that show a query's own target image once
   more, whoever holds them, are masked by image id.
3. A resumed run equals the uninterrupted one. The order of rows and every choice about a row come from (seed, epoch);
   transformers saves the optimizer, the schedule and the random state. A checkpoint counts only once `complete.json`
   is in it, written after everything else reached the disk; a run that would order its rows differently is refused.

transformers' own scaling is switched off: `model_accepts_loss_kwargs` says that the loss comes normalised over the
whole step, by `_get_num_items_in_batch`, which counts rows beside tokens.
"""

import json
import logging
import os
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import _torchvision  # noqa: F401  # isort: skip
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .losses import batch_statistics, gather_counts, gather_with_grad, info_nce
from .recipe import LAST, CirArguments
from .records import InputError, write_text_atomic
from .sampler import RowSampler, ShardedBatches

COMPLETE = "complete.json"
ORDER = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "group_by", "group_size")

logger = logging.getLogger(__name__)


class CirTrainer(Trainer):
    """Trains a head (see architecture: its training contract) on a dataset with `records`, indexed by (index, draw).

    The head saves and loads its own weights: `save(folder)`, `load_weights(folder)`.
    """

    args: CirArguments

    def __init__(self, model: nn.Module, args: CirArguments, train_dataset, **options):
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=model.collator(), **options)
        self.model_accepts_loss_kwargs = True
        self.meter = Meter(args.device)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process; already sharded, so accelerate only forwards the epoch to the sampler."""
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        group_size = args.group_size or self._train_batch_size * args.world_size
        sampler = RowSampler(self.train_dataset.records, seed, args.group_by, group_size)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=ShardedBatches(sampler, self._train_batch_size, args.process_index, args.world_size),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> tuple[int, int]:
        """Rows and supervised tokens of an optimizer step, over its micro-batches and all processes."""
        rows = sum(len(batch["ids"]) for batch in batch_samples)
        tokens = sum(supervised_tokens(batch) for batch in batch_samples)
        rows, tokens = self.accelerator.reduce(torch.tensor([rows, tokens], device=device), "sum").tolist()
        self.meter.add("supervised_tokens", tokens, 1)
        return rows, tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: tuple[int, int] | None = None,
    ) -> Tensor | tuple[Tensor, dict]:
        """This process's share of the step's loss -> scalar; see the module's docstring for its scale."""
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        args, (all_rows, all_tokens) = self.args, num_items_in_batch
        rows, tokens, world = len(inputs["ids"]), supervised_tokens(inputs), self.accelerator.num_processes
        outputs = model(
            query=inputs["query"],
            target=inputs["target"] if args.contrastive_weight else None,
            labels=inputs.get("labels") if args.lm_weight else None,
        )
        loss, weights = 0.0, args.aux_weights()
        if unknown := sorted(outputs["aux"].keys() - weights.keys()):
            raise ValueError(
                f"the head returns aux {unknown[0]!r}, which {type(args).__name__}.aux_weights does not weigh"
            )
        for name, value in outputs["aux"].items():
            count, total = (tokens, all_tokens) if name == "lm" else (rows, all_rows)
            loss = loss + weights[name] * value * (world * count / max(total, 1))
            self.meter.add(f"{name}_loss", value, count)
        if args.contrastive_weight:
            contrastive = self._contrastive(outputs, inputs["ids"])
            loss = loss + args.contrastive_weight * contrastive * (world * rows / all_rows)
            self.meter.add("contrastive_loss", contrastive, rows)
            self.meter.add("temperature", outputs["temperature"], rows)
        for name, value in outputs.get("stats", {}).items():
            self.meter.add(name, value, rows)
        self.meter.count(inputs["query"], inputs["target"] if args.contrastive_weight else None)
        return (loss, outputs) if return_outputs else loss

    def _contrastive(self, outputs: dict, ids: Tensor) -> Tensor:
        """InfoNCE of this process's queries against every process's targets of this micro-batch -> scalar."""
        counts = gather_counts(len(ids), ids.device)
        target, all_ids = gather_with_grad(outputs["target"], counts), gather_with_grad(ids, counts)  # (N, D), (N,)
        positives = sum(counts[: self.args.process_index]) + torch.arange(len(ids), device=ids.device)
        for name, value in batch_statistics(outputs["query"], target, positives, ids, all_ids).items():
            self.meter.add(name, value, len(ids))
        return info_nce(outputs["query"], target, positives, outputs["temperature"], ids, all_ids)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last log: parts of the loss, the batch's separation, speed, memory."""
        if "loss" in logs:
            logs |= self.meter.drain(self.accelerator)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **options):
        """Train, from a complete checkpoint, or from "last" (True), the newest complete one if there is any."""
        if resume_from_checkpoint in (LAST, True):
            resume_from_checkpoint = latest_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self._check_resumable(Path(resume_from_checkpoint))
        self.meter = Meter(self.args.device)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        except InputError as error:  # one of a loading worker comes with the worker's whole traceback in its message
            raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Save a checkpoint, mark it complete once it is on the disk, and only then delete older ones."""
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if not self.args.save_only_model:
                for path in folder.rglob("*"):
                    sync(path)
                write_text_atomic(folder / COMPLETE, json.dumps(self._order()))
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _order(self) -> dict:
        """All that decides which rows come when."""
        named = {name: getattr(self.args, name) for name in ORDER}
        return named | {"processes": self.args.world_size, "rows": len(self.train_dataset)}

    def _check_resumable(self, folder: Path) -> None:
        if not (folder / COMPLETE).is_file():
            raise InputError(f"{folder}: no complete checkpoint (no {COMPLETE}); resume from another, or 'last'")
        was = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        for name, value in self._order().items():
            if was.get(name) != value:
                raise InputError(
                    f"{folder}: was made with {name} {was.get(name)}, this run has {value}: the rows would come in "
                    f"another order; use {was.get(name)}, or start a new run from its weights with --model"
                )


class Meter:
    """Means between two logs: rows weigh what counts rows, tokens what counts tokens, over all processes."""

    def __init__(self, device: torch.device):
        self.device, self.sums, self.since = device, {}, time.perf_counter()

    def add(self, name: str, value: Tensor | float, count: int) -> None:
        """Add a mean over `count` things; no count is lost when there are none of them."""
        value = torch.as_tensor(value, device=self.device).detach().float()
        pair = torch.stack([value * count, value.new_tensor(float(count))])
        self.sums[name] = self.sums.get(name, 0) + pair

    def count(self, *inputs: dict | None) -> None:
        """Count the tokens that the model read, padding left out."""
        read = sum(part["attention_mask"].sum() for part in inputs if part is not None)
        self.add("tokens", read, 1)

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last time, and start anew; a collective call."""
        names = sorted(self.sums)
        sums = accelerator.reduce(torch.stack([self.sums[name] for name in names]), "sum").tolist()
        means = {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
        del means["tokens"]
        now = time.perf_counter()
        means["tokens_per_second"] = sums[names.index("tokens")][0] / (now - self.since)
        peak = torch.tensor([peak_memory_mb(self.device)], device=self.device)
        means["peak_memory_mb"] = accelerator.gather(peak).max().item()
        self.sums, self.since = {}, now
        return means


def supervised_tokens(batch: dict) -> int:
    """Tokens of a batch that the language-model loss sees; the first position has nothing to be predicted from."""
    return int(batch["labels"][:, 1:].ne(-100).sum()) if "labels" in batch else 0


def peak_memory_mb(device: torch.device) -> float:
    """Most memory this process ever held: on a GPU what torch allocated, else the resident set, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def latest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder; a half-written one is passed over with a warning."""
    checkpoints = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if (path / COMPLETE).is_file():
            return str(path)
        logger.warning("%s is not complete: the run ended while it was written; taking an older one", path)
    return None


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
