"""What is measured between two logs: means over what was counted, and nothing of the time before."""

import pytest
import torch

from cir_cot.training.step_metrics import StepMetrics, supervised_tokens


class Alone:
    """What of an Accelerator a single process needs."""

    def reduce(self, value, how):
        assert how == "sum"
        return value

    def gather(self, value):
        return value


def test_means_weigh_what_they_are_means_of_and_start_anew_after_each_log():
    metrics = StepMetrics(torch.device("cpu"))
    metrics.add("loss", torch.tensor(2.0, requires_grad=True), 1)
    metrics.add("loss", 5.0, 3)
    metrics.add("none", 7.0, 0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    metrics.count_tokens({"attention_mask": mask}, None, {"features": torch.zeros(4, 2)})
    found = metrics.reduce_and_reset(Alone())
    assert found["loss"] == pytest.approx((2 + 3 * 5) / 4)
    assert "none" not in found
    assert "tokens" not in found
    assert found["peak_memory_mb"] > 50
    metrics.add("loss", 1.0, 2)
    metrics.since = 0.0  # so long ago that the rate of these tokens is nearly none
    metrics.count_tokens({"attention_mask": mask})
    again = metrics.reduce_and_reset(Alone())
    assert again["loss"] == pytest.approx(1)
    assert 0 < again["tokens_per_second"] < found["tokens_per_second"]


def test_the_first_position_of_a_row_is_predicted_from_nothing_and_not_counted():
    labels = torch.tensor([[5, -100, 7], [-100, 3, 4]])
    assert supervised_tokens({"labels": labels}) == 3
    assert (
        supervised_tokens({"parts": [{"labels": labels}, {"query": {}}, {"labels": labels[:1]}]})
        == 4
    )
