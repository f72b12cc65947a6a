"""Evaluate a head during training: recall of its readings on a validation split, without disturbing the training.

What is guaranteed: the random states, the modes of all modules and the gradients are afterwards what they were, so that
a run with evaluation trains the same weights as one without. Several processes share the work through files in the run
folder; where weights are sharded (ZeRO-3, FSDP) all evaluate everything, for all must run each layer together.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import Trainer

from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.encoded_rows import Encoding, rows_of
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.tables import flat
from cir_cot.heads.base import Head
from cir_cot.ranks import Ranks
from cir_cot.retriever import ChainReader

from .arguments import CirArguments, DataArguments
from .checkpoints import checkpoints
from .gradcache import random_state, set_random_state

FOLDER = "evaluating"  # in the run folder, while several processes share an evaluation
PRIMARY = "R@1"  # decides which checkpoint is best, of the first reading


@dataclass(frozen=True)
class Validation:
    """What is evaluated during training.

    Attributes:
        benchmarks: one, or the categories of one, whose metrics are averaged.
        queries: sample of each one's queries, drawn by `seed`; None for all.
        seed: of the sample.
    """

    benchmarks: Sequence[Benchmark]
    queries: int | None = None
    seed: int = 0


def load_validation(args: DataArguments) -> Validation | None:
    """Load what a recipe's arguments name for evaluation; None without an `eval_strategy`.

    Raises:
        InputError: there is no such split, it has no targets, or pictures are missing.
    """
    if args.eval_strategy == "no":
        return None
    if args.eval_split is None:
        raise InputError(
            "evaluation during training needs --eval_split, the name of the split to evaluate on"
        )
    # Without a name of its own the validation data is another split of the training data.
    benchmark = args.eval_benchmark or args.benchmark
    root = args.eval_root or args.root
    assert root is not None, "DataArguments refuses an absent root"
    category = args.category if args.eval_benchmark is None else None
    benchmarks = load_benchmark(benchmark, root, args.eval_split, category)
    for part in benchmarks:
        check_pictures(part, part.images())
        if not all(record.targets for record in part.records):
            raise InputError(
                f"{root}: queries of {args.eval_split} have no target; evaluate on another split"
            )
    return Validation(benchmarks, args.eval_queries, args.seed)


class ValidatingTrainer(Trainer):
    """Trainer that evaluates retrieval, and can end with the best checkpoint.

    Metrics are named `eval_full_R@1`, `eval_fast_R@1` and so on, `eval_R@1` for a head without chains.
    """

    args: CirArguments
    model: Head
    validation: Validation | None

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Evaluate on the validation split, log the metrics and return them."""
        assert self.validation is not None, "transformers evaluates only what it was given"
        started = time.perf_counter()
        device = self.args.device
        state = random_state(device)
        with self.accelerator.autocast():
            metrics = self._measure(self.validation)
        set_random_state(state, device)
        metrics["eval_seconds"] = round(time.perf_counter() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def readings(self) -> list[str | None]:
        """Return the readings that are evaluated: with and without a chain, where chains are trained."""
        head = self.accelerator.unwrap_model(self.model)
        if not isinstance(head, ChainReader):
            return [None]
        return ["full", "fast"] if self.args.lm_weight else ["fast"]

    def _measure(self, validation: Validation) -> dict[str, float]:
        """Return the mean metrics over the benchmarks of every reading."""
        head = self.accelerator.unwrap_model(self.model)
        encoding = self._shared_encoding()
        sums: dict[str, list[float]] = {}
        for benchmark in validation.benchmarks:
            images = benchmark.images()
            size = self.args.per_device_eval_batch_size
            rows = rows_of(encoding, "gallery")
            gallery = encode_gallery(head, benchmark.gallery, images, size, rows=rows)
            for reading in self.readings():
                result = evaluate(
                    head,
                    benchmark,
                    images,
                    reading=reading,
                    gallery=gallery,
                    limit=validation.queries,
                    batch_size=size,
                    seed=validation.seed,
                    encoding=encoding,
                )
                for name, value in flat(result.metrics).items():
                    key = "_".join(filter(None, ("eval", reading, name)))
                    sums.setdefault(key, []).append(float(value))
        self._remove(encoding)
        return {key: sum(values) / len(values) for key, values in sums.items()}

    def _shared_encoding(self) -> Encoding | None:
        """Return where processes share an evaluation; None where each does all of it."""
        if self.args.world_size == 1 or self.args.shards_parameters:
            return None
        wait = self.accelerator.wait_for_everyone
        folder = self.args.folder / FOLDER
        # Left by a run that was killed while it evaluated.
        if self.args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        wait()
        return Encoding(folder, Ranks(self.args.process_index, self.args.world_size, wait))

    def _remove(self, encoding: Encoding | None) -> None:
        """Remove what processes shared, once all have read it."""
        if encoding is not None:
            encoding.ranks.wait()
            if encoding.ranks.first:
                shutil.rmtree(encoding.folder)

    def choose_metric(self) -> None:
        """Let R@1 of the first reading decide which checkpoint is best, unless the arguments name a metric."""
        if self.validation is None or self.args.metric_for_best_model not in (None, "loss"):
            return
        self.args.metric_for_best_model = "_".join(filter(None, (self.readings()[0], PRIMARY)))
        self.args.greater_is_better = True

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint; transformers would look for them where they were written."""
        step = self.state.best_global_step
        folder = checkpoints(self.args.folder).get(step or 0)
        if folder is None:
            raise InputError(
                f"{self.args.folder}: checkpoint-{step}, the best one, is not there; what was trained last is kept"
            )
        self.accelerator.unwrap_model(self.model).load_weights(folder)

    def best_facts(self) -> dict[str, Any]:
        """Return which checkpoint the run ends with, if the arguments ask for the best."""
        if not self.args.load_best_model_at_end or not self.state.best_global_step:
            return {}
        return {
            "best_step": self.state.best_global_step,
            "best_metric": self.args.metric_for_best_model,
            "best_value": self.state.best_metric,
        }


class ValidationDataset(Dataset):
    """Stands for the validation split where transformers wants a dataset; it loads nothing."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, item: Any) -> torch.Tensor:
        raise IndexError(item)
