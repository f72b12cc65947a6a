"""Break the code on purpose, one small edit at a time, and see which edits the tests notice. Run by hand:

    python tests/mutants.py [--only FILE ...] [--workers N] [--seconds S] [--json OUT]

The edits are the data of mutants_list.py. The tree is copied once, and all named tests run on the unbroken copy: where
one fails, or none runs, the edits that they guard are void. That run also tells which third-party modules the tests
load. The parent loads them once, and every edit is tried in a fork of it, so that it costs a run of pytest and no
import of torch. Subprocesses of the tests see the edited copy by PYTHONPATH.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = (
    "train",
    "eval",
    "data_gen",
)  # installed as cir_cot.scripts.train and so on; the copy has links in their place
HELPER = "cir_cot/compat.py"  # declares operators, which a process can do once: before the forks
LEFT_OUT = (".venv", ".git", ".*_cache", "__pycache__", "*.egg-info", "runs", "build", "dist")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OPTIONS = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Mutant(NamedTuple):
    """An edit: `old` text, once in `file`, becomes `new`; one of `tests` must fail. `survives` says why none can."""

    file: str
    old: str
    new: str
    tests: Sequence[str]
    breaks: str
    survives: str = ""


class Outcome(NamedTuple):
    """What became of an edit: "noticed", "survived" or "void", and how that was seen."""

    mutant: Mutant
    state: str
    how: str
    seconds: float


class Refused(Exception):  # noqa: N818
    """The list and the tree do not fit together."""


class Watch:
    """A pytest plugin: the worst outcome of every test."""

    def __init__(self):
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what is worse: failed, skipped, passed."""
        worse = {"passed": 0, "skipped": 1, "failed": 2}
        before = self.outcomes.get(report.nodeid, "passed")
        self.outcomes[report.nodeid] = max(before, report.outcome, key=worse.get)


def mutants_of(rows: Sequence[tuple]) -> list[Mutant]:
    """Return the list's rows as mutants."""
    return [Mutant(file, old, new, tuple(tests), *more) for file, old, new, tests, *more in rows]


def unusable(root: Path, mutants: Sequence[Mutant]) -> Iterator[str]:
    """Yield what is wrong with each edit that cannot be made in the tree below `root`."""
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        where = f"{mutant.file}: {mutant.old!r}"
        if count != 1:
            yield f"{where} is there {count} times; an edit's old text occurs once"
        elif mutant.old == mutant.new:
            yield f"{where} is replaced by itself"
        elif mutant.file == HELPER:
            yield f"{where}: this module is loaded before the forks; its edits cannot be tried"
        if not mutant.tests or not mutant.breaks:
            yield f"{where} names no test, or not what it breaks"


def edited(text: str, mutant: Mutant) -> str:
    """Return the file's text with the edit made."""
    return text.replace(mutant.old, mutant.new)


def copy_tree(root: Path, copy: Path) -> Path:
    """Copy the tree without what is installed or built in it, laid out as an installation is -> the copy."""
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for name in PACKAGED:
        if (copy / name).is_dir():
            scripts = copy / "cir_cot" / "scripts"
            scripts.mkdir(parents=True, exist_ok=True)
            (scripts / name).symlink_to(Path("..") / ".." / name)
    return copy


