"""Settings that cannot work together are refused with their reason, before anything is loaded."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DistributedType

from cir_cot.errors import InputError
from cir_cot.training.arguments import CirArguments
from cir_cot.training.distributed import refuse_impossible, shards_parameters, zero_stage

CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"


def asked(stage: int = 0, kind: DistributedType = DistributedType.MULTI_GPU, **options):
    """What transformers and accelerate know of a launch; the real objects need DeepSpeed or several processes."""
    known = {"fsdp": None, "use_cpu": False, "world_size": 8, "fp16": False}
    plugin = SimpleNamespace(zero_stage=stage) if stage else None
    return SimpleNamespace(
        deepspeed_plugin=plugin,
        distributed_state=SimpleNamespace(distributed_type=kind),
        **known | options,
    )


REFUSED = {
    "nf4 under ZeRO-3": ({"stage": 3}, {"quantization": "nf4"}, "ZeRO-3: packed"),
    "nf4 under FSDP": ({"fsdp": True}, {"quantization": "nf4"}, "FSDP: packed"),
    "nf4 in fp16": ({"fp16": True}, {"quantization": "nf4"}, "use --bf16"),
    "features under ZeRO-3": ({"stage": 3}, {"vision_cache": True}, "wait forever"),
    "features under FSDP": ({"fsdp": True}, {"vision_cache": True}, "wait forever"),
    "features of a tower that trains": (
        {},
        {"vision_cache": True, "trains_vision": True},
        "out of date",
    ),
    "FSDP on CPUs": ({"fsdp": True, "kind": DistributedType.MULTI_CPU}, {}, "several accelerators"),
    "FSDP in one process": ({"fsdp": True, "kind": DistributedType.NO}, {}, "several accelerators"),
}


@pytest.mark.parametrize(("launch", "wanted", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(launch, wanted, reason):
    with pytest.raises(InputError, match=reason):
        refuse_impossible(asked(**launch), **wanted)


ALLOWED = {
    "nf4 under DDP": ({}, {"quantization": "nf4"}),
    "nf4 under ZeRO-2": ({"stage": 2}, {"quantization": "nf4"}),
    "a tower that trains under ZeRO-3": ({"stage": 3}, {"trains_vision": True}),
    "features under ZeRO-2": ({"stage": 2}, {"vision_cache": True}),
    "FSDP": ({"fsdp": True}, {}),
}


@pytest.mark.parametrize(("launch", "wanted"), ALLOWED.values(), ids=ALLOWED)
def test_allowed(launch, wanted):
    refuse_impossible(asked(**launch), **wanted)


def test_who_shards_parameters():
    assert [shards_parameters(asked(stage)) for stage in (0, 2, 3)] == [False, False, True]
    assert shards_parameters(asked(fsdp=True))
    assert zero_stage(asked()) == 0


def test_accelerate_launch_asks_for_fsdp_before_any_model_is_there(monkeypatch):
    """Its own state says "several GPUs" until an Accelerator exists: too late to refuse anything."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP: packed"):
        refuse_impossible(asked(), quantization="nf4")


def test_a_recipe_refuses_on_its_own(tmp_path):
    with pytest.raises(InputError, match="chunk_tokens must be positive"):
        CirArguments(output_dir=str(tmp_path), chunk_tokens=-1)
    assert not CirArguments(output_dir=str(tmp_path)).shards_parameters


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_configs(path):
    """accelerate itself reads them; each says how many processes, and names files that exist."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == content["num_processes"] >= 1
    if "deepspeed_config" in content:
        assert (
            CONFIGS.parent.parent / content["deepspeed_config"]["deepspeed_config_file"]
        ).is_file()
