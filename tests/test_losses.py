"""Closed forms of the losses, what their masks do, and which way their gradients point."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cir_cot.losses import (
    batch_statistics,
    choice_share,
    even_use,
    gather_counts,
    gather_with_grad,
    info_nce,
    load_balance,
    pool_pull,
    router_z,
    same_image,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_info_nce_of_zero_vectors_is_the_log_of_the_gallery(temperature):
    loss = info_nce(torch.zeros(3, 8), torch.zeros(7, 8), torch.tensor([0, 4, 6]), temperature)
    assert loss.item() == pytest.approx(math.log(7))


def test_info_nce_of_orthogonal_pairs_has_the_closed_form_of_its_temperature():
    loss = info_nce(torch.eye(4), torch.eye(4), torch.arange(4), 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.5)))


def test_info_nce_equals_the_sum_written_out():
    query, target, positives = unit(3, 5), unit(6, 5, seed=1), torch.tensor([2, 0, 5])
    rows = []
    for row, positive in enumerate(positives.tolist()):
        scores = [float(query[row] @ target[column]) / 0.1 for column in range(6)]
        rows.append(math.log(sum(math.exp(s) for s in scores)) - scores[positive])
    assert info_nce(query, target, positives, 0.1).item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_rows_with_one_target_image_are_not_negatives_of_each_other():
    ids = torch.tensor([7, 7, 9, 7])
    loss = info_nce(torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(4), 1.0, ids, ids)
    columns = [2, 2, 4, 2]  # what is left of four columns: the own one and those of other images
    assert loss.item() == pytest.approx(sum(math.log(c) for c in columns) / 4)


def test_identical_ids_leave_nothing_to_tell_apart():
    query, target, ids = unit(3, 4), unit(3, 4, seed=1), torch.tensor([5, 5, 5])
    assert info_nce(query, target, torch.arange(3), 0.02, ids, ids).item() == 0.0


def test_distinct_ids_change_nothing():
    query, target, ids = unit(3, 4), unit(3, 4, seed=1), torch.tensor([1, 2, 3])
    plain = info_nce(query, target, torch.arange(3), 0.1)
    assert torch.equal(plain, info_nce(query, target, torch.arange(3), 0.1, ids, ids))


def test_a_masked_column_gets_no_gradient_and_an_open_one_does():
    query, target = unit(2, 4), unit(3, 4, seed=1).requires_grad_()
    info_nce(
        query, target, torch.tensor([0, 0]), 0.1, torch.tensor([1, 1]), torch.tensor([1, 1, 2])
    ).backward()
    assert target.grad[1].abs().sum() == 0
    assert target.grad[0].abs().sum() > 0
    assert target.grad[2].abs().sum() > 0


def test_ids_of_one_side_only_are_refused():
    with pytest.raises(ValueError, match="one side only"):
        info_nce(unit(2, 4), unit(2, 4), torch.arange(2), 0.1, ids_query=torch.arange(2))


def test_info_nce_gradients_have_their_closed_form():
    query, target = unit(2, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_()
    temperature = torch.tensor(0.3, requires_grad=True)
    ids = torch.tensor([4, 5, 4, 6])  # the third column shows the first query's target again
    info_nce(query, target, torch.tensor([0, 1]), temperature, ids[:2], ids).backward()
    similarity = (query @ target.T).detach()
    shares = (
        (similarity / 0.3)
        .masked_fill(torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]).bool(), -torch.inf)
        .softmax(-1)
    )
    residual = (shares - torch.eye(2, 4)) / 2  # d loss / d logits
    torch.testing.assert_close(query.grad, residual @ target.detach() / 0.3)
    torch.testing.assert_close(target.grad, residual.T @ query.detach() / 0.3)
    torch.testing.assert_close(temperature.grad, -(residual * similarity).sum() / 0.3**2)


def test_info_nce_computes_in_float32():
    query, target = unit(2, 64), unit(8, 64, seed=1)
    low = info_nce(query.bfloat16(), target.bfloat16(), torch.arange(2), 0.02)
    assert low.dtype == torch.float32
    exact = info_nce(
        query.bfloat16().double().float(), target.bfloat16().double().float(), torch.arange(2), 0.02
    )
    assert torch.equal(low, exact)


def test_same_image_never_marks_the_positive():
    ids = torch.tensor([3, 3])
    mask = same_image(torch.tensor([0, 1]), ids, torch.tensor([3, 3, 4]), 3)
    assert mask.tolist() == [[False, True, False], [True, False, False]]


def test_batch_statistics_of_a_small_case():
    query = torch.eye(3)
    target = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0.9, 0.1]])
    stats = batch_statistics(query, target, torch.arange(3))
    assert stats["in_batch_r1"].item() == pytest.approx(
        2 / 3
    )  # the second query likes the third target better
    assert stats["positive_similarity"].item() == pytest.approx((1 + 0.6 + 0.1) / 3)
    assert stats["negative_similarity"].item() == pytest.approx((0.8 + 0 + 0 + 0.9 + 0 + 0) / 6)


def test_batch_statistics_do_not_flatter_constant_embeddings():
    same = torch.ones(4, 2)
    assert batch_statistics(same, same, torch.arange(4))["in_batch_r1"].item() == 0.0


def test_batch_statistics_leave_out_other_rows_of_the_same_image():
    ids, query = torch.tensor([1, 1, 2]), torch.eye(3)
    target = torch.stack([query[0], query[0], query[2]])  # rows 0 and 1 share their target
    stats = batch_statistics(query, target, torch.arange(3), ids, ids)
    assert stats["negative_similarity"].item() == 0.0
    assert stats["in_batch_r1"].item() == pytest.approx(
        2 / 3
    )  # row 1's own target scores 0, a tie with row 2's


def test_batch_statistics_without_any_negative():
    stats = batch_statistics(unit(1, 4), unit(1, 4), torch.tensor([0]))
    assert (stats["in_batch_r1"].item(), stats["negative_similarity"].item()) == (1.0, 0.0)


@pytest.mark.parametrize("k", [1, 2])
def test_load_balance_is_one_when_even_and_the_number_of_experts_when_collapsed(k):
    even = torch.full((8, 4), 0.25)
    spread = torch.stack([torch.roll(torch.arange(4), i)[:k] for i in range(8)])
    assert load_balance(even, spread).item() == pytest.approx(1.0)
    collapsed = F.one_hot(torch.zeros(8, dtype=torch.long), 4).float()
    assert load_balance(collapsed, torch.zeros(8, 1, dtype=torch.long)).item() == pytest.approx(4.0)


def test_load_balance_pushes_probability_off_the_crowded_expert():
    logits = torch.zeros(6, 3, requires_grad=True)
    load_balance(logits.softmax(-1), torch.tensor([[0], [0], [0], [0], [1], [2]])).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_even_use_is_zero_when_even_and_revives_what_is_never_used():
    assert even_use(torch.full((3, 4), 0.25)).item() == pytest.approx(0, abs=1e-6)
    assert even_use(torch.eye(4)).item() == pytest.approx(
        0, abs=1e-6
    )  # each row decides, all together are even
    halves = torch.tensor([[0.5, 0.25, 0.25]])
    expected = -(math.log(1.5) + 2 * math.log(0.75)) / 3
    assert even_use(halves).item() == pytest.approx(expected, rel=1e-5)
    logits = torch.tensor([[0.0, 0.0, -12.0]]).repeat(5, 1).requires_grad_()
    probabilities, chosen = logits.softmax(dim=1), torch.tensor([[0, 1]] * 5)
    (revived,) = torch.autograd.grad(even_use(probabilities), logits, retain_graph=True)
    (balanced,) = torch.autograd.grad(load_balance(probabilities, chosen), logits)
    assert revived[0, 2] < -0.05
    assert balanced[0, 2].abs() < 1e-4


def test_load_balance_counts_every_choice_of_a_row():
    probabilities, chosen = (
        torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]),
        torch.tensor([[0, 1], [1, 2]]),
    )
    shares, means = [1 / 4, 2 / 4, 1 / 4], [0.3, 0.45, 0.25]
    expected = 3 * sum(share * mean for share, mean in zip(shares, means, strict=True))
    assert load_balance(probabilities, chosen).item() == pytest.approx(expected)
    assert choice_share(chosen, 3).tolist() == shares


def test_even_use_of_a_part_without_any_probability_is_large_and_finite():
    never = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    loss = even_use(never)
    loss.backward()
    assert loss.item() == pytest.approx(-(2 * math.log(1.5) + math.log(1e-12)) / 3, rel=1e-5)
    assert never.grad.isfinite().all()


def test_router_z_is_the_mean_square_of_the_log_of_the_denominator():
    logits = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    expected = (math.log(2) ** 2 + math.log(math.e + math.exp(-2)) ** 2) / 2
    assert router_z(logits).item() == pytest.approx(expected, rel=1e-6)


def test_pool_pull_is_minus_one_on_aligned_keys_and_ignores_lengths():
    keys = torch.eye(3) * 5
    query = torch.tensor([[2.0, 0, 0], [0, 0, 0.1]])
    assert pool_pull(query, keys, torch.tensor([[0], [2]])).item() == pytest.approx(-1.0)
    assert pool_pull(query, keys, torch.tensor([[0, 1], [2, 1]])).item() == pytest.approx(-0.5)


def test_pool_pull_moves_chosen_keys_only():
    keys = unit(4, 6).requires_grad_()
    pool_pull(unit(2, 6, seed=1), keys, torch.tensor([[0, 1], [1, 0]])).backward()
    assert keys.grad[:2].abs().sum() > 0
    assert keys.grad[2:].abs().sum() == 0


def test_gathering_in_one_process_returns_the_very_rows():
    rows = unit(3, 4).requires_grad_()
    assert gather_with_grad(rows) is rows
    assert gather_counts(3, rows.device) == [3]
