"""The options of an annotation job: check them, load its rows, open its teachers, run it."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cir_cot.data import load_benchmark
from cir_cot.data.chain_decisions import last_decisions
from cir_cot.errors import InputError, shown
from cir_cot.images import ImageStore
from cir_cot.ranks import Ranks
from cir_cot.records import Record

from .annotate import Watch, Work, ask_teacher, check_targets, job_settings, quietly, run_job
from .budget import Budget
from .job import Job, Task, make_tasks, rank_path
from .journal import chain_of, stream
from .teacher import Plan, Teacher


@dataclass(frozen=True)
class JobOptions:
    """The options of `cir-cot annotate`, which docs/annotation.md explains."""

    # Required: the dataset, the output and the model.
    benchmark: str
    root: str
    split: str
    out: Path
    teacher: Literal["openai", "transformers", "self"]
    model: str
    # Which queries.
    category: str | None = None
    limit: int | None = None
    again: str | None = None  # file of decisions: only rows whose chain is to be asked for again
    retry_quarantine: bool = False  # ask for rows that ended without a chain again
    # Which model writes.
    base_url: Sequence[str] = ()
    proxy: str | None = None
    temperature: float | None = None  # None: 0, greedy; of self, which draws, 0.7
    dtype: str = "bfloat16"
    batch_size: int = 16
    samples: int = 4
    keep_better: bool = True
    # How chains are written.
    stages: Literal["separate", "joint"] = "separate"
    see_target: bool = False
    repairs: int = 2
    verify: bool = False
    verifier: str | None = None
    max_pixels: int = 512 * 784
    concurrency: int = 64
    retries: int = 5
    timeout: float = 120.0
    # What it may cost, and what is printed.
    max_tokens: int | None = None
    max_cost: float | None = None
    price: Sequence[float] | None = None
    estimate: bool = False
    json: bool = False

    def check(self) -> None:
        """Raise InputError for options that cannot work together, or must not."""
        self._check_teacher()
        self._check_numbers()
        # Chains that know the answer are for training only.
        if self.see_target and not self.split.startswith("train"):
            raise InputError(
                f"--see-target is for training splits, not {self.split!r}: the chains of an "
                "evaluation split must not know the answer"
            )
        if self.verifier and not self.verify:
            raise InputError("--verifier names the model of --verify; give both")
        # The lock is made beside the output, so the output's place is checked first.
        if not self.out.resolve().parent.is_dir():
            raise InputError(f"{self.out}: its folder does not exist; create it")
        if self.out.exists() and not self.out.is_file():
            raise InputError(f"{self.out}: is no regular file; give another --out")

    def _check_teacher(self) -> None:
        """Refuse options that the chosen teacher does not have."""
        if self.teacher == "openai":
            # There is no default server: pictures must not go anywhere by accident.
            if not self.base_url and not self.estimate:
                raise InputError(
                    "--teacher openai needs --base-url URL: pictures go to servers that are named, "
                    "to no others"
                )
            return
        if self.teacher == "self":
            self._check_self()
        # The rest is about a teacher in this process.
        if self.stages == "joint":
            raise InputError(
                "--stages joint needs a server that writes JSON by a schema; use --stages separate"
            )
        # Nothing leaves the process, so nothing can be sent elsewhere.
        if self.proxy:
            raise InputError("--proxy is for --teacher openai; a local teacher sends nothing")
        if self.verifier:
            raise InputError(
                "--verifier is for --teacher openai; a local teacher verifies its own conclusions"
            )

    def _check_self(self) -> None:
        """Refuse what a retriever that draws its own chains cannot do, or must not."""
        if not self.split.startswith("train"):
            raise InputError(
                f"--teacher self is for training splits, not {self.split!r}: chains are chosen by "
                "the rank of the target"
            )
        given = {
            "--see-target": self.see_target,
            "--verify": self.verify,
            "--estimate": self.estimate,
        }
        for option in (name for name, value in given.items() if value):
            raise InputError(f"{option} is for other teachers; leave it out with --teacher self")
        if not self.drawn_at() > 0:
            raise InputError(
                f"--temperature {self.temperature}: --teacher self draws its chains; give a number "
                "above 0, such as 0.7"
            )

    def drawn_at(self) -> float:
        """Return the sampling temperature."""
        if self.temperature is None:
            return 0.7 if self.teacher == "self" else 0.0
        return self.temperature

    def _check_numbers(self) -> None:
        """Refuse numbers out of range, NaN included."""
        # The comparisons are false for NaN.
        if not 0 < self.timeout < math.inf or not 0 <= self.drawn_at() < math.inf:
            raise InputError(
                f"--timeout must be above 0, got {self.timeout}; --temperature must be at least 0, "
                f"got {self.temperature}"
            )
        if self.max_cost is not None and self.price is None:
            raise InputError("--max-cost needs --price IN OUT, in dollars per million tokens")
        if self.max_cost is not None and not self.max_cost > 0:
            raise InputError(f"--max-cost must be above 0, got {self.max_cost}")
        if not all(0 <= price < math.inf for price in self.price or ()):
            raise InputError(f"--price: prices must be at least 0, got {self.price}")

    def plan(self, verifier: Teacher | None = None) -> Plan:
        """Return what is asked for each row."""
        return Plan(self.stages, self.see_target, self.repairs, self.max_pixels, verifier)

    def settings(self) -> dict:
        """Return everything that decides a chain beside its row: part of each row's key."""
        # The verifier decides which chains are kept.
        verifier = (self.verifier or self.model) if self.verify else None
        dataset: dict[str, Any] = {
            "benchmark": self.benchmark,
            "split": self.split,
            "temperature": self.drawn_at(),
        }
        if self.teacher == "self":
            dataset |= {"samples": self.samples, "keep_better": self.keep_better}
        return dataset | job_settings(self.model, self.plan(), verifier)

    def queries(self) -> list[tuple[Record, ImageStore]]:
        """Load all queries of the dataset, each with the store of its pictures."""
        queries: list[tuple[Record, ImageStore]] = []
        for part in load_benchmark(self.benchmark, self.root, self.split, self.category):
            images = part.images()
            queries += [(record, images) for record in part.records]
        return queries

    def tasks(self, queries: list[tuple[Record, ImageStore]] | None = None) -> list[Task]:
        """Make one task of each query, by default the dataset's; InputError if a target is lacking."""
        queries = self.queries() if queries is None else queries
        if self.again is not None:
            decided = last_decisions(self.again)
            asked = {key for key, decision in decided.items() if decision.decision == "again"}
            check_own_output(self.out, asked)
            queries = [pair for pair in queries if (pair[0].id, pair[0].reference) in asked]
        # --limit counts over all categories.
        queries = queries[: self.limit]
        if self.see_target or self.verify or self.teacher == "self":
            check_targets((record for record, _ in queries), f"{self.root}, split {self.split}")
        return make_tasks(queries, self.settings())

    def run(self, watch: Watch = quietly) -> tuple[Job, str]:
        """Annotate what is left of the job.

        Args:
            watch: shows the progress.

        Returns:
            This process's job, and why it stopped early ("" if it did not).
        """
        queries = self.queries()
        tasks = self.tasks(queries)
        # A server's teacher has one process: the server makes the batches.
        ranks = Ranks.single() if self.teacher == "openai" else Ranks.launched()
        budget = self.budget(ranks.count)
        # Each process writes a file of its own; the first one merges them into the output.
        job = Job(rank_path(self.out, ranks.rank), self.settings(), budget)
        open_teacher = partial(self.open_teacher, budget, ranks.device)
        work: Work = partial(ask_teacher, open_teacher, self.concurrency)
        if self.teacher == "self":
            work = partial(self._teach_itself, queries, ranks.device)
        return job, run_job(job, self.out, tasks, work, ranks, watch, self.retry_quarantine)

    def _teach_itself(
        self,
        queries: Sequence[tuple[Record, ImageStore]],
        device: Any,
        job: Job,
        tasks: Sequence[Task],
        watch: Watch,
    ) -> str:
        """Have the retriever draw the chains of the tasks, ranked among the pictures of all queries."""
        from .self_teacher import open_self_teacher

        teacher = open_self_teacher(
            self.model,
            self.samples,
            self.drawn_at(),
            self.keep_better,
            self.batch_size,
            self.dtype,
            device,
        )
        return teacher.annotate(job, tasks, teacher.encode_galleries(queries), watch)

    def budget(self, processes: int) -> Budget:
        """Return one process's equal share of the budget."""
        # Processes do not see each other's spending.
        tokens = math.inf if self.max_tokens is None else self.max_tokens / processes
        cost = math.inf if self.max_cost is None else self.max_cost / processes
        return Budget(tokens, cost, self.price or (0.0, 0.0))

    def open_teacher(self, budget: Budget, device: Any = "cpu") -> tuple[Teacher, Plan]:
        """Open the teacher, and the plan with its verifier.

        The key is read from the environment variable OPENAI_API_KEY and from nowhere else.
        """
        if self.teacher == "transformers":
            # Torch and a model are loaded only where they are needed.
            from .transformers_teacher import TransformersTeacher

            local = TransformersTeacher(
                self.model, budget, self.batch_size, self.drawn_at(), self.dtype, device
            )
            return local, self.plan(local if self.verify else None)
        # A verifier of another name is asked on the same servers.
        teacher = self._openai_teacher(self.model, budget)
        if not self.verify:
            return teacher, self.plan()
        if self.verifier in (None, self.model):
            return teacher, self.plan(teacher)
        return teacher, self.plan(self._openai_teacher(self.verifier, budget))

    def _openai_teacher(self, model: str, budget: Budget) -> Teacher:
        from .openai_teacher import OpenAITeacher

        return OpenAITeacher(
            model,
            self.base_url,
            os.environ.get("OPENAI_API_KEY", ""),
            budget,
            concurrency=self.concurrency,
            retries=self.retries,
            timeout=self.timeout,
            temperature=self.drawn_at(),
            proxy=self.proxy,
        )


def check_own_output(out: Path, asked: Collection[tuple[str, str]]) -> None:
    """Refuse an output of another job than that of the rows to be asked again.

    In the file that holds their chains these rows would count as done, and none would be asked.

    Args:
        out: file of chains.
        asked: id and reference of each row.
    """
    for where, obj in stream(out):
        record = chain_of(obj, where)
        if (record.id, record.reference) not in asked:
            raise InputError(
                f"{where}: {shown(record.id)} is not to be asked again; give --again an --out of its own"
            )