def start(copy: Path, work: Callable[[], int], compiled: bool = False) -> int:
    """Fork a process group of its own that does `work` in a copy of the tree, its output in a file -> its id.

    `compiled` lets it leave compiled files, which are good for the unbroken tree alone.
    """
    if pid := os.fork():
        return pid
    code = 70
    try:
        # a session of its own, so that whatever the tests start can be ended with it
        os.setsid()
        log = os.open(f"{copy}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # this copy before every other place, here and in subprocesses
        os.chdir(copy)
        os.environ["PYTHONPATH"] = sys.path[0] = str(copy)
        sys.dont_write_bytecode = not compiled
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if compiled else "1"
        importlib.invalidate_caches()
        code = work()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_tests(
    copy: Path, tests: Sequence[str], options: Sequence[str] = (), plugins: Sequence = ()
) -> int:
    """Run tests in this process -> pytest's exit code."""
    places = (f"--rootdir={copy}", f"--basetemp={copy}.tmp")
    return int(pytest.main([*tests, *places, *OPTIONS, *options], plugins=list(plugins)))


def first_run(copy: Path, tests: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Run the tests on the unbroken copy -> (outcome of each test, names of the third-party modules it loaded)."""
    answer = Path(f"{copy}.json")

    def work() -> int:
        watch = Watch()
        code = run_tests(copy, tests, plugins=[watch])
        files = {
            name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()
        }
        ours = {
            name
            for name, file in files.items()
            if file.startswith(str(copy)) or name.startswith("cir_cot")
        }
        answer.write_text(
            json.dumps([watch.outcomes, [name for name in files if name not in ours]])
        )
        return code

    code = os.waitstatus_to_exitcode(os.waitpid(start(copy, work, compiled=True), 0)[1])
    if code not in (0, 1) or not answer.is_file():
        raise Refused(f"the tests do not run on the unbroken tree (pytest: {code})\n{tail(copy)}")
    return tuple(json.loads(answer.read_text()))


def tail(copy: Path) -> str:
    """Return the end of what the last run in a copy wrote."""
    return Path(f"{copy}.log").read_text(errors="replace")[-3000:]


def preload(root: Path, names: Sequence[str]) -> None:
    """Import third-party modules once, for all forks; what cannot be imported by itself is left to the tests."""
    # torchvision may need our help to be imported; all else of ours is forgotten, since every fork imports it edited
    if (root / HELPER).is_file():
        sys.path.insert(0, str(root))
        importlib.import_module("cir_cot.compat")
        sys.path.pop(0)
        del sys.modules["cir_cot"]
    for name in names:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in the forks then leave all of this alone


def guard(mutant: Mutant, outcomes: dict[str, str]) -> str:
    """Say why the edit's tests can prove nothing here; "" if they can."""
    seen = [
        outcome
        for name, outcome in outcomes.items()
        if any(name == test or name.startswith((f"{test}::", f"{test}[")) for test in mutant.tests)
    ]
    if "failed" in seen:
        return "its tests fail on the unbroken tree"
    return "" if "passed" in seen else "none of its tests runs here"


def judge(status: int) -> tuple[str, str]:
    """Return (state, how it was seen) of a wait status of pytest's."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return "noticed", f"crashed, {signal.Signals(-code).name}"
    if code in (2, 4):  # 4: a test that ran on the unbroken tree is not found
        return "noticed", "the tests cannot be loaded"
    return {0: ("survived", ""), 1: ("noticed", "a test failed")}.get(
        code, ("void", f"pytest ended with {code}")
    )


class Attempt(NamedTuple):
    """An edit that is being tried in a copy, and what undoes it."""

    mutant: Mutant
    copy: Path
    before: str
    times: tuple[int, int]
    since: float

    @classmethod
    def begin(cls, mutant: Mutant, copy: Path) -> tuple[int, "Attempt"]:
        """Make the edit and start its tests -> (process id, attempt)."""
        path = copy / mutant.file
        before, stat = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(edited(before, mutant), encoding="utf-8")
        pid = start(copy, lambda: run_tests(copy, mutant.tests, ["-x"]))
        return pid, cls(
            mutant, copy, before, (stat.st_atime_ns, stat.st_mtime_ns), time.monotonic()
        )

    def end(self, pid: int, status: int | None) -> Outcome:
        """End all that the tests have started and undo the edit; no `status` is a run that took too long."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
        path = self.copy / self.mutant.file
        path.write_text(self.before, encoding="utf-8")
        os.utime(path, ns=self.times)  # its compiled form is good again
        seen = ("noticed", "hung: ended at the limit") if status is None else judge(status)
        return Outcome(self.mutant, *seen, time.monotonic() - self.since)


def attempt(copies: Sequence[Path], mutants: Sequence[Mutant], seconds: float) -> Iterator[Outcome]:
    """Try every edit, one in each copy at a time -> outcomes as they come; a run of more than `seconds` is ended."""
    waiting = list(reversed(mutants))
    free = list(copies)
    running: dict[int, Attempt] = {}
    while waiting or running:
        while waiting and free:
            pid, begun = Attempt.begin(waiting.pop(), free.pop())
            running[pid] = begun
        time.sleep(0.05)
        for pid, begun in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended or time.monotonic() - begun.since > seconds:
                del running[pid]
                free.append(begun.copy)
                yield begun.end(pid, status if ended else None)


def run(
    root: Path, mutants: Sequence[Mutant], workers: int = 1, seconds: float = 180.0
) -> list[Outcome]:
    """Try the edits on copies of the tree below `root` -> their outcomes, in the order of the list."""
    if problems := list(unusable(root, mutants)):
        raise Refused("\n".join(problems))
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("CIR_COT_SHARED", str(root.parent / "shared"))
    tqdm.monitor_interval = 0  # its thread must not be forked
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        # the unbroken tree first; the other copies are made of this one, compiled files included
        copies = [copy_tree(root, Path(folder) / "0")]
        tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        print(f"{len(tests)} tests and files of tests on the unbroken tree ...", file=sys.stderr)
        outcomes, modules = first_run(copies[0], tests)
        copies += [
            shutil.copytree(copies[0], Path(folder) / str(n), symlinks=True)
            for n in range(1, workers)
        ]
        # what nothing here can notice is void, everything else is tried
        void = {mutant: why for mutant in mutants if (why := guard(mutant, outcomes))}
        found = {mutant: Outcome(mutant, "void", why, 0.0) for mutant, why in void.items()}
        usable = [mutant for mutant in mutants if mutant not in void]
        preload(copies[0], modules)
        for outcome in tqdm(
            attempt(copies, usable, seconds), total=len(usable), desc="edits", unit=" edits"
        ):
            found[outcome.mutant] = outcome
            if outcome.state != "noticed":
                tqdm.write(
                    f"{outcome.state}: {outcome.mutant.file}: {outcome.mutant.breaks}",
                    file=sys.stderr,
                )
    return [found[mutant] for mutant in mutants]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the counts by module, the share noticed, and every edit that was not noticed, with the reason."""
    files = sorted({outcome.mutant.file for outcome in outcomes})
    lines = [f"{'module':<34}{'edits':>6}{'noticed':>9}{'survived':>10}{'void':>6}"]
    for file in [*files, "all"]:
        states = [outcome.state for outcome in outcomes if file in (outcome.mutant.file, "all")]
        counts = [states.count(state) for state in ("noticed", "survived", "void")]
        lines.append(f"{file:<34}{len(states):>6}{counts[0]:>9}{counts[1]:>10}{counts[2]:>6}")
    tried = [outcome.state == "noticed" for outcome in outcomes if outcome.state != "void"]
    lines.append(
        f"noticed: {sum(tried)} of {len(tried)} that could be tried, {100 * sum(tried) / len(tried):.1f} %"
    )
    for outcome in outcomes:
        mutant = outcome.mutant
        if outcome.state != "noticed":
            why = mutant.survives or outcome.how or "NO TEST NOTICES"
            lines.append(
                f"{outcome.state}: {mutant.file}: {mutant.breaks} ({mutant.old!r} -> {mutant.new!r}): {why}"
            )
        elif mutant.survives or outcome.how != "a test failed":
            words = "though the list says it survives" if mutant.survives else outcome.how
            lines.append(f"noticed: {mutant.file}: {mutant.breaks}: {words}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Try the list; exit code 1 when an edit is not noticed and the list does not say why, 2 when it cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="FILE", help="edits of these files alone")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="edits tried at a time (default 1)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=180,
        metavar="S",
        help="limit of an edit's tests (default 180)",
    )
    parser.add_argument("--json", metavar="OUT", help="write every outcome here")
    args = parser.parse_args(argv)
    from mutants_list import MUTANTS

    mutants = [
        mutant for mutant in mutants_of(MUTANTS) if not args.only or mutant.file in args.only
    ]
    try:
        if not mutants:
            raise Refused("no edit of these files")
        outcomes = run(ROOT, mutants, args.workers, args.seconds)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(outcomes))
    if args.json:
        Path(args.json).write_text(
            json.dumps([outcome._asdict() for outcome in outcomes], indent=1) + "\n"
        )
    return int(
        any(outcome.state != "noticed" and not outcome.mutant.survives for outcome in outcomes)
    )


if __name__ == "__main__":
    sys.exit(main())
