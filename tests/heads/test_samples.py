"""Several chains a query: the mean of their unit vectors, and how far they agree."""

import pytest
import torch
from test_decoding import asked, wild_head
from torch.nn import functional
from toy_retriever import Toy

from cir_cot.errors import InputError
from cir_cot.heads.samples import SampledReader, with_samples
from cir_cot.heads.sampling import Sampling


def test_the_vector_is_the_mean_of_the_likeliest_and_the_drawn_chains():
    head = wild_head()
    images, texts = asked()
    reader = SampledReader(head, 3, temperature=1.5, seed=4)
    out = reader.encode_query(images, texts)
    first = head.encode_query(images, texts)
    vectors = [first.embeddings]
    for number in (1, 2):
        seeds = [reader._seed_of(*query, number) for query in zip(images, texts, strict=True)]
        vectors.append(head.sample_query(images, texts, Sampling(1.5, seeds)).embeddings)
    mean = sum(vectors) / 3
    assert torch.allclose(out.embeddings, functional.normalize(mean, dim=-1), atol=1e-6)
    assert out.agreement == pytest.approx(mean.norm(dim=-1).tolist(), abs=1e-6)
    assert all(0 < agreement < 1 for agreement in out.agreement)
    assert out.explanations == first.explanations
    assert out.flags == first.flags


def test_one_chain_and_chains_that_are_all_the_likeliest_agree_fully():
    head = wild_head()
    images, texts = asked(2)
    alone = SampledReader(head, 1).encode_query(images, texts)
    assert torch.allclose(alone.embeddings, head.encode_query(images, texts).embeddings, atol=1e-6)
    cold = SampledReader(head, 3, temperature=1e-6).encode_query(images, texts)
    assert torch.allclose(cold.embeddings, alone.embeddings, atol=1e-5)
    assert cold.agreement == pytest.approx([1, 1], abs=1e-5)
    fast = SampledReader(head, 3).encode_query(images, texts, "fast")
    assert fast.agreement == pytest.approx([1, 1], abs=1e-5)


def test_draws_depend_on_query_number_and_seed_alone():
    head = wild_head()
    images, texts = asked(3)
    reader = SampledReader(head, 2, temperature=1.5)
    whole = reader.encode_query(images, texts).embeddings
    turned = reader.encode_query(images[::-1], texts[::-1]).embeddings
    assert torch.allclose(turned.flip(0), whole, atol=1e-5)
    other = SampledReader(head, 2, temperature=1.5, seed=1).encode_query(images, texts).embeddings
    assert not torch.allclose(other, whole, atol=1e-3)
    seeds = {reader._seed_of(images[0], "a", 1), reader._seed_of(images[0], "a", 2),
             reader._seed_of(images[0], "b", 1), reader._seed_of(images[1], "a", 1)}  # fmt: skip
    assert len(seeds) == 4


def test_what_is_drawn_is_part_of_the_conditions_and_nonsense_is_refused():
    head = wild_head()
    reader = with_samples(head, 4, 0.9, 7)
    wanted = {"samples": 4, "temperature": 0.9, "sampling_seed": 7}
    assert reader.conditions() == head.conditions() | wanted
    assert with_samples(head, 1, 0.9) is head
    reader.batch_size = 3
    assert head.batch_size == 3
    with pytest.raises(InputError, match="samples 0 is outside 1 .. 64"):
        with_samples(head, 0, 0.9)
    with pytest.raises(InputError, match="temperature -1"):
        with_samples(head, 2, -1)
    with pytest.raises(InputError, match="draws no chains itself"):
        with_samples(Toy(), 2, 0.9)


def test_the_stream_shows_the_likeliest_chain_and_ends_with_the_mean():
    reader = SampledReader(wild_head(), 3, temperature=1.5)
    images, texts = asked(1)
    *_, last = reader.stream(images, texts)
    assert torch.equal(last.embeddings, reader.encode_query(images, texts).embeddings)
    assert len(last.agreement) == 1
