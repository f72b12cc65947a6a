"""benchmarks/fullsize.py: every case runs at a tiny size, is written at once and kept; what the roofline counts."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from cir_cot.errors import InputError
from cir_cot.profiling.device_meter import count_waits, kind_of, summarise, trace
from cir_cot.profiling.qwen_sizes import published_config
from cir_cot.profiling.roofline import Card, Costs, costs
from cir_cot.profiling.synthetic import PHOTOGRAPHS, SyntheticPairs

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fullsize.py"
spec = importlib.util.spec_from_file_location("fullsize_benchmark", SCRIPT)
fullsize = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fullsize)
TINY = "--size tiny --batches 2 --chunk-tokens 600 60 --plain-batches 2 --chains 2 --pictures 2"
TINY += " --words 6 --new-tokens 4 --steps 1 --max-pixels 3136"
CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_case_runs_and_is_kept(tmp_path, capsys):
    out = tmp_path / "cases.json"
    options = [*TINY.split(), "--out", str(out)]
    fullsize.main(options)
    found = json.loads(out.read_text())
    assert list(found["cases"]) == [
        "tiny decoding, adapter apart, 2 rows",
        "tiny training, 2 rows, chunks of 600",
        "tiny training, 2 rows, chunks of 60",
        "tiny decoding, merged, 2 rows",
        "tiny decoding, transformers' generate, 2 rows",
        "tiny encoding, 2 pictures",
        "tiny encoding, transformers' forward, 2 pictures",
        "tiny training, transformers and peft, 2 rows",
    ]
    printed = capsys.readouterr().out
    for name, case in found["cases"].items():
        assert name in printed
        assert case["rows"] == 2
        assert case["tokens"] > 2
        assert all(
            math.isfinite(value) and value > 0
            for value in (case["seconds"], case["share"], case["peak_gib"])
        )
    plain, cached = (
        found["cases"][f"tiny training, 2 rows, chunks of {size}"] for size in (600, 60)
    )
    assert plain["traced_kernels"] > 0
    assert "traced_kernels" not in cached
    assert (
        cached["roofline_seconds"] > 1.2 * plain["roofline_seconds"]
    )  # every row is encoded once more
    out.write_text(
        json.dumps(found | {"cases": {name: {"out_of_memory": True} for name in found["cases"]}})
    )
    fullsize.main(options)
    assert all(
        case == {"out_of_memory": True} for case in json.loads(out.read_text())["cases"].values()
    )
    with pytest.raises(InputError, match="measured with other settings"):
        fullsize.main([*options, "--words", "7"])


def test_a_case_that_is_out_of_memory_is_written_and_the_next_one_measured(
    tmp_path, monkeypatch, capsys
):
    def too_much(head, rows, given):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(fullsize, "encode", too_much)
    fullsize.main([*TINY.split(), "--parts", "encoding", "--out", str(tmp_path / "cases.json")])
    first, second = json.loads((tmp_path / "cases.json").read_text())["cases"].values()
    assert first == {"out_of_memory": True}
    assert second["rows"] == 2
    assert "out of memory" in capsys.readouterr().out


def test_no_case_begins_behind_the_time_limit(tmp_path):
    fullsize.main([*TINY.split(), "--limit", "0", "--out", str(tmp_path / "cases.json")])
    assert json.loads((tmp_path / "cases.json").read_text())["cases"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_full_depth_is_refused_without_a_gpu(tmp_path):
    with pytest.raises(InputError, match="no GPU here"):
        fullsize.main(["--size", "7B", "--out", str(tmp_path / "cases.json")])


def test_the_costs_of_7b_are_those_of_its_published_size():
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(published_config("7B")).to(
            torch.bfloat16
        )
    found = costs(model)
    assert found.blocks == 28 * (
        3584 * (2 * 3584 + 2 * 512 + 3 * 18944) + 3584 + 2 * 512 + 2 * 3584
    )
    assert found.words == 152064 * 3584
    assert found.tower == pytest.approx(0.643e9, rel=0.01)
    assert (found.width, found.cached) == (2, 57344)  # 28 layers, 4 heads of 128, keys and values


def test_a_step_costs_what_its_passes_cost():
    price = Costs(blocks=10, words=3, tower=5, width=2, cached=7)
    assert price.training(100, 20, 30, 1, recompute=False) == (
        2 * 10 * 100 * 2 + 6 * 3 * 20 + 2 * 5 * 30,
        2 * 10 * 2,
    )
    assert price.training(100, 0, 0, 4, recompute=True) == (2 * 10 * 100 * 4, 2 * 10 * 4 * 4)
    assert price.encoding(100, 30) == (2 * 10 * 100 + 2 * 5 * 30, 2 * 15)
    assert price.writing(8, 50) == (2 * 13 * 8, 2 * 13 + 7 * 8 * 50)
    card = Card(flops=100, bandwidth=10)
    assert (card.seconds(1000, 10), card.seconds(100, 1000)) == (10, 100)


def test_kernels_are_summed_by_kind_and_name():
    event = {"cat": "kernel", "name": "nvjet_tst_128x256", "dur": 2e6}
    events = [
        event,
        event,
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 1e6},
        {"cat": "cuda_runtime", "dur": 9},
    ]
    found = summarise(events, 10.0)
    assert (found["kernels"], found["kernel_seconds"], found["busy"]) == (3, 5.0, 0.5)
    assert found["kinds"] == {
        "matrix products": {"count": 2, "seconds": 4.0},
        "copies": {"count": 1, "seconds": 1.0},
    }
    assert found["longest"][0] == {"name": "nvjet_tst_128x256", "count": 2, "seconds": 4.0}
    assert kind_of("fmha_cutlassF_bf16_aligned_64x128") == "attention"
    assert kind_of("vectorized_elementwise_kernel") == "elementwise and others"


def test_operators_are_recorded_and_nothing_waits_on_a_cpu():
    with trace(CPU) as found, count_waits(CPU) as waits:
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert found["kinds"]["matrix products"]["count"] >= 1
    assert found["longest"]
    assert not waits


def test_noise_pairs_have_the_sizes_that_they_are_given():
    pairs = SyntheticPairs(9, PHOTOGRAPHS)
    assert [pairs[index, 0].reference.size for index in range(9)] == [*PHOTOGRAPHS, PHOTOGRAPHS[0]]
    assert SyntheticPairs(1, 28)[0, 0].target.size == (28, 28)
