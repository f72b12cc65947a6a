"""A saved retriever of which a file is damaged: refused in one line that names the place, or read rightly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file, save_file

from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.checkpoint import read_model_type
from cir_cot.models.tiny_qwen import write_tiny

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Two retrievers as training saves them: `full` with all weights, `lora` an adapter beside its base."""
    root = tmp_path_factory.mktemp("saved")
    base = write_tiny(root / "base", vocab_size=400, **tiny_training.SIZES)
    for name, lora in {"full": None, "lora": {"r": 4}}.items():
        CotRetriever(load_backbone(base, lora=lora), str(base), projection=16).save(root / name)
    return {name: root / name for name in ("full", "lora")}


def put(raw: bytes) -> Damage:
    return lambda path: path.write_bytes(raw)


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def key(name: str, value: object) -> Damage:
    """Set a key of a JSON file; a dotted name leads inwards."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        *way, last = name.split(".")
        place = content
        for step in way:
            place = place[step]
        place[last] = value
        path.write_text(json.dumps(content))

    return change


def tensors(change: Callable[[dict], object]) -> Damage:
    def changed(path: Path) -> None:
        stored = load_file(path)
        change(stored)
        save_file(stored, path, metadata={"format": "pt"})

    return changed


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Change the first tensor of a file."""

    def one(stored: dict) -> None:
        name = min(stored)
        stored[name] = change(stored[name])

    return tensors(one)


WEIGHTS = {
    "empty": put(b""),
    "text": put(b"hello"),
    "junk": put(bytes(range(256)) * 10),
    "header of 2^64": put(b"\xff" * 8 + b"{}"),
    "cut in half": cut(0.5),
    "cut at the end": cut(0.99),
    "gone": Path.unlink,
    "a folder": folder,
    "other tensors": tensors(lambda stored: [stored.clear(), stored.update(x=torch.zeros(1))]),
    "one less": tensors(lambda stored: stored.pop(min(stored))),
    "other shape": first(lambda value: torch.zeros(*(size + 1 for size in value.shape))),
}
OWN_WEIGHTS = WEIGHTS | {
    "one more": tensors(lambda stored: stored.update(more=torch.zeros(2))),
    "NaN": first(lambda value: torch.full_like(value, float("nan"))),
    "infinity": first(lambda value: torch.full_like(value, float("inf"))),
    "whole numbers": first(lambda value: value.int()),
}
TEXT = {
    "empty": put(b""),
    "junk": put(bytes(range(256))),
    "a list": put(b"[]"),
    "null": put(b"null"),
    "a number": put(b"3"),
    "utf-16": put("{}".encode("utf-16")),
    "deep": put(b"[" * 100_000),
    "cut in half": cut(0.5),
}
FILES = {
    ("full", "model.safetensors"): WEIGHTS,
    ("full", "head.safetensors"): OWN_WEIGHTS,
    ("lora", "adapter_model.safetensors"): OWN_WEIGHTS,
    ("full", "config.json"): TEXT | {
        "gone": Path.unlink,
        "a folder": folder,
        "no keys": put(b"{}"),
        "another model_type": key("model_type", "nope"),
        "model_type a number": key("model_type", 3),
        "no text_config": key("text_config", None),
        "text_config a list": key("text_config", []),
        "hidden_size text": key("text_config.hidden_size", "x"),
        "hidden_size negative": key("text_config.hidden_size", -4),
        "hidden_size other": key("text_config.hidden_size", 64),
        "vocab_size too small": key("text_config.vocab_size", 7),
        "no heads": key("text_config.num_attention_heads", 0),
        "rope unknown": key("text_config.rope_parameters", {"rope_type": "nope"}),
        "activation unknown": key("text_config.hidden_act", "nope"),
        "dtype unknown": key("text_config.dtype", "nope"),
        "patch_size 0": key("vision_config.patch_size", 0),
        "image_token_id text": key("image_token_id", "x"),
        "quantization a number": key("quantization_config", 3),
    },
    ("full", "processor_config.json"): TEXT | {
        "gone": Path.unlink,
        "a folder": folder,
        "class unknown": key("processor_class", "Nope"),
        "class a number": key("processor_class", 3),
        "image processor a list": key("image_processor", []),
        "image processor unknown": key("image_processor.image_processor_type", "Nope"),
        "size a number": key("image_processor.size", 3),
        "size of text": key("image_processor.size", {"shortest_edge": "x", "longest_edge": 4}),
        "patch_size 0": key("image_processor.patch_size", 0),
        "merge_size text": key("image_processor.merge_size", "x"),
        "mean text": key("image_processor.image_mean", "x"),
    },
    ("full", "tokenizer.json"): TEXT | {
        "gone": Path.unlink,
        "a folder": folder,
        "no keys": put(b"{}"),
        "no model": key("model", None),
        "model unknown": key("model.type", "Nope"),
        "no words": key("model.vocab", {}),
        "merges a number": key("model.merges", 3),
        "no added tokens": key("added_tokens", None),
        "added token without text": key("added_tokens", [{"id": 5}]),
        "version a number": key("version", 9),
    },
    ("full", "tokenizer_config.json"): TEXT | {
        "class a number": key("tokenizer_class", 3),
        "length text": key("model_max_length", "x"),
        "padding a number": key("pad_token", 3),
    },
    ("full", "chat_template.jinja"): {
        "empty": put(b""),
        "junk": put(bytes(range(256))),
        "gone": Path.unlink,
        "a folder": folder,
        "not closed": put(b"{% for x"),
        "undefined": put(b"{{ nope.nope.nope }}"),
        "raises": put(b"{{ raise_exception('x') }}"),
        "reaches out": put(b"{{ ''.__class__.__mro__ }}"),
        "without the text": put(b"<|image_pad|>"),
        "without the picture": put(b"{{ messages[0].content[1].text }}"),
    },
    ("lora", "adapter_config.json"): TEXT | {
        "gone": Path.unlink,
        "a folder": folder,
        "no keys": put(b"{}"),
        "another type": key("peft_type", "IA3"),
        "rank text": key("r", "x"),
        "rank 0": key("r", 0),
        "rank 8": key("r", 8),
        "rank of gigabytes": key("r", 10**13),
        "alpha null": key("lora_alpha", None),
        "no such layer": key("target_modules", "nope"),
        "no expression": key("target_modules", "("),
        "layers a number": key("target_modules", 3),
        "rows a number": key("trainable_token_indices", 3),
        "row of another base": key("trainable_token_indices", {"embed_tokens": [1]}),
        "dropout 7": key("lora_dropout", 7),
        "bias unknown": key("bias", "nope"),
        "task unknown": key("task_type", "nope"),
    },
    ("full", "retriever.json"): TEXT | {
        "gone": Path.unlink,
        "a folder": folder,
        "no keys": put(b"{}"),
        "a key twice": put(b'{"format": 1, "format": 1}'),
        "format 2": key("format", 2),
        "format true": key("format", True),
        "kind unknown": key("kind", "nope"),
        "another kind": key("kind", "prompt_pool"),
        "kind clip": key("kind", "clip"),
        "base with NUL": key("backbone", "a\0b"),
        "base of 5,000 letters": key("backbone", "x" * 5000),
        "frozen text": key("frozen", "x"),
        "dim text": key("dim", "x"),
        "dim other": key("dim", 7),
        "settings a list": key("settings", []),
        "setting unknown": key("settings.nope", 3),
        "readout unknown": key("settings.readout", "nope"),
        "projection text": key("settings.projection", "x"),
        "projection negative": key("settings.projection", -1),
        "projection of petabytes": key("settings.projection", 10**13),
        "projection other": key("settings.projection", 8),
        "temperature text": key("settings.temperature", "x"),
        "temperature 0": key("settings.temperature", 0),
        "length 0": key("settings.max_new_tokens", 0),
        "dropout 7": key("settings.chain_dropout", 7),
        "threshold text": key("settings.threshold", "x"),
        "encoder a number": key("settings.target_encoder", 3),
        "prompts of another version": key("prompts", "0"),
    },
}  # fmt: skip
CASES = {f"{file}: {what}": (*place, damage) for place, kinds in FILES.items() for what, damage in kinds.items()
         for file in place[1:]}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # of the libraries, on what they are given
