"""Load from the Hugging Face Hub by name: `user/name`, or `user/name@revision` for a branch, tag or commit.

A token is read by huggingface_hub itself, from HF_TOKEN or from `hf auth login`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import InputError, shown

# The hub's names have at most 96 characters.
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(@[\w./-]{1,100})?", re.ASCII)
# All that a saved retriever consists of; weights are safetensors alone, and nothing here is code.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.md")
SUBFOLDERS = "*/*"  # a retriever has none
# Named like a repository, but the package ships it: it is never asked for.
TINY_BASE = "cir-cot/tiny-base"
SHIPPED = Path(__file__).parent / "assets" / "tiny_base"


class Address(NamedTuple):
    """A repository on the hub, and the branch, tag or commit of it; None for its main branch."""

    repository: str
    revision: str | None


def hub_address(name: str | Path) -> Address | None:
    """Return the address that a name means, None for what is a path on this machine.

    A name whose first half is a folder here is a path: a mistyped `runs/modle` shall not load a stranger's model.
    `runs/modle@main` is an address all the same.
    """
    text = str(name)
    if text == TINY_BASE or not NAME.fullmatch(text) or Path(text).exists():
        return None
    repository, _, revision = text.partition("@")
    if not revision and Path(repository).parent.is_dir():
        return None
    return Address(repository, revision or None)


def located(name: str | Path) -> Path:
    """Return the folder of a retriever, downloaded where `name` is one on the hub.

    Files that are in the cache already are not downloaded again.

    Args:
        name: a folder, `user/name`, or `user/name@revision`.

    Raises:
        InputError: the hub has no such repository or revision, refuses access, or cannot be reached.
    """
    address = hub_address(name)
    if address is None:
        return SHIPPED if str(name) == TINY_BASE else Path(name)
    from huggingface_hub import snapshot_download

    with asking(name):
        folder = snapshot_download(
            address.repository,
            revision=address.revision,
            allow_patterns=list(PATTERNS),
            ignore_patterns=[SUBFOLDERS],
        )
    return Path(folder)


def holds(name: str | Path, file: str) -> bool:
    """Tell whether a folder, or a repository on the hub, has a file; False also where it cannot be asked."""
    address = hub_address(name)
    if address is None:
        return (located(name) / file).is_file()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with asking(name):
            hf_hub_download(address.repository, file, revision=address.revision)
    except EntryNotFoundError:
        return False
    except InputError as error:
        if isinstance(
            error.__cause__, EntryNotFoundError
        ):  # neither in the cache nor to be asked for
            return False
        raise
    return True


@contextmanager
def asking(name: str | Path) -> Iterator[None]:
    """Turn an error of the hub within the context into InputError: what is wrong with `name`, and the cure.

    Other errors pass, among them that a single file is not there, and all about what is no address.
    """
    import httpx2

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        reason = _reason(error, str(name)) if hub_address(name) else None
        if reason is None:
            raise
        raise InputError(f"{shown(str(name))}: {reason}") from error


def _reason(error: BaseException, name: str) -> str | None:
    """Say why the hub did not deliver, None for an error that is not about the hub."""
    import httpx2
    from huggingface_hub import constants, errors

    # transformers and huggingface_hub wrap the first error in others.
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    repository, _, revision = name.partition("@")
    if any(isinstance(link, errors.RemoteEntryNotFoundError) for link in chain):
        return None
    # The most specific kind first.
    reasons: dict[type[BaseException], str] = {
        errors.GatedRepoError: "its owner gives access on request; ask for it at "
        f"{constants.ENDPOINT}/{repository}, then set HF_TOKEN to a token of your account",
        errors.DisabledRepoError: "the hub has disabled this repository; use another",
        errors.RevisionNotFoundError: f"the repository has no revision {revision!r}; "
        "give a branch, tag or commit of it",
        errors.RepositoryNotFoundError: "neither a folder here nor a repository that the hub shows "
        "you; correct the name, or set HF_TOKEN to a token that may read it",
        errors.LocalTokenNotFoundError: "the hub asks who you are; set HF_TOKEN to a token of "
        f"{constants.ENDPOINT}/settings/tokens",
        errors.OfflineModeIsEnabled: "neither a folder here nor complete in the hub's cache, and "
        "HF_HUB_OFFLINE forbids to ask; unset it, or give a folder",
        errors.HFValidationError: "no name on the hub; give user/name",
        errors.HfHubHTTPError: "",
        httpx2.TransportError: f"not a folder here, and {constants.ENDPOINT} cannot be reached; "
        "check the network and HF_ENDPOINT, or give a folder",
        errors.LocalEntryNotFoundError: "neither a folder here nor complete in the hub's cache; "
        "give a folder, or download it where there is a network",
    }
    for kind, text in reasons.items():
        found = next((link for link in chain if isinstance(link, kind)), None)
        if found is not None:
            return text or _refusal(getattr(found, "response", None))
    return None


def _refusal(response: object) -> str:
    """Say what an answer of the hub with an error's status means."""
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return f"the hub refuses the token ({status}); set HF_TOKEN to one that has the right"
    return f"the hub answers with status {status}; try again later"
