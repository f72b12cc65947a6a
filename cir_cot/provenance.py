"""What code ran: the commit of this checkout and the versions of the packages that decide a number."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "cir-cot",
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pillow",
)


@cache
def git_state() -> dict[str, str | bool | None]:
    """Commit of the checkout this file belongs to, and whether tracked files differ from it; both None outside one.

    Asked once a process, because what runs is what was loaded. A copy installed below somebody else's repository (a
    virtual environment in it) is not tracked there: None.
    """
    here = Path(__file__).resolve()

    def git(*command: str) -> str:
        arguments = ["git", "-C", str(here.parent), *command]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of PACKAGES; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions
