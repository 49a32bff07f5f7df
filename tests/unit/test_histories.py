"""HistoryBuilder against a plain loop over all earlier events."""

from itertools import pairwise

import numpy as np
import pytest

from infnet_dist.ingest.histories import HistoryBuilder


def make_log(seed, rows=300, users=7, distinct_times=120):
    """Random rows in time order, with many ties in time, some of them of one user."""
    rng = np.random.default_rng(seed)
    times_ms = np.sort(rng.integers(1_650_000_000, 1_650_000_000 + distinct_times, rows)) * 1000
    times_ms += rng.integers(0, 3, distinct_times)[(times_ms // 1000 - 1_650_000_000)]
    attributes = np.stack([np.arange(rows), rng.integers(0, 50, rows)], axis=1)
    return rng.integers(0, users, rows), times_ms, attributes, rng.random(rows) < 0.6


def brute_force(log, row, length, known_until_ms=None):
    """(attributes, gap in s) of the row's history, newest first; equal times: later row first."""
    users, times_ms, attributes, happened = log
    until = times_ms[row] if known_until_ms is None else known_until_ms[row]
    before = [
        i
        for i in range(len(users))
        if users[i] == users[row] and times_ms[i] < until and happened[i]
    ]
    newest = sorted(before, key=lambda i: (times_ms[i], i), reverse=True)[:length]
    return [(*attributes[i], max((times_ms[row] - times_ms[i]) // 1000, 1)) for i in newest]


def cut_anywhere(num_rows, num_cuts, rng):
    """Chunk edges; neighbours may share a timestamp."""
    cuts = np.sort(rng.choice(np.arange(1, num_rows), size=num_cuts, replace=False))
    return [0, *cuts, num_rows]


def as_lists(histories):
    items = np.column_stack([histories.attributes, histories.gap_s])
    pairs = zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    return [[tuple(item) for item in items[a:b]] for a, b in pairs]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("length", "num_cuts"), [(1, 5), (5, 0), (5, 1), (5, 40), (400, 10)])
def test_equals_a_loop_over_all_earlier_events(seed, length, num_cuts):
    log = make_log(seed)
    builder = HistoryBuilder(num_users=7, length=length, num_attributes=2)
    edges = cut_anywhere(len(log[0]), num_cuts, np.random.default_rng(seed))
    found = []
    for start, stop in pairwise(edges):
        found += as_lists(builder.read_then_add(*(values[start:stop] for values in log)))
    assert found == [brute_force(log, row, length) for row in range(len(log[0]))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("length", "num_cuts"), [(1, 5), (5, 0), (5, 40), (400, 10)])
@pytest.mark.parametrize("period_ms", [1, 7_000, 50_000, 10**9])
def test_rows_know_only_what_was_before_their_cutoff(seed, length, num_cuts, period_ms):
    log = make_log(seed)
    known_until_ms = log[1] // period_ms * period_ms
    builder = HistoryBuilder(num_users=7, length=length, num_attributes=2)
    found = []
    for start, stop in pairwise(cut_anywhere(len(log[0]), num_cuts, np.random.default_rng(seed))):
        chunk = [values[start:stop] for values in (*log, known_until_ms)]
        found += as_lists(builder.read_then_add(*chunk))
    assert found == [brute_force(log, row, length, known_until_ms) for row in range(len(log[0]))]


def test_events_at_the_row_s_own_time_are_no_history():
    builder = HistoryBuilder(num_users=1, length=3, num_attributes=1)
    users, items, happened = np.zeros(3, np.int64), np.array([[1], [2], [3]]), np.ones(3, bool)
    found = builder.read_then_add(users, np.array([1000, 1000, 1001]), items, happened)
    assert as_lists(found) == [[], [], [(2, 1), (1, 1)]]


def test_rows_that_are_no_events_have_a_history_but_enter_none():
    builder = HistoryBuilder(num_users=2, length=3, num_attributes=1)
    users, items = np.array([0, 0, 1, 0]), np.array([[1], [2], [3], [4]])
    times_ms = np.array([1000, 3000, 3000, 9000])
    found = builder.read_then_add(users, times_ms, items, np.array([True, False, True, True]))
    assert as_lists(found) == [[], [(1, 2)], [], [(1, 8)]]


def test_an_empty_chunk_changes_nothing():
    builder = HistoryBuilder(num_users=2, length=3, num_attributes=2)
    log = make_log(0, rows=10, users=2)
    builder.read_then_add(*(values[:0] for values in log))
    assert as_lists(builder.read_then_add(*log)) == [brute_force(log, r, 3) for r in range(10)]
    empty = builder.read_then_add(*(values[:0] for values in log))
    assert as_lists(empty) == []
    assert len(empty.column(0)) == len(empty.gap_column()) == 0


def test_list_columns_hold_the_same_items():
    log = make_log(3, rows=50)
    builder = HistoryBuilder(num_users=7, length=4, num_attributes=2)
    found = builder.read_then_add(*log)
    expected = [brute_force(log, row, 4) for row in range(50)]
    assert found.column(1).to_pylist() == [[item[1] for item in row] for row in expected]
    assert found.gap_column().to_pylist() == [[item[2] for item in row] for row in expected]


@pytest.mark.parametrize("times_ms", [[5000, 4000], [1999, 3000]])
def test_disorder_is_a_bug_of_the_caller(times_ms):
    builder = HistoryBuilder(num_users=1, length=3, num_attributes=1)
    one, items = np.zeros(1, np.int64), np.ones((2, 1), np.int64)
    builder.read_then_add(one, np.array([2000]), items[:1], np.ones(1, bool))
    with pytest.raises(AssertionError):
        builder.read_then_add(np.zeros(2, np.int64), np.array(times_ms), items, np.ones(2, bool))
