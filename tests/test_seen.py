"""The rows that a run has seen."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from image_loader.store.seen import SeenRows

ROWS = st.lists(st.integers(0, 100_000) | st.integers(0, 2**63 - 1))


@given(ROWS)
def test_rows_anywhere_are_told_apart(rows: Sequence[int]) -> None:
    seen, expected = SeenRows(), set[int]()
    for row in rows:
        assert (row in seen) == (row in expected)
        assert seen.add(row) == (row not in expected)
        expected.add(row)
    assert bool(seen) == bool(rows)


@given(ROWS, ROWS)
def test_what_another_process_has_seen_is_added(rows: Sequence[int], others: Sequence[int]) -> None:
    seen, other = SeenRows(), SeenRows()
    for row in rows:
        seen.add(row)
    for row in others:
        other.add(row)
    seen.merge(other.parts())
    assert all(row in seen for row in (*rows, *others))
    assert not any(row + 1 in seen for row in {*rows, *others} if row + 1 not in {*rows, *others})
