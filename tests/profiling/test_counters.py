"""Counts against closed forms."""

import gc
import json
import time

import pytest
import torch

from cir_cot.peak_bytes import PeakBytes, peak_bytes
from cir_cot.profiling.counters import flops, seconds, write_ratios

KB = 256  # float32 numbers in a KiB


def test_flops_of_a_product_and_its_gradients():
    a, b = torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    assert flops(lambda: a @ b) == 2 * 8 * 16 * 4
    assert flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 8 * 16 * 4


def test_peak_counts_what_is_alive_together_and_views_once():
    def one_after_another():
        for _ in range(5):
            torch.zeros(KB).view(2, -1).t()

    def together():
        kept = [torch.zeros(KB) for _ in range(5)]
        del kept

    gc.collect()
    assert peak_bytes(one_after_another) == 1024
    assert peak_bytes(together) == 5 * 1024
    old = torch.zeros(KB)
    assert peak_bytes(lambda: old.view(2, -1).t()) == 0, "it was there before"


def test_the_peak_is_the_most_and_not_the_last():
    def large_then_small():
        torch.zeros(4 * KB)
        torch.zeros(KB)

    assert peak_bytes(large_then_small) == 4 * 1024


def test_peak_sees_the_backward_pass():
    weight = torch.randn(KB, 1, requires_grad=True)
    assert peak_bytes(lambda: (torch.ones(1, KB) @ weight).sum().backward()) >= 2 * 1024


def test_sides_are_measured_in_turn_after_a_warm_up():
    calls = []
    found = seconds(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        2,
        lambda: calls.append("-"),
    )
    assert calls == ["-", "a", "-", "b"] * 3
    assert set(found) == {"a", "b"}


def test_the_warm_up_is_not_timed_and_the_median_is(monkeypatch):
    clock, lasting = [0.0], iter([100.0, 1.0, 9.0, 2.0])

    def work():
        clock[0] += next(lasting)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert seconds({"a": work}, 3) == {"a": 2.0}


def test_ratios_are_written_with_versions(tmp_path):
    table = write_ratios(
        tmp_path / "x.json",
        "x",
        {"bytes": 1000},
        {"bytes": 4000},
        {"bytes": 4.0},
        settings={"n": 1},
    )
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["ratio"] == {"bytes": pytest.approx(4.0)}
    assert found["settings"] == {"n": 1}
    assert found["versions"]["torch"]
    assert "4,000" in table
    assert "4.000" in table


def test_a_storage_that_is_emptied_and_filled_again_counts_what_it_holds():
    """FSDP does so with the weights that it gathers."""
    with PeakBytes() as meter:
        first = torch.empty(1000)
        first.untyped_storage().resize_(0)
        torch.empty(1000)
        assert meter.peak == 4000
        first.untyped_storage().resize_(8000)
        assert meter.peak == 8000
    assert torch.UntypedStorage.resize_ is meter._resize
