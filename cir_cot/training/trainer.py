"""One Trainer for every head: InfoNCE over the targets of all processes, plus the head's own weighted losses.

A head's `aux` are means over rows or tokens; losses that need all rows of a batch, such as a router's balance, it
computes in `batch_losses` from the `rows` (B, ...) that its forward pass returns, gathered from all processes.

What is guaranteed, and how:

1. W processes compute the loss and the gradients of one process that holds all rows, whatever the number of rows on
   each: DDP averages gradients over the processes, so every part of a process's loss is scaled such that this average
   is the whole. With R rows and T supervised tokens in an optimizer step, a micro-batch of b rows and t tokens weighs
   its contrastive and auxiliary means with W * b / R and its language-model mean with W * t / T. Summed over ranks and
   gradient accumulation (divided by W in DDP) these are means over all R rows and all T tokens.
2. Negatives are gathered, with gradients, on *every* micro-batch. Columns that show a query's own target image once
   more, whoever holds them, are masked by image id.
3. A resumed run equals the uninterrupted one. The order of rows and every choice about a row come from (seed, epoch);
   transformers saves the optimizer, the schedule and the random state. A crash while saving loses that save alone
   (`cir_cot.training.checkpoints`); a run that would order its rows differently is refused.
4. With `chunk_tokens`, a batch beyond that many tokens goes through in chunks (`cir_cot.training.gradcache`): same
   loss, same gradients, memory of one chunk. A batch that fits is one plain step.

transformers' own scaling is switched off: `model_accepts_loss_kwargs` says that the loss comes normalised over the
whole step, by `_get_num_items_in_batch`, which counts rows beside tokens.
"""

import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType
from transformers import Trainer

from cir_cot.errors import InputError
from cir_cot.heads.base import HeadOutput
from cir_cot.losses import batch_statistics, gather_counts, gather_with_grad, info_nce
from cir_cot.models.backbone import Backbone

from .arguments import LAST, CirArguments
from .checkpoints import (
    PREFIX,
    RUN,
    SAVING,
    check_resumable,
    check_same_run,
    latest_checkpoint,
    publish,
    rotate,
    whole,
)
from .gradcache import Chunk, Items, PartCollator, cached_step, cut, part_size, parts_of, stretch
from .run_folder import identity
from .sampler import RowSampler, ShardedBatches
from .step_metrics import Meter, supervised_tokens
from .vision_cache import VisionCache, tower_identity

ORDER = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps")
ORDER += ("group_by", "group_size", "train_sampling_strategy")


