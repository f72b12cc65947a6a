"""What an epoch is: every row once, on one process, in an order that only the seed and the epoch decide."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from cir_cot.errors import InputError
from cir_cot.records import Record
from cir_cot.training.sampler import RowSampler, ShardedBatches, Share


def catalogue(references: int, edits: int, categories: int = 2) -> list[Record]:
    """References with a number of edits each; the targets of a reference are distinct."""
    return [
        Record(f"{r}-{e}", f"r{r}", "text", (f"t{r}-{e}",), source=f"shop/{r % categories}")
        for r in range(references)
        for e in range(edits)
    ]


def epoch(sampler: RowSampler, number: int) -> list[tuple[int, int]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize(
    ("group_by", "group_size"), [("none", 1), ("reference", 3), ("category", 4)]
)
def test_an_epoch_holds_every_row_once_and_depends_on_seed_and_epoch_only(group_by, group_size):
    rows = catalogue(5, 4) + catalogue(1, 2)
    sampler = RowSampler(rows, 7, group_by, group_size)
    first = epoch(sampler, 0)
    assert sorted(index for index, _ in first) == list(range(len(rows)))
    assert len(sampler) == len(rows)
    assert epoch(sampler, 0) == first == epoch(RowSampler(rows, 7, group_by, group_size), 0)
    second, other = epoch(sampler, 1), epoch(RowSampler(rows, 8, group_by, group_size), 0)
    for changed in (second, other):
        assert [index for index, _ in changed] != [index for index, _ in first]
        assert dict(changed).items().isdisjoint(dict(first).items())  # every row draws anew


@pytest.mark.parametrize(
    ("group_by", "group_size", "alike"), [("none", 1, 0), ("reference", 3, 0), ("reference", 3, 6)]
)
def test_a_mixture_has_the_rows_that_the_weights_say(group_by, group_size, alike):
    """40 rows of which 10 come, once each; 8 rows that come two and a half times."""
    rows = catalogue(10, 4) + [replace(r, reference="o" + r.reference) for r in catalogue(2, 4)]
    shares = [Share(range(40), 10), Share(range(40, 48), 20)]
    sampler = RowSampler(rows, 7, group_by, group_size, alike, shares)
    assert len(sampler) == 30
    seen = []
    for number in range(2):
        found = epoch(sampler, number)
        counts = Counter(index for index, _ in found)
        first = [counts[index] for index in range(40)]
        assert Counter(first) == {0: 30, 1: 10}
        assert sorted(counts[index] for index in range(40, 48)) == [2] * 4 + [3] * 4
        # Each time a row comes, it draws anew.
        assert len({draw for _, draw in found}) == 30
        assert epoch(RowSampler(rows, 7, group_by, group_size, alike, shares), number) == found
        seen.append({index for index, count in counts.items() if index < 40})
    assert seen[0] != seen[1]
    # The same row, like every other target, is no hard negative of itself.
    if group_by == "reference" and not alike:
        order = [index for index, _ in epoch(sampler, 0)]
        full = [order[at : at + 3] for at in range(0, 30, 3)]
        alone = [block for block in full if len({rows[i].reference for i in block}) == 1]
        assert alone
        assert all(len(set(block)) == 3 for block in alone)


def test_draws_are_distinct_numbers_of_63_bits():
    draws = [draw for _, draw in epoch(RowSampler(catalogue(50, 4), 0), 0)]
    assert len(set(draws)) == 200
    assert 2**62 < max(draws) < 2**63
    assert min(draws) >= 0


def test_the_order_of_an_epoch_is_a_promise_to_those_who_resume():
    assert [index for index, _ in epoch(RowSampler(catalogue(4, 2), 3), 1)] == [
        5,
        3,
        2,
        6,
        0,
        1,
        7,
        4,
    ]
    grouped = RowSampler(catalogue(4, 2), 3, "reference", 2)
    assert [index for index, _ in epoch(grouped, 1)] == [0, 1, 3, 2, 6, 7, 5, 4]


@pytest.mark.parametrize(("group_by", "group_size"), [("none", 1), ("reference", 2)])
def test_rows_of_like_length_share_a_batch_and_nothing_else_changes(group_by, group_size):
    rows = [
        replace(row, text="x" * (1 + 7 * int(row.reference[1:]) % 31)) for row in catalogue(100, 4)
    ]
    plain, alike = (RowSampler(rows, 3, group_by, group_size, batch) for batch in (0, 8))
    assert sorted(epoch(alike, 0)) == sorted(epoch(plain, 0))  # the same rows with the same draws
    assert epoch(alike, 0) == epoch(RowSampler(rows, 3, group_by, group_size, 8), 0)
    assert epoch(alike, 1) != epoch(alike, 0)

    def batches(sampler):
        return [
            [len(rows[index].text) for index, _ in batch] for batch in ShardedBatches(sampler, 8)
        ]

    waste = [
        sum(8 * max(batch) - sum(batch) for batch in batches(sampler)) for sampler in (plain, alike)
    ]
    assert waste[1] < 0.1 * waste[0]
    longest = [max(batch) for batch in batches(alike)]
    assert longest not in (
        sorted(longest),
        sorted(longest, reverse=True),
    )  # batches come in no order of length
    for batch in ShardedBatches(alike, 8):
        blocks = [batch[at : at + group_size] for at in range(0, 8, group_size)]
        if group_by == "reference":
            assert all(len({rows[index].reference for index, _ in block}) == 1 for block in blocks)


def test_rows_left_over_stay_at_the_end_of_an_epoch_of_like_lengths():
    rows = [*catalogue(5, 4), *catalogue(1, 3)]
    order = [index for index, _ in epoch(RowSampler(rows, 0, "reference", 4, 8), 0)]
    assert sorted(order) == list(range(23))
    assert {rows[index].reference for index in order[20:]} == {"r0"}


@pytest.mark.parametrize(
    ("group_by", "group_size"), [("reference", 2), ("reference", 4), ("category", 8)]
)
def test_a_batch_is_made_of_groups_with_distinct_targets(group_by, group_size):
    rows = catalogue(8, 4)
    sampler = RowSampler(rows, 0, group_by, group_size)
    shards = [ShardedBatches(sampler, 4, rank, 2) for rank in range(2)]
    for parts in zip(*shards, strict=True):
        batch = [rows[index] for part in parts for index, _ in part]
        assert len(batch) == 8
        for at in range(0, 8, group_size):
            block = batch[at : at + group_size]
            assert (
                len({row.reference if group_by == "reference" else row.source for row in block})
                == 1
            )
            assert len({target for row in block for target in row.targets}) == group_size


def test_rows_with_a_common_target_are_not_put_into_one_group():
    rows = [
        Record(str(i), "r", "text", (f"t{i // 2}", f"u{i}")) for i in range(8)
    ]  # four targets, twice each
    order = [index for index, _ in epoch(RowSampler(rows, 0, "reference", 4), 0)]
    for block in (order[:4], order[4:]):
        assert len({rows[index].targets[0] for index in block}) == 4


def test_leftovers_of_small_groups_are_packed_and_not_lost():
    rows = catalogue(7, 5)  # five edits a reference: one block of four, one left over
    order = [index for index, _ in epoch(RowSampler(rows, 0, "reference", 4), 0)]
    blocks = [[rows[index].reference for index in order[at : at + 4]] for at in range(0, 35, 4)]
    assert Counter(len(set(block)) for block in blocks) == {1: 7, 4: 1, 3: 1}
    assert (
        len(blocks[-1]) == 3
    )  # a short block comes last: it would shift all others across the batches


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_processes_share_an_epoch_without_repeating_or_losing_a_row(processes, batch_size):
    for count in range(processes, 50):
        sampler = RowSampler(catalogue(count, 1), 0)
        shards = [
            list(ShardedBatches(sampler, batch_size, rank, processes)) for rank in range(processes)
        ]
        assert {len(shard) for shard in shards} == {
            len(ShardedBatches(sampler, batch_size, 0, processes))
        }
        assert Counter(row for shard in shards for batch in shard for row in batch) == Counter(
            sampler
        )
        sizes = [len(batch) for shard in shards for batch in shard]
        assert min(sizes) >= 1
        assert max(sizes) <= max(batch_size, 2)  # a batch of one cannot lend: at most one row more
        for parts in zip(*shards, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_two_processes_see_the_batches_of_one_with_twice_the_rows():
    sampler = RowSampler(catalogue(23, 1), 0)
    halves = [ShardedBatches(sampler, 4, rank, 2) for rank in range(2)]
    both = [first + second for first, second in zip(*halves, strict=True)]
    assert both == list(ShardedBatches(sampler, 8))


def test_the_last_batch_borrows_when_rows_are_fewer_than_processes():
    sampler = RowSampler(catalogue(9, 1), 0)
    shards = [[len(batch) for batch in ShardedBatches(sampler, 2, rank, 4)] for rank in range(4)]
    assert shards == [[1, 1], [1, 1], [1, 1], [2, 1]]


def test_consecutive_epochs_do_not_repeat_an_order():
    sampler = RowSampler(catalogue(20, 1), 0)
    orders = [[index for index, _ in epoch(sampler, number)] for number in range(6)]
    assert all(first != second for first, second in pairwise(orders))


def test_settings_that_cannot_work_are_refused():
    rows = catalogue(4, 2)
    with pytest.raises(
        InputError, match="group_size 3 does not divide the 8 rows of a micro-batch"
    ):
        ShardedBatches(RowSampler(rows, 0, "reference", 3), 4, 0, 2)
    with pytest.raises(InputError, match="8 training rows are too few for 9 processes"):
        ShardedBatches(RowSampler(rows, 0), 1, 0, 9)
    with pytest.raises(
        InputError, match="group_by must be one of none, reference, category, got 'colour'"
    ):
        RowSampler(rows, 0, "colour")


def test_a_short_block_never_shifts_the_others_across_the_batches():
    rows = catalogue(
        7, 5
    )  # seven blocks of four of one reference, seven rows left over: a block of four, one of three
    for number in range(40):
        order = [
            rows[index].reference for index, _ in epoch(RowSampler(rows, 0, "reference", 4), number)
        ]
        blocks = [order[at : at + 4] for at in range(0, 35, 4)]
        assert sum(len(set(block)) == 1 for block in blocks[:-1]) == 7
        assert len(blocks[-1]) == 3
