"""Run the quickstart: draw scenes, train a chain retriever, evaluate it, and report.

Every step is a command of the project in a process of its own, or a function of the evaluation
room, so the quickstart takes the same path as a run on Qwen2.5-VL-7B.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from cir_cot.data import load_benchmark
from cir_cot.devices import fast_dtype, pick_device
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import Result, save_results
from cir_cot.evaluation.tables import text_table
from cir_cot.files import write_json
from cir_cot.heads import load_retriever
from cir_cot.heads.base import Head
from cir_cot.processes import start, stop
from cir_cot.retriever import ChainReader

from .quickstart_page import stories
from .quickstart_summary import SPLITS, chain_table, final_table, meaning, summarise

READINGS = ("full", "fast", "oracle", "image_only", "text_only")
CHAINS = ("model", READINGS)  # a model's folder, and the readings to evaluate
NO_CHAIN = ("no_chain", ("fast",))
SUMMARY = "summary.json"
MARK = "quickstart.json"
# What a quickstart writes beside these two.
OUTPUTS = ("scenes", "stage1", "model", "no_chain", "no_chain.log", "results", "report.md",
           "report.html")  # fmt: skip
TRAIN_EDITS = 8  # of a training scene; the test splits have 16
BATCH = 250  # pictures or queries encoded at a time
MOST_THREADS = 4  # of a training: more gain nothing on a model so small


class StepFailedError(RuntimeError):
    """A command of the quickstart failed; the message names it, its exit code and its log."""


@dataclass(frozen=True)
class Quickstart:
    """Settings of a quickstart.

    Attributes:
        out: folder for data, models, results and the report.
        configs: folder of the training configs quickstart*.yaml.
        seed: of the scenes and of the query sample.
        references: scenes for training, with TRAIN_EDITS edits each.
        test_references: scenes in each of the test splits.
        queries: queries evaluated in each split.
        max_steps: steps after which every training stops; None: as the configs say.
        full: whether to train the control beside it: the same network without chains.
    """

    out: Path
    configs: Path
    seed: int = 0
    references: int = 2000
    test_references: int = 400
    queries: int = 2000
    max_steps: int | None = None
    full: bool = False


def run_quickstart(settings: Quickstart) -> str:
    """Draw the scenes, train, evaluate and report; return the table as text.

    Writes summary.json, report.md and report.html into `settings.out`.

    Raises:
        StepFailedError: a command failed.
    """
    started = time.time()
    out = settings.out
    # Draw the scenes, and train on them.
    finish(start_scenes(settings), "writing the scenes")
    extra = ["--max_steps", str(settings.max_steps)] if settings.max_steps else []
    training_minutes = train_models(out, settings.configs, extra, settings.full)
    # Evaluate on both splits.
    models = (CHAINS, NO_CHAIN) if settings.full else (CHAINS,)
    results = measure_all(out, models, settings.queries, settings.seed)
    chains, exact = chain_table(results)
    everything = [result for measured in results.values() for result in measured]
    # Write the report and the summary.
    title = "Quickstart: chain-of-thought retrieval on scenes"
    shown = [story for split in SPLITS for story in stories(results[split])]
    write_report(
        out,
        everything,
        title=title,
        tables=[chains],
        stories=shown,
        seed=settings.seed,
        overwrite=True,
    )
    summary = summarise(results, exact, (time.time() - started) / 60)
    write_json(out / SUMMARY, summary)
    return (
        f"\n{text_table(final_table(summary))}\n\n{meaning(summary)}\n\n"
        f"{summary['minutes']} minutes, {training_minutes:.1f} of them training; "
        f"{summary['processor_seconds']} processor-seconds. Look at {out / 'report.html'}"
    )


def prepare_folder(out: Path, overwrite: bool) -> None:
    """Create the folder of a quickstart and mark it as one.

    Raises:
        InputError: it holds a finished quickstart, or something that no quickstart wrote.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if (out / SUMMARY).exists() and not overwrite:
        raise InputError(
            f"{out}: holds a finished quickstart; give another --out, or --overwrite to run it "
            "again"
        )
    # Never replace what a user put there.
    found = next((name for name in OUTPUTS if (out / name).exists()), None)
    if found and not (out / MARK).exists() and not overwrite:
        raise InputError(
            f"{out / found}: was there before any quickstart; give another --out, or --overwrite"
        )
    # Mark the folder, so that an interrupted quickstart can be started again.
    out.mkdir(parents=True, exist_ok=True)
    note = "cir-cot quickstart writes this folder and may replace what is in it"
    write_json(out / MARK, {"note": note})
    (out / SUMMARY).unlink(missing_ok=True)