class CirTrainer(Trainer):
    """Trains a head (see architecture: its training contract) on a dataset with `records`, indexed by (index, draw).

    The head saves and loads its own weights: `save(folder)`, `load_weights(folder)`.
    """

    args: CirArguments

    def __init__(self, model: nn.Module, args: CirArguments, train_dataset, **options):
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=model.collator(),
            **options,
        )
        self.model_accepts_loss_kwargs = True
        self.meter = Meter(args.device)
        self.vision = self._vision_cache()

    def _vision_cache(self) -> VisionCache | None:
        """Features of the frozen vision tower: on the disk if asked for, else shared by the passes of a step."""
        args = self.args
        backbone = next(
            (child for child in self.model.children() if isinstance(child, Backbone)), None
        )
        if backbone is None:
            if args.vision_cache:
                raise InputError(
                    "vision_cache: this retriever has no Qwen-VL vision tower; leave vision_cache out"
                )
            return None
        tower, records = backbone.plain.model.visual, self.train_dataset.records
        if args.vision_cache:
            pictures = {
                image for record in records for image in (record.reference, *record.targets[:1])
            }
            precision = f"{tower.dtype}, {self.accelerator.mixed_precision}"
            cache = VisionCache(tower, args.vision_cache, len(pictures), str(args.process_index))
            return cache.open(tower_identity(tower, backbone.processor.image_processor, precision))
        frozen = not any(parameter.requires_grad for parameter in tower.parameters())
        # Where parameters are sharded every process must run the tower at the same moments.
        return (
            VisionCache(tower)
            if frozen and args.chunk_tokens and not args.shards_parameters
            else None
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process; already sharded, so accelerate only forwards the epoch to the sampler."""
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        group_size = args.group_size or self._train_batch_size * args.world_size
        alike = self._train_batch_size * args.world_size if args.groups_by_length else 0
        sampler = RowSampler(self.train_dataset.records, seed, args.group_by, group_size, alike)
        dataset, collate = self.train_dataset, self.data_collator
        if args.chunk_tokens:
            dataset, collate = (
                Items(dataset),
                PartCollator(dataset, collate, part_size(args.chunk_tokens)),
            )
        loader = DataLoader(
            dataset,
            batch_sampler=ShardedBatches(
                sampler, self._train_batch_size, args.process_index, args.world_size
            ),
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict], device: torch.device
    ) -> tuple[int, int]:
        """Rows and supervised tokens of an optimizer step, over its micro-batches and all processes."""
        rows = sum(len(part["ids"]) for batch in batch_samples for part in parts_of(batch))
        tokens = sum(supervised_tokens(batch) for batch in batch_samples)
        rows, tokens = self.accelerator.reduce(
            torch.tensor([rows, tokens], device=device), "sum"
        ).tolist()
        self.meter.add("supervised_tokens", tokens, 1)
        return rows, tokens

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: tuple[int, int] | None = None
    ) -> Tensor:
        """Loss of this micro-batch, its gradients accumulated: plain when every process's rows fit one chunk."""
        with nullcontext() if self.vision is None else self.vision.attached():
            if not self.args.chunk_tokens:
                return super().training_step(model, inputs, num_items_in_batch)
            chunks = [
                chunk for part in parts_of(inputs) for chunk in cut(part, self.args.chunk_tokens)
            ]
            count = max(gather_counts(len(chunks), self.args.device))
            if count == 1:
                return super().training_step(model, chunks[0].batch, num_items_in_batch)
            return self._cached_step(model, stretch(chunks, count), num_items_in_batch)

    def _cached_step(
        self, model: nn.Module, chunks: list[Chunk], totals: tuple[int, int]
    ) -> Tensor:
        """The loss of all chunks, gradients accumulated in two passes, or in one without a contrastive loss."""
        model.train()
        kind = self.accelerator.distributed_type
        # ZeRO can put off its exchange for one whole optimizer step, DDP for as long as asked; FSDP would keep whole
        # gradients in the meantime. Exchanging them with every chunk is right, too.
        coalesce = kind == DistributedType.DEEPSPEED and self.args.gradient_accumulation_steps == 1
        with model.coalesce_grad_reduction() if coalesce else nullcontext():
            loss = cached_step(
                chunks,
                encode=partial(self._encode, model),
                contrast=partial(self._share, totals=totals)
                if self.args.contrastive_weight
                else None,
                add=partial(self._add, totals=totals),
                backward=partial(self._backward, model, coalesce),
                no_sync=partial(self.accelerator.no_sync, model)
                if kind != DistributedType.FSDP
                else nullcontext,
                device=self.args.device,
            )
        if coalesce:
            model.set_gradient_accumulation_boundary(is_boundary=True)
            model.step()
        return loss

    def _encode(self, model: nn.Module, chunk: Chunk, again: bool) -> HeadOutput:
        """The head's outputs for a chunk; the first pass leaves out the chain's loss."""
        inputs = self._prepare_inputs(chunk.batch)
        return model(
            query=inputs["query"],
            target=inputs["target"] if self.args.contrastive_weight else None,
            labels=inputs.get("labels") if again and self.args.lm_weight else None,
        )

    def _backward(self, model: nn.Module, coalesce: bool, loss: Tensor, last: bool) -> None:
        """Backward pass of one chunk; only the last ends the micro-batch."""
        if coalesce:
            return model.backward(loss, scale_wrt_gas=False)
        state = self.accelerator.gradient_state
        ends = state.sync_gradients
        state._set_sync_gradients(ends and last)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **{"scale_wrt_gas": False} if deepspeed else {})
        return state._set_sync_gradients(ends)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: tuple[int, int] | None = None,
    ) -> Tensor | tuple[Tensor, HeadOutput]:
        """This process's share of the step's loss -> scalar; see the module's docstring for its scale."""
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        chunk = Chunk(inputs)
        outputs = self._encode(model, chunk, True)
        loss = self._add(outputs, chunk, num_items_in_batch)
        if self.args.contrastive_weight:
            loss = loss + self._share(
                outputs, inputs["ids"].to(self.args.device), num_items_in_batch
            )
        return (loss, outputs) if return_outputs else loss

    def _add(self, outputs: HeadOutput, chunk: Chunk, totals: tuple[int, int]) -> Tensor | float:
        """A chunk's share of the auxiliary losses: means over tokens (`lm`) or rows of the step -> scalar."""
        batch, world = chunk.batch, self.accelerator.num_processes
        rows, tokens = len(chunk), supervised_tokens(batch)
        if outputs.rows and not self.args.contrastive_weight:
            raise ValueError(
                "the head has losses of the whole batch: they need a contrastive_weight above 0"
            )
        loss = 0.0
        for name, value in outputs.aux.items():
            count, total = (tokens, totals[1]) if name == "lm" else (rows, totals[0])
            count = count if chunk.weighs else 0
            loss = loss + self._weight(name) * value * (world * count / max(total, 1))
            self.meter.add(f"{name}_loss", value, count)
        if chunk.weighs:
            for name, value in outputs.stats.items():
                self.meter.add(name, value, rows)
            self.meter.count(
                batch["query"], batch["target"] if self.args.contrastive_weight else None
            )
        return loss

    def _weight(self, name: str) -> float:
        weights = self.args.aux_weights()
        if name not in weights:
            raise ValueError(
                f"the head returns a loss {name!r}, which {type(self.args).__name__}.aux_weights lacks"
            )
        return weights[name]

    def _share(self, outputs: HeadOutput, ids: Tensor, totals: tuple[int, int]) -> Tensor:
        """This process's share of the losses that need all rows of this micro-batch: InfoNCE and the head's -> scalar.

        The head's come out alike on every process, which counts its own rows' share of them.
        """
        counts = gather_counts(len(ids), ids.device)
        contrastive = self._contrastive(outputs, ids, counts)
        self.meter.add("contrastive_loss", contrastive, len(ids))
        self.meter.add("temperature", outputs.temperature, len(ids))
        loss = self.args.contrastive_weight * contrastive
        if outputs.rows:
            rows = {name: gather_with_grad(value, counts) for name, value in outputs.rows.items()}
            for name, value in self.accelerator.unwrap_model(self.model).batch_losses(rows).items():
                self.meter.add(f"{name}_loss", value, len(ids))
                loss = loss + self._weight(name) * value
        return loss * (self.accelerator.num_processes * len(ids) / totals[0])

    def _contrastive(self, outputs: HeadOutput, ids: Tensor, counts: list[int]) -> Tensor:
        """InfoNCE of this process's queries against every process's targets of this micro-batch -> scalar."""
        target = gather_with_grad(outputs.target, counts)  # (N, D)
        all_ids = gather_with_grad(ids, counts)  # (N,)
        positives = sum(counts[: self.args.process_index]) + torch.arange(
            len(ids), device=ids.device
        )
        for name, value in batch_statistics(outputs.query, target, positives, ids, all_ids).items():
            self.meter.add(name, value, len(ids))
        return info_nce(outputs.query, target, positives, outputs.temperature, ids, all_ids)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last log: parts of the loss, the batch's separation, speed, memory."""
        if "loss" in logs:
            logs |= self.meter.drain(self.accelerator)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **options):
        """Train, from a complete checkpoint, or from "last" (True), the newest complete one of this run if any."""
        self.identity = identity(self.args, self.train_dataset.records)
        if resume_from_checkpoint in (LAST, True):
            resume_from_checkpoint = latest_checkpoint(self.args.output_dir)
            if resume_from_checkpoint:
                check_same_run(Path(resume_from_checkpoint), self.identity)
        if resume_from_checkpoint:
            check_resumable(Path(resume_from_checkpoint), self._order())
            if self.is_fsdp_enabled:
                self.model.load_weights(resume_from_checkpoint)
        if self.args.should_save:
            shutil.rmtree(
                Path(self.args.output_dir) / SAVING, ignore_errors=True
            )  # of a run that died while saving
        self.meter = Meter(self.args.device)
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        except InputError as error:  # one of a loading worker comes with the worker's whole traceback in its message
            raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error
        if self.args.vision_cache:
            self.vision.flush()
        return result

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        head = self.accelerator.unwrap_model(self.model)
        if self.args.should_save:
            with whole(head, state_dict if self.args.shards_parameters else None):
                head.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.is_fsdp_enabled:  # there `train` has loaded them, before they are shared out
            self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)

    def _get_output_dir(self, trial) -> str:
        return str(Path(self.args.output_dir) / SAVING)  # where _save_checkpoint writes

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Save a checkpoint aside, give it its name once it is on the disk, and only then delete older ones."""
        run, limit = Path(self.args.output_dir), self.args.save_total_limit
        self.args.save_total_limit = None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        if self.args.vision_cache:
            self.vision.flush()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            facts = None if self.args.save_only_model else self._order() | {RUN: self.identity}
            publish(run, f"{PREFIX}-{self.state.global_step}", facts)
            rotate(run, limit, self.state.global_step)
        self.accelerator.wait_for_everyone()

    def _order(self) -> dict:
        """All that decides which rows come when, and which features they have."""
        named = {name: getattr(self.args, name) for name in ORDER}
        named |= {"processes": self.args.world_size, "rows": len(self.train_dataset)}
        return named | ({"vision_cache": self.vision.identity} if self.args.vision_cache else {})