def test_a_damaged_file_is_refused_in_one_line(saved, tmp_path, case):
    kind, name, damage = CASES[case]
    shutil.copytree(saved[kind], tmp_path / "run")
    damage(tmp_path / "run" / name)
    with pytest.raises(InputError) as error:
        load_retriever(tmp_path / "run", device="cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 6000


@pytest.mark.parametrize("value", [[], {}, None, 3])
def test_a_part_of_config_json_that_is_empty_or_no_object_is_named(tmp_path, value):
    config = {"model_type": "qwen2_5_vl", "vision_config": value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="vision_config of config.json is .*; restore the file"):
        read_model_type(str(tmp_path))


READ = {
    "half precision": ("lora", "adapter_model.safetensors", tensors(
        lambda stored: stored.update({name: value.half() for name, value in stored.items()}))),
    "half precision of the head": ("full", "head.safetensors", first(lambda value: value.half())),
    "no generation_config.json": ("full", "generation_config.json", Path.unlink),
    "generation_config.json cut": ("full", "generation_config.json", cut(0.5)),
    "a key that nobody reads": ("full", "retriever.json", key("note", "mine")),
    "a remote class that is not loaded": ("full", "config.json", key("auto_map", {"AutoConfig": "evil.py"})),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
@pytest.mark.filterwarnings("ignore")
def test_a_harmless_change_is_read_rightly(saved, tmp_path, case):
    kind, name, damage = READ[case]
    shutil.copytree(saved[kind], tmp_path / "run")
    damage(tmp_path / "run" / name)
    picture = [tiny_training.Pictures().load("red-blue")]
    plain, changed = (
        load_retriever(path, device="cpu").encode_target(picture)
        for path in (saved[kind], tmp_path / "run")
    )
    torch.testing.assert_close(changed, plain, atol=2e-3, rtol=0)
