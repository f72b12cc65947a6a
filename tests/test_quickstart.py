"""The quickstart, cut short: every step runs, and summary.json has the form that users rely on."""

import json

import pytest

from cir_cot.cli import main
from cir_cot.heads import load_retriever

READINGS = {"full", "fast", "oracle", "no_chain", "image_only", "text_only"}


@pytest.mark.slow
def test_quickstart_ends_with_a_summary_a_model_and_a_report(tmp_path):
    arguments = ["--references", "20", "--test-references", "20", "--queries", "30", "--max-steps", "2"]
    assert main(["quickstart", "--out", str(tmp_path), *arguments]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {
        *("iid", "novel", "exact_conclusion", "gallery", "queries", "minutes", "peak_memory_mb", "device")
    }
    for split in ("iid", "novel"):
        assert set(summary[split]) == READINGS
        assert all(set(metrics) == {"R@1", "R@5", "R@10"} for metrics in summary[split].values())
        result = json.loads((tmp_path / "results" / split / "full" / "results.json").read_text())
        assert result["protocol"]["reference"] == "removed"
        assert result["metrics"]["R@1"] == pytest.approx(summary[split]["full"]["R@1"], abs=0.01)
    assert summary["gallery"] == 20 * 17
    assert summary["queries"] == 30
    assert load_retriever(tmp_path / "model").dim == 192
    assert "<img" in (tmp_path / "report.html").read_text()
