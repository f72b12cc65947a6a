"""Publish a saved retriever on the Hugging Face Hub: its own files and a model card, in one commit."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_cot.errors import InputError
from cir_cot.files import read_json
from cir_cot.hub import NAME, TINY_BASE, asking
from cir_cot.retriever import HEAD_FILE, SETTINGS_FILE, read_settings

from .card import is_generated, model_card, read_results, read_runs

CARD_FILE = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
# All that `save` may write, but for shards of weights. A file of another name is none of the retriever's.
OWN = (SETTINGS_FILE, HEAD_FILE, ADAPTER_CONFIG, "adapter_model.safetensors", "config.json",
       "generation_config.json", "model.safetensors", "model.safetensors.index.json", "processor_config.json",
       "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja", "tokenizer.json",
       "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
       "merges.txt")  # fmt: skip
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Upload:
    """What is sent, or would be.

    Attributes:
        address: of the repository, as a browser takes it.
        files: {name: size in bytes}.
        kept: whether a README.md that a person wrote is on the hub, and stays.
    """

    address: str
    files: dict[str, int]
    kept: bool


def push(
    folder: str | Path,
    to: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    results: Sequence[str | Path] = (),
    dry_run: bool = False,
) -> Upload:
    """Upload a saved retriever.

    Args:
        folder: the retriever's.
        to: `user/name` of the repository, created where it does not exist.
        private: create it private.
        token: by default that of HF_TOKEN or `hf auth login`.
        revision: a branch, created where it does not exist; by default main.
        results: folders of measurements, for the card's metrics and its example of a chain.
        dry_run: send nothing and ask nothing.

    Raises:
        InputError: the folder is no finished retriever, or depends on a folder of this machine; the hub refuses.
    """
    folder = Path(folder)
    if "@" in to or not NAME.fullmatch(to):
        raise InputError(f"{to!r}: no name on the hub; give USER/NAME")
    facts = read_settings(folder)
    check_public(facts, folder)
    contents = own_files(folder, facts)
    # A card that a person wrote is sent as it is.
    card = folder / CARD_FILE
    if card.is_file() and not is_generated(card.read_text(encoding="utf-8")):
        if results:
            raise InputError(
                f"{card}: written or edited by hand, so that no results can be added; remove it, or give no results"
            )
        contents[CARD_FILE] = _inside(card, folder)
    else:
        measured, example = read_results(results)
        text = model_card(facts, to, read_runs(folder), measured, example)
        contents[CARD_FILE] = text.encode()
    if dry_run:
        return _upload(to, revision, contents, kept=False)
    with asking(to):
        kept = _send(to, contents, private, token, revision)
    return _upload(to, revision, contents, kept)


def _send(
    to: str,
    contents: dict[str, Path | bytes],
    private: bool,
    token: str | None,
    revision: str | None,
) -> bool:
    """Create the repository and commit the files -> whether a card of a person was kept."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="cir-cot")
    api.create_repo(to, private=private, exist_ok=True)
    if private and not api.model_info(to).private:
        raise InputError(
            f"{to}: is there already and public; give another name, or leave out --private"
        )
    if revision:
        api.create_branch(to, branch=revision, exist_ok=True)
    # What a person has written there stays.
    kept = _written_by_a_person(api, to, revision)
    if kept:
        del contents[CARD_FILE]
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    api.create_commit(
        to, operations, commit_message="Upload a cir-cot retriever", revision=revision
    )
    return kept


def _written_by_a_person(api: Any, to: str, revision: str | None) -> bool:
    """Tell whether the repository has a README.md that `model_card` did not write."""
    if not api.file_exists(to, CARD_FILE, revision=revision):
        return False
    path = api.hf_hub_download(to, CARD_FILE, revision=revision)
    return not is_generated(Path(path).read_text(encoding="utf-8"))


def _upload(to: str, revision: str | None, contents: dict[str, Path | bytes], kept: bool) -> Upload:
    """Describe what was sent."""
    from huggingface_hub import constants

    sizes = {}
    for name, content in contents.items():
        sizes[name] = len(content) if isinstance(content, bytes) else content.stat().st_size
    branch = f"/tree/{revision}" if revision else ""
    return Upload(f"{constants.ENDPOINT}/{to}{branch}", sizes, kept)


def check_public(facts: dict[str, Any], folder: Path) -> None:
    """Raise InputError where a retriever needs a checkpoint that only this machine has."""
    needed = [facts["backbone"], facts["settings"].get("target_encoder")]
    for name in needed:
        if name in (None, ".", TINY_BASE):
            continue
        if not NAME.fullmatch(name) or Path(name).exists():
            raise InputError(
                f"{folder}: needs {name!r}, a folder of this machine, which nobody else can load; "
                "train on a base of the hub, or push what cir-cot export merges"
            )


def own_files(folder: Path, facts: dict[str, Any]) -> dict[str, Path | bytes]:
    """Return {name: path or content} of the retriever's own files, without the card."""
    found: dict[str, Path | bytes] = {}
    for name in (*OWN, *_shards(folder)):
        if (folder / name).is_file():
            found[name] = _inside(folder / name, folder)
    # peft notes where the base lay on this machine.
    if ADAPTER_CONFIG in found:
        config = read_json(folder / ADAPTER_CONFIG)
        assert isinstance(config, dict), "an adapter that loads has an object here"
        config["base_model_name_or_path"] = facts["backbone"].partition("@")[0]
        found[ADAPTER_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    return found


def _shards(folder: Path) -> list[str]:
    """Return the names of the shards that the index of the weights lists."""
    index = folder / "model.safetensors.index.json"
    content = read_json(index) if index.is_file() else {}
    listed = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted({str(name) for name in (listed or {}).values()})
    for name in names:
        if not SHARD.fullmatch(name) or not (folder / name).is_file():
            raise InputError(
                f"{index}: lists {name!r}, which is no shard here; save the retriever again"
            )
    return names


def _inside(path: Path, folder: Path) -> Path:
    """Return a file's path; InputError for a link that leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: a link out of the folder; copy the file, or remove the link")
    return path