def precision() -> str:
    """Return the precision of the quickstart: bfloat16 on a GPU or CPU that computes in it, else float32."""
    if torch.cuda.is_available():
        return fast_dtype(pick_device())
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def command(*arguments: str, log: Path | None = None, threads: int = 1) -> subprocess.Popen:
    """Start a command of the project in a process of its own.

    Args:
        log: where its output goes; None: to the terminal.
        threads: that it computes with.
    """
    call = [sys.executable, "-m", "cir_cot.cli", *arguments]
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return start(call, {**os.environ, **settings}, log)


def finish(process: subprocess.Popen, what: str, log: Path | None = None) -> None:
    """Wait for a command; kill it if the waiting is interrupted.

    Raises:
        StepFailedError: it failed.
    """
    try:
        code = process.wait()
    finally:
        stop([process])
    if code:
        where = f"; see {log}" if log else ""
        raise StepFailedError(f"{what} failed with exit code {code}{where}")


def start_scenes(settings: Quickstart) -> subprocess.Popen:
    """Start drawing the scenes."""
    return command(
        "scenes",
        "--overwrite",
        f"--out={settings.out / 'scenes'}",
        f"--seed={settings.seed}",
        f"--references={settings.references}",
        f"--test-references={settings.test_references}",
        f"--train-edits={TRAIN_EDITS}",
    )


def train_models(out: Path, configs: Path, extra: Sequence[str], full: bool) -> float:
    """Train the chain retriever and, with `full`, the control beside it; return the minutes.

    The first one is trained in two stages and shows its progress; the control writes a log.
    """
    # Options of all trainings.
    started = time.time()
    log = out / "no_chain.log"
    bf16 = str(precision() == "bfloat16")
    shared = ["--root", str(out / "scenes"), "--bf16", bf16, "--overwrite", *extra]
    # A control that trains beside the retriever leaves it half of the processors.
    threads = max(1, min((os.cpu_count() or 1) // (1 + full), MOST_THREADS))

    def sft(config: str, folder: str, *more: str, log: Path | None = None) -> subprocess.Popen:
        config_file = str(configs / f"{config}.yaml")
        paths = ["--config", config_file, "--output_dir", str(out / folder)]
        return command("sft", *paths, *shared, *more, log=log, threads=threads)

    running = [sft("quickstart_no_chain", "no_chain", log=log)] if full else []
    control = list(running)
    # Stage 2 starts from the weights of stage 1, while the control trains beside them.
    try:
        running.append(sft("quickstart_stage1", "stage1"))
        finish(running[-1], "stage 1, chains alone")
        running.append(sft("quickstart", "model", "--model", str(out / "stage1")))
        finish(running[-1], "stage 2, chains and retrieval")
        for process in control:
            finish(process, "training without chains", log)
    finally:
        stop(running)
    return (time.time() - started) / 60


def measure_all(
    out: Path, models: Sequence[tuple[str, Sequence[str]]], limit: int, seed: int
) -> dict[str, list[Result]]:
    """Evaluate both splits side by side; return the results by split."""
    with ProcessPoolExecutor(len(SPLITS), mp_context=get_context("spawn")) as pool:
        try:
            jobs = {}
            for split in SPLITS:
                jobs[split] = pool.submit(measure, out, models, split, limit, seed)
            return {split: job.result() for split, job in jobs.items()}
        except BaseException:
            # The pool would otherwise wait for the end of their work.
            for child in active_children():
                child.kill()
            raise


def measure(
    out: Path, models: Sequence[tuple[str, Sequence[str]]], split: str, limit: int, seed: int
) -> list[Result]:
    """Evaluate models on one split: full, fast, oracle, baselines, then the control."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // len(SPLITS)))
    # One benchmark; all models see the same pictures.
    (benchmark,) = load_benchmark("folder", out / "scenes", split)
    images = benchmark.images()
    progress = split == SPLITS[0]  # one bar is enough
    results = []
    for folder, readings in models:
        retriever = load_retriever(out / folder, attn="eager", dtype=precision())
        assert isinstance(retriever, Head), "recipes save heads"
        retriever.batch_size = BATCH
        if isinstance(retriever, ChainReader):
            # The baseline of words alone: a chain about a grey picture would cost as much as Full.
            retriever.reading = "fast"
        # Encode the gallery once for all readings of a model.
        gallery = encode_gallery(retriever, benchmark.gallery, images, BATCH, progress=progress)
        for reading in readings:
            result = evaluate(
                retriever,
                benchmark,
                images,
                reading=reading,
                gallery=gallery,
                model=folder,
                limit=limit,
                batch_size=BATCH,
                seed=seed,
            )
            name = "no_chain" if folder == "no_chain" else reading
            result.protocol["reading"] = name
            save_results([result], out / "results" / split / name, overwrite=True)
            results.append(result)
    return results
