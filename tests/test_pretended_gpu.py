"""Training, decoding and encoding on a device that refuses mixes with the host and counts the host's reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Reads in a plain training step, whatever its number of rows: 27 before, and ten more a row.
STEP = {"qwen2_vl": 17, "qwen2_5_vl": 19, "qwen3_vl": 29}
# Reads a chunk of a cached step: two passes over both sides, and the keys of the vision cache.
CHUNK = {"qwen2_vl": 32, "qwen2_5_vl": 34, "qwen3_vl": 48}


@pytest.fixture(scope="module")
def runs():
    # In a process of its own: the device is registered for good.
    command = [sys.executable, str(HERE / "pretended_runs.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def reads(run):
    return sum(run["reads"].values())


def test_a_mix_of_devices_a_product_in_float32_and_a_read_are_noticed(runs):
    faults = runs["faults"]
    assert "add of tensors on gpu:0 and on the host (3,)" in faults["mix"]
    assert sum(faults["float32"].values()) == 1  # of two, one under autocast
    assert faults["read"] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("run", ["lora, plain", "full, plain", "lora, chunks"])
def test_a_step_stays_on_the_device(runs, family, run):
    found = runs[family][run]
    # Autocast reaches every product but the loss's similarities and their gradients.
    assert {place.split(":")[0] for place in found["float32"]} == {"cir_cot/losses.py", "elsewhere"}
    assert sum(found["float32"].values()) == 4
    assert found["gradients"] == ["torch.float32"]
    assert found["without_gradient"] == 0
    if run.endswith("plain"):
        assert 0 < reads(found) <= STEP[family]
    else:
        assert found["chunks"] > 2
        assert reads(found) <= CHUNK[family] * found["chunks"]
        assert found["loss"] == pytest.approx(runs[family]["lora, plain"]["loss"], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_and_encoding_read_what_they_need(runs, family):
    # The candidates of a step, and whether its mask has gaps.
    assert reads(runs[family]["decode"]) == 2
    assert reads(runs[family]["encode"]) <= 10
    for name in ("decode", "encode"):
        assert runs[family][name]["float32"] == {}
        assert runs[family][name]["finite"]
        assert runs[family][name]["device"] == "cpu"
