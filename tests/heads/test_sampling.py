"""Tokens that are drawn: as the softmax says, the same in every batch and process, greedy towards temperature 0."""

import pytest
import torch
from test_decoding import asked, wild_head

from cir_cot.errors import InputError
from cir_cot.heads.sampling import Sampling, greedy, gumbel, hash_of

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])


def drawn(count: int, temperature: float = 1.0) -> torch.Tensor:
    """The first token of `count` rows with the same logits."""
    sampling = Sampling(temperature, range(count))
    rows = [(number, 0) for number in range(count)]
    return sampling(LOGITS.expand(count, -1), 5, rows)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    count = 20_000
    order = drawn(count, temperature)
    assert (order.sort(dim=1).values == torch.arange(5)).all(), "no token comes twice"
    wanted = (LOGITS[0] / temperature).softmax(0)
    shares = torch.bincount(order[:, 0], minlength=5) / count
    # Five standard deviations.
    assert ((shares - wanted).abs() <= 5 * (wanted * (1 - wanted) / count).sqrt()).all()
    # The second one is a draw among the rest (here: after the likeliest token).
    rest = wanted[1:] / wanted[1:].sum()
    second = order[order[:, 0] == 0, 1] - 1
    shares = torch.bincount(second, minlength=4) / len(second)
    assert ((shares - rest).abs() <= 5 * (rest * (1 - rest) / len(second)).sqrt()).all()


def test_towards_temperature_0_the_likeliest_tokens_come_first():
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    cold = Sampling(1e-6, range(50))(logits, 8, [(row, 0) for row in range(50)])
    assert torch.equal(cold, greedy(logits, 8))
    with pytest.raises(InputError, match="temperature 0"):
        Sampling(0, [1])


def test_noise_is_even_and_depends_on_row_place_and_token():
    hashes = hash_of(torch.arange(100_000))
    assert hashes.unique().numel() == 100_000
    ones = torch.stack([(hashes >> bit) & 1 for bit in range(64)]).double().mean(dim=1)
    assert ((ones - 0.5).abs() < 0.01).all()
    assert gumbel(hashes).mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert gumbel(torch.tensor([2**63 - 1, -(2**63), 0, -1])).isfinite().all()
    flat = torch.zeros(1, 64)
    sampling = Sampling(1.0, [5, 6, 5])
    first, other, same = (sampling(flat, 8, [(row, 0)]).tolist() for row in range(3))
    assert first == same
    assert first != other
    assert first != sampling(flat, 8, [(0, 1)]).tolist()


@pytest.mark.parametrize("places", [1, 3])
def test_drawn_chains_do_not_depend_on_batch_and_order(places):
    head = wild_head()
    images, texts = asked()
    seeds = [11, 12, 13, 14, 15, 16]
    whole = head.sample_query(images, texts, Sampling(1.5, seeds))
    head.batch_size = places
    turned = head.sample_query(images[::-1], texts[::-1], Sampling(1.5, seeds[::-1]))
    assert turned.explanations == whole.explanations[::-1]
    assert torch.allclose(turned.embeddings.flip(0), whole.embeddings, atol=1e-5)
    other = head.sample_query(images, texts, Sampling(1.5, [1, 2, 3, 4, 5, 6]))
    assert other.explanations != whole.explanations
    cold = head.sample_query(images, texts, Sampling(1e-6, seeds))
    assert cold.explanations == head.encode_query(images, texts).explanations
