"""Bloom filters: nothing that was shown is missed, and the false positive rate is as stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.reranking.bloom import BloomFilter
from infnet_dist.reranking.exposure import ExposureFilter, ExposureSettings

DAY_S = 86_400
ID = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(ID, max_size=60), st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_a_filter_contains_what_was_added(values: list[int], seed: int) -> None:
    one = BloomFilter(60, 0.01, seed)
    one.add(np.array(values, np.int64))
    assert one.contains(np.array(values, np.int64)).all()
    assert one.count <= len(set(values))


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.0005])
def test_a_full_filter_has_the_stated_rate(rate: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.choice(2**40, 5000, replace=False)
    one = BloomFilter(5000, rate, seed=3)
    one.add(values)
    others = np.setdiff1d(rng.choice(2**40, 400_000, replace=False), values)
    measured = one.contains(others).mean()
    deviation = np.sqrt(rate / len(others))
    assert measured == pytest.approx(rate, rel=0.08, abs=4 * deviation)
    assert one.false_positive_rate == pytest.approx(measured, rel=0.08, abs=4 * deviation)
    # Falsely contained values aren't counted; more values than counted would fill it.
    assert 5000 * (1 - rate) <= one.count <= 5000


def test_another_seed_has_other_false_positives() -> None:
    filters = [BloomFilter(1000, 0.05, seed) for seed in (0, 1)]
    for one in filters:
        one.add(np.arange(1000))
    found = [one.contains(np.arange(1000, 21_000)) for one in filters]
    both = (found[0] & found[1]).mean()
    assert both == pytest.approx(0.05**2, abs=0.002)


def test_a_whole_user_has_the_stated_rate() -> None:
    rng = np.random.default_rng(2)
    made = ExposureFilter(ExposureSettings(days=3, per_day=1000, false_positive_rate=0.02))
    shown = rng.choice(2**40, (6, 1000), replace=False)
    for day, items in enumerate(shown):
        made.add(items, now_s=day * DAY_S)
    now_s = 5.5 * DAY_S  # filters of days 2 to 5 count, all that there ever are
    others = np.setdiff1d(rng.choice(2**40, 200_000, replace=False), shown)
    measured = made.seen(others, now_s).mean()
    assert measured == pytest.approx(0.02, rel=0.15)
    assert made.false_positive_rate(now_s) == pytest.approx(measured, rel=0.15)
    assert made.seen(shown[2:].ravel(), now_s).all()
    assert made.seen(shown[:2].ravel(), now_s).mean() < 0.03  # expired


def test_a_long_day_keeps_the_rate_of_each_filter() -> None:
    made = ExposureFilter(ExposureSettings(days=1, per_day=100, false_positive_rate=0.01))
    for first in range(0, 1000, 250):
        made.add(np.arange(first, first + 250), now_s=0)
    assert made.seen(np.arange(1000), 0).all()
    # 10 filters of half of a per cent each, not one that is ten times too full
    assert made.seen(np.arange(1000, 101_000), 0).mean() == pytest.approx(0.05, rel=0.2)


EVENTS = st.lists(
    st.tuples(st.floats(0, 12), st.lists(st.integers(0, 30), max_size=6)), max_size=12
)


@given(EVENTS, st.floats(0, 20), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_exposures_last_as_long_as_stated(
    events: list[tuple[float, list[int]]], later: float, days: int
) -> None:
    made = ExposureFilter(ExposureSettings(days, per_day=4, false_positive_rate=1e-9))
    newest: dict[int, float] = {}
    now = 0.0
    for step, items in sorted(events):
        now = max(now, step)
        made.add(np.array(items, np.int64), now_s=now * DAY_S)
        newest |= dict.fromkeys(items, now)
    now += later
    restored = ExposureFilter.from_bytes(made.to_bytes())
    seen = restored.seen(np.arange(31), now * DAY_S)
    assert (seen == made.seen(np.arange(31), now * DAY_S)).all()
    for item in range(31):
        age = now - newest.get(item, -100.0)
        if age <= days:
            assert seen[item]
        elif age >= days + 1:
            assert not seen[item]


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    made = ExposureFilter(ExposureSettings(days=1))
    made.add(np.array([1]), now_s=5 * DAY_S)
    made.add(np.array([2]), now_s=0)
    assert made.seen(np.array([1, 2]), 5 * DAY_S).all()


def test_damaged_bytes_are_refused() -> None:
    made = ExposureFilter(ExposureSettings(per_day=10), seed=9)
    made.add(np.arange(10), now_s=0)
    data = made.to_bytes()
    again = ExposureFilter.from_bytes(data)
    assert again.to_bytes() == data
    again.add(np.arange(10, 20), now_s=DAY_S)  # a restored filter can grow
    assert again.seen(np.arange(20), DAY_S).all()
    for wrong in (b"", data[:-1], data + b"x", data[:50] + b"\xff" + data[51:], b"x" * 200):
        with pytest.raises(DataError, match="exposure filter"):
            ExposureFilter.from_bytes(wrong)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(DataError, match="integers"):
        BloomFilter(10, 0.1).add(np.array(["a"]))
    with pytest.raises(DataError, match="2\\^63"):
        BloomFilter(10, 0.1).contains(np.array([2**63], np.uint64))
    for settings_ in ({"days": 0}, {"per_day": 0}, {"false_positive_rate": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(settings_))):
            ExposureSettings(**settings_)
