"""Identify the code that ran: the commit of this checkout and the versions of packages."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Packages whose versions can change a number.
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
    """Return {"commit", "dirty"} of the checkout that this file belongs to; both None outside one.

    `dirty` says whether tracked files differ from the commit. Git is asked once a process, because
    the code that runs is the code that was loaded. A copy that is installed below another
    repository, say in a virtual environment, is not tracked there and counts as outside.
    """
    here = Path(__file__).resolve()

    def git(*command: str) -> str:
        arguments = ["git", "-C", str(here.parent), *command]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # fails where this file is not tracked
        git("ls-files", "--error-unmatch", here.name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, not tracked
        return {"commit": None, "dirty": None}


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES; None for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions
