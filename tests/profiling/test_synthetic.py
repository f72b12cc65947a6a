"""Rows for measurements: as many and as long as asked, all different."""

from cir_cot.profiling.synthetic import SyntheticPairs


def test_noise_differs_from_row_to_row_and_side_to_side_and_every_third_chain_is_half_as_long():
    rows = SyntheticPairs(6, [(20, 10), (10, 30)], words=60)
    lengths = [
        sum(len(part.split()) for part in vars(record.cot).values()) for record in rows.records
    ]
    assert lengths == [30, 60, 60, 30, 60, 60]
    seen = [rows[index, 3] for index in range(6)]
    assert [row.reference.size for row in seen] == [(20, 10), (10, 30)] * 3
    assert len({picture.tobytes() for row in seen for picture in (row.reference, row.target)}) == 12
    assert rows[2, 0].reference.tobytes() == seen[2].reference.tobytes()
    assert [row.draw for row in seen] == [3] * 6
