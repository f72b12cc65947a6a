"""benchmarks/heads.py: its rows are runnable, it goes on where it stopped, its table and plot say what was measured."""

import importlib
import importlib.util
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cir_cot.cli import COMMANDS
from cir_cot.errors import InputError
from cir_cot.heads.combiners import DenseCombiner, MoeCombiner, count_parameters
from cir_cot.profiling.head_rows import dense_widths
from cir_cot.training.arguments import CirArguments
from cir_cot.training.parsing import parse_arguments
from cir_cot.webpage import scatter

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "heads.py"
spec = importlib.util.spec_from_file_location("heads_benchmark", SCRIPT)
heads = importlib.util.module_from_spec(spec)
spec.loader.exec_module(heads)
TINY = ["--references", "2", "--test-references", "2", "--queries", "8", "--minutes", "0.01"]


def result(row: str, seed: int, recall: float, **more) -> dict:
    metrics = {"R@1": recall, "R@10": 2 * recall}
    cost = {"minutes": 9.9, "parameters": 2_500_000, "flops": 3e8, "latency_ms": 12.3}
    return {"row": row, "seed": seed, "iid": metrics, "novel": metrics, **cost, **more}


def arguments_of(command: str) -> type[CirArguments]:
    """The recipe's own kind of arguments, which its script defines or imports."""
    module = importlib.import_module(COMMANDS[command])
    kinds = [v for v in vars(module).values() if isinstance(v, type)]
    return max(
        (kind for kind in kinds if issubclass(kind, CirArguments)), key=lambda kind: len(kind.mro())
    )


@pytest.mark.parametrize("name", heads.STAGES)
def test_every_stage_is_a_recipe_with_arguments_it_knows(name):
    stage = heads.STAGES[name]
    words = stage.options.format(out="out", configs=heads.CONFIGS, sum="sum").split()
    parse_arguments(
        arguments_of(stage.command), [*words, "--model", "m", "--root", "r", "--output_dir", "o"]
    )
    parts, start = stage.part, stage.start
    while start in heads.STAGES:
        parts, start = parts + heads.STAGES[start].part, heads.STAGES[start].start
    assert start in ("qwen", "clip")
    assert parts == pytest.approx(1) or name in ("half", "chains")


def test_every_row_asks_a_stage():
    assert {stage for stage, _ in heads.ROWS.values()} == heads.STAGES.keys() - {"half", "chains"}
    assert len({heads.slug(row) for row in heads.ROWS}) == len(heads.ROWS)


def test_dense_widths_give_equal_parameters_and_equal_active_ones():
    dim = 64
    sizes = dim, 4 * dim, 8 * dim
    whole = count_parameters(lambda: MoeCombiner(*sizes, 4, 2, False, "learned"))
    active = count_parameters(lambda: MoeCombiner(*sizes, 2, 2, False, "learned"))
    dense = {
        name: count_parameters(lambda hidden=hidden: DenseCombiner(dim, 4 * dim, hidden))
        for name, hidden in dense_widths(dim).items()
    }
    assert dense["parameters"] == pytest.approx(whole, rel=2e-3)
    assert dense["compute"] == pytest.approx(active, rel=2e-3)
    assert dense["compute"] < dense["parameters"]


def test_what_is_done_is_not_done_again_and_the_table_grows(tmp_path, capsys):
    rows = list(heads.ROWS)[:2]
    for row in rows:
        for seed, recall in enumerate((10.0, 20.0)):
            heads.write_json(
                tmp_path / "results" / f"{heads.slug(row)}.{seed}.json", result(row, seed, recall)
            )
    heads.write_json(tmp_path / "results" / "x.json", result(rows[0], 2, 30.0))
    everything = tmp_path / "all.json"
    call = [
        "--out",
        str(tmp_path),
        "--seeds",
        "2",
        "--rows",
        *rows,
        "--json",
        str(everything),
        *TINY,
    ]
    assert heads.main(call) == 0  # nothing is trained
    assert "20.0 ± 10.0" in capsys.readouterr().out
    table = (tmp_path / "heads.md").read_text()
    assert (
        f"| {rows[0]} | 3 | 20.0 ± 10.0 | 40.0 ± 20.0 | 20.0 ± 10.0 | 40.0 ± 20.0 | 9.9 | 2.50 | 0.300 | 12.3 |"
        in table
    )
    assert f"| {rows[1]} | 2 | 15.0 ± 7.1 |" in table
    assert "8 queries a split" in table
    assert len(json.loads(everything.read_text())["results"]) == 5
    drawn = ET.parse(tmp_path / "heads.svg")
    assert len(drawn.findall("{*}circle")) == 2
    with pytest.raises(InputError, match="begun with references 2, not 3"):
        heads.main(["--out", str(tmp_path), *TINY, "--references", "3"])


def test_no_time_is_refused(tmp_path):
    with pytest.raises(InputError, match="minutes 0.0"):
        heads.main(["--out", str(tmp_path), "--minutes", "0"])
    assert not (tmp_path / "scenes").exists()


def test_a_scatter_plot_places_points_by_the_logarithm_of_their_cost():
    root = ET.fromstring(
        scatter([("a <b>", 0.01, 0), ("c", 1, 100), ("d", 0.1, 50)], "cost", "recall")
    )
    x, y = zip(
        *((float(c.get("cx")), float(c.get("cy"))) for c in root.findall("{*}circle")), strict=True
    )
    assert x[2] == pytest.approx((x[0] + x[1]) / 2)
    assert y[2] == pytest.approx((y[0] + y[1]) / 2)
    assert y[0] > y[2] > y[1]
    assert "1 a <b>" in [text.text for text in root.findall("{*}text")]


@pytest.mark.slow
def test_a_tiny_sweep_from_nothing_to_the_table(tmp_path):
    rows = ["Qwen, one pass, no pool", "prompt pool, M 10, L 2", "MoE improved", "text only"]
    assert heads.main(["--out", str(tmp_path), "--seeds", "1", "--rows", *rows, *TINY]) == 0
    found = {r["row"]: r for r in heads.read_results(tmp_path)}
    assert set(found) == set(rows)
    assert found["MoE improved"]["flops"] < found["Qwen, one pass, no pool"]["flops"]
    assert found["Qwen, one pass, no pool"]["flops"] < found["prompt pool, M 10, L 2"]["flops"]
    assert all(r["latency_ms"] > 0 and r["parameters"] > 0 for r in found.values())
