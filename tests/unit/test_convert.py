"""Each conversion against plain Python: exact or refused, whatever the type and the chunks."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from infnet_dist.ingest.convert.arrays import UnfitColumnError, as_vectors
from infnet_dist.ingest.convert.ids import spellings, to_join_keys
from infnet_dist.ingest.convert.kinds import TYPES, convert
from infnet_dist.ingest.convert.times import fits_as

BIG = 2**53
UNFIT = object()


def check(values, kind, expected, **options):
    """Compare, at once and value by value; `UNFIT` marks what is refused, None is null."""
    found, unfit = convert(values, kind, **options)
    found.validate(full=True)
    assert found.type == TYPES[kind]
    assert unfit.tolist() == [value is UNFIT for value in expected]
    # Of a list whose items don't fit only the mark counts.
    got = [UNFIT if bad else v for bad, v in zip(unfit, found.to_pylist(), strict=True)]
    assert got == expected
    one_by_one = []
    for i in range(len(values)):
        single, bad = convert(values.slice(i, 1), kind, **options)
        one_by_one.append(UNFIT if bad[0] else single.to_pylist()[0])
    assert one_by_one == expected
    chunked = pa.chunked_array([values.slice(0, 1), values.slice(1)])
    again, _ = convert(chunked, kind, **options)
    assert again.equals(found)


def encodings(texts):
    """The same texts in every layout that Arrow has for them."""
    yield from (pa.array(texts, kind) for kind in (pa.string(), pa.large_string()))
    yield pa.array(texts).cast(pa.string_view())
    yield pa.array(texts).cast(pa.binary())
    yield pa.array(texts).dictionary_encode()


IDS = {
    "1": 1,
    "+1": 1,
    " 7 ": 7,
    "01": 1,
    "1.0": 1,
    "1e11": 10**11,
    "100000000000.0": 10**11,
    "-5": -5,
    str(2**63 - 1): 2**63 - 1,
    str(-(2**63)): -(2**63),
    str(2**63): -(2**63),  # the upper half of uint64: the same bits
    str(2**64 - 1): -1,
    str(2**64): UNFIT,
    str(-(2**63) - 1): UNFIT,
    "9" * 39: UNFIT,
    "1.5": UNFIT,
    "0x1F": UNFIT,
    "1_000": UNFIT,
    "x": UNFIT,
    "": None,
    "NaN": None,
    "None": None,
}


def test_integers_of_texts():
    for values in encodings([*IDS, None]):
        check(values, "int", [*IDS.values(), None])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**63 + 5, 1, None], pa.uint64()), [-(2**63) + 5, 1, None]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array([1.0, -0.0, 1.5, np.nan, np.inf, None]), [1, 0, UNFIT, None, UNFIT, None]),
        (pa.array([BIG - 1.0, 1.0 - BIG]), [BIG - 1, 1 - BIG]),
        (pa.array([3, None], pa.float32()), [3, None]),
        (pa.array([Decimal(BIG + 1), Decimal("7")], pa.decimal128(38, 2)), [BIG + 1, 7]),
        (pa.array([Decimal("1.50"), Decimal(2**64)], pa.decimal128(38, 2)), [UNFIT, UNFIT]),
        (pa.array([Decimal(2**70), Decimal(3)], pa.decimal256(70, 0)), [UNFIT, 3]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_integers_of_other_types(values, expected):
    check(values, "int", expected)


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (pa.array([5.0, float(BIG)]), 1),
        (pa.array([-float(2**60)]), 0),
        (pa.array([1, 2**24], pa.float32()), 1),
        (pa.array([1, 2048], pa.float16()), 1),
        (pa.array(["7", "9007199254740992.0"]), 1),
        (pa.array(["1e+18"]), 0),
        (pa.array([[1.0], [2.0, 2.0**60]]), 1),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_floats_that_may_be_another_integer_are_refused(values, row, text):
    many = pa.types.is_list(values.type)
    if text and pa.types.is_string(values.type):
        return
    kind = ("texts" if text else "ints") if many else ("text" if text else "int")
    with pytest.raises(UnfitColumnError) as caught:
        convert(values, kind)
    assert caught.value.row == row


def test_texts_of_numbers_are_those_of_exact_integers():
    check(pa.array([10**11, 7]), "text", ["100000000000", "7"])
    check(pa.array([1e11, 7.0, 7.5, None]), "text", ["100000000000", "7", UNFIT, None])
    check(pa.array([2**64 - 1], pa.uint64()), "text", [str(2**64 - 1)])
    check(pa.array([Decimal("12.00")]), "text", ["12"])
    for values in encodings(["01", " 1", "", "None", None]):
        check(values, "text", ["01", " 1", "", "None", None])
    check(pa.array([b"a", b"\xff", None]), "text", ["a", UNFIT, None])


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1], pa.timestamp("s")),
        pa.array([1], pa.date32()),
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([b"1234"], pa.binary(4)),
        pa.array([1], pa.duration("s")),
    ],
)
@pytest.mark.parametrize("kind", ["int", "text", "float", "flag", "watch_time"])
def test_other_types_are_refused_whatever_they_hold(values, kind):
    for some in (values, values[:0], pa.nulls(2, values.type)):
        with pytest.raises(UnfitColumnError) as caught:
            convert(some, kind)
        assert caught.value.row is None


def test_numbers_are_finite_in_float32():
    largest = float(np.finfo(np.float32).max)
    values = [largest, 3.4028236e38, 1e39, -1e300, 1e-320, np.inf, np.nan, None, 0.5]
    expected = [largest, UNFIT, UNFIT, UNFIT, 1e-320, UNFIT, None, None, 0.5]
    check(pa.array(values), "float", expected)
    for texts in encodings(["1.5", "1e39", ".5", "1.", "-2e3", "inf", "NaN", "", "1,5", "true"]):
        check(texts, "float", [1.5, UNFIT, 0.5, 1.0, -2000.0, UNFIT, None, None, UNFIT, 1.0])
    check(pa.array([Decimal("1.5")]), "float", [1.5])
    check(pa.array([True, None]), "float", [1.0, None])


FLAGS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, " 1 ": 1, "2": UNFIT, "0.5": UNFIT, "on": UNFIT}
FLAGS |= {word: 1 for word in ("true", "True", "TRUE", "t", "yes", "Yes", "Y")}
FLAGS |= {word: 0 for word in ("false", "False", "FALSE", "f", "no", "No", "N")}
FLAGS |= {"": None, "NaN": None, "maybe": UNFIT}


def test_flags():
    for values in encodings([*FLAGS, None]):
        check(values, "flag", [*FLAGS.values(), None])
    check(pa.array([0.0, 1.0, -0.0, 0.5, np.nan, np.inf]), "flag", [0, 1, 0, UNFIT, None, UNFIT])
    check(pa.array([0, 1, 256, -1, 2**40]), "flag", [0, 1, UNFIT, UNFIT, UNFIT])
    check(pa.array([True, False, None]), "flag", [1, 0, None])
    check(pa.array([Decimal("1.0"), Decimal("0.5")]), "flag", [1, UNFIT])


def test_milliseconds():
    check(pa.array([5.4, 2.0**53, -1.0, np.nan]), "watch_time", [5, UNFIT, -1, None])
    check(pa.array([BIG - 1, 2**60, None]), "watch_time", [BIG - 1, UNFIT, None])
    check(pa.array(["12.6", "x", ""]), "watch_time", [13, UNFIT, None])


def ms(*parts, zone=UTC):
    return round(datetime(*parts, tzinfo=zone).timestamp() * 1000)


NOON = ms(2022, 4, 24, 15, 5, 41)
TIMES = {
    "2022-04-24 15:05:41": NOON,
    "2022-04-24T15:05:41": NOON,
    "2022-04-24T15:05:41Z": NOON,
    "2022-04-24 15:05:41 UTC": NOON,
    "2022-04-24T15:05:41.1239999": NOON + 123,
    "2022-04-24T15:05:41,5": NOON + 500,
    "2022-04-24T23:05:41+08:00": NOON,
    "2022-04-24T11:35:41.5-0330": NOON + 500,
    "2022-04-24T16:05:41+01": NOON,
    "2022-04-24 15:05": NOON - 41_000,
    "2022-04-24": ms(2022, 4, 24),
    "0001-01-01": ms(1, 1, 1),
    "9999-12-31T23:59:59": ms(9999, 12, 31, 23, 59, 59),
    str(NOON): NOON,
    f"{NOON}.9": NOON,
    "2022-02-30": UNFIT,
    "2022-13-01": UNFIT,
    "2022-04-24T24:00:00": UNFIT,
    "2022-04-24T15:05:60": UNFIT,
    "2022-04-24T15:05:41+99:00": UNFIT,
    "24.04.2022": UNFIT,
    "04/24/2022 15:05": UNFIT,
    "2022-04-24T15": UNFIT,
    "x": UNFIT,
    "": None,
    "None": None,
}


def test_times_of_texts():
    for values in encodings([*TIMES, None]):
        check(values, "time", [*TIMES.values(), None])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_numbers_and_timestamps(unit):
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    raw = [NOON // 1000 * per_s, 0, -1, 2**62, -(2**62), 2**63 - 1, None]
    exact = [None if v is None else v * 1000 // per_s for v in raw]
    for values in (pa.array(raw, pa.int64()), pa.array(raw, pa.timestamp(unit, "Asia/Tokyo"))):
        found, unfit = convert(values, "time", time_unit=unit)
        assert not unfit.any()
        for got, wanted in zip(found.to_pylist(), exact, strict=True):
            # What no int64 of ms holds stays far out of line, on its side.
            near = wanted is None or abs(wanted) < 2**61
            assert got == wanted if near else got * wanted > 0 and abs(got) > 2**50


def test_times_of_other_numbers():
    seconds = pa.array([NOON / 1000 + 0.001, np.nan, np.inf, 1e300])
    found, unfit = convert(seconds, "time", time_unit="s")
    assert found.to_pylist()[:3] == [NOON + 1, None, None]
    assert found[3].as_py() > 2**42 and unfit.tolist() == [False, False, True, False]
    exact = pa.array([Decimal(NOON) / 1000 + Decimal("0.0015")], pa.decimal128(20, 4))
    check(exact, "time", [NOON + 1], time_unit="s")
    days = (date(2022, 4, 24) - date(1970, 1, 1)).days
    check(pa.array([days, None], pa.int32()).cast(pa.date32()), "time", [days * 86_400_000, None])
    check(pa.array([date(2022, 4, 24)], pa.date64()), "time", [days * 86_400_000])
    check(pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "time", [(2**31 - 1) * 86_400_000])
    far = convert(pa.array([2**64 - 1], pa.uint64()), "time")[0]
    assert far[0].as_py() > 2**50
    for values in (pa.array([1.0], pa.float32()), pa.array([True]), pa.array([1], pa.time64("us"))):
        with pytest.raises(UnfitColumnError):
            convert(values, "time")


def test_random_times_of_iso():
    rng = np.random.default_rng(3)
    moments = [
        datetime(1990, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(us))
        for us in rng.integers(0, 10**15 * 3, 500)
    ]
    texts = pa.array([moment.isoformat() for moment in moments])
    check(texts, "time", [int(m.timestamp() * 10**6 + 0.5) // 1000 for m in moments])


@pytest.mark.parametrize("true", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("read", ["s", "ms", "us", "ns"])
def test_the_unit_that_would_fit(true, read):
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    value = pa.array([NOON // 1000 * per_s[true]])
    times = convert(value, "time", time_unit=read)[0].to_numpy()
    fitting = [unit for unit, fits in fits_as(times, read).items() if fits[0]]
    expected = [true] if true != read and (read, true) != ("s", "ns") else []
    assert fitting == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()),
        pa.large_list(pa.int32()),
        pa.list_view(pa.int64()),
        pa.large_list_view(pa.int16()),
        pa.list_(pa.float64()),
        pa.list_(pa.string()),
    ],
)
def test_lists_of_any_layout(kind):
    rows = [[9], [1], None, [2, 3], [4, None], []]
    if pa.types.is_string(kind.value_type):
        rows = [row and [v and str(v) for v in row] for row in rows]
    check(pa.array(rows, kind).slice(1), "ints", [[1], None, [2, 3], UNFIT, []])


def test_lists_of_fixed_size_of_texts_and_as_text():
    check(pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), "ints", [[1, 2], None])
    check(pa.array([["a", "01"], ["b", None]]), "texts", [["a", "01"], UNFIT])
    check(pa.array([[7], [1e3]]), "texts", [["7"], ["1000"]])
    for values in encodings(["39|6", "7", "", "1||2", "1|x", "[1, 2]", "1,2", None]):
        expected = [[39, 6], [7], None, UNFIT, UNFIT, UNFIT, UNFIT, None]
        check(values, "ints", expected)
    check(pa.array(["a;b c", "[a;b]"]), "texts", [["a", "b c"], UNFIT], separator=";")
    check(pa.nulls(2), "ints", [None, None])
    for values in (pa.array([1]), pa.array([[date(2022, 1, 1)]]), pa.array([[[1]]])):
        with pytest.raises(UnfitColumnError):
            convert(values, "ints")


def test_join_keys_match_by_what_they_are():
    texts = pa.array(["7", " 7", "7.0", "007", "x", None])
    assert to_join_keys(texts, text=True).to_pylist() == ["7", "7", "7", "007", "x", None]
    assert to_join_keys(texts, text=False).to_pylist() == [7, 7, 7, None, None, None]
    assert to_join_keys(pa.array([7.0, None]), text=True).to_pylist() == ["7", None]


def test_spellings():
    texts = ["7", "-3", "0", str(2**64 - 1), "07", "x", "1.0", "1e5", " 7", "+7", "1.5", "", None]
    found = spellings(pa.array(texts, pa.large_string()))
    assert found == {"integer": (4, "7"), "text": (4, "07"), "other": (4, "1.0")}


# ---- lists of floats

FLOATS = [[1.5, -2.0, 0.0], [], None, [0.1], [float("nan")], [float("inf")], [1.0, None], [1e39]]
FLOATS_EXPECTED = [[1.5, -2.0, 0.0], [], None, [float(np.float32(0.1))], *[UNFIT] * 4]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view])
def test_lists_of_floats(kind):
    check(pa.array(FLOATS, kind(pa.float64())), "floats", FLOATS_EXPECTED)
    whole = [[3, -1], None, [2**24 + 1], [5, None]]
    check(pa.array(whole, kind(pa.int64())), "floats", [[3.0, -1.0], None, [float(2**24)], UNFIT])


@pytest.mark.parametrize("item", [pa.float16(), pa.float32()])
def test_lists_of_small_floats(item):
    some = [[1.5, -2.0], None, [], [float("nan")], [1.0, float("-inf")], [None]]
    values = pa.array(some, pa.list_(pa.float32())).cast(pa.list_(item))
    check(values, "floats", [[1.5, -2.0], None, [], UNFIT, UNFIT, UNFIT])


def test_lists_of_floats_in_other_forms():
    decimals = pa.array([[Decimal("1.50"), Decimal("-2")], None], pa.list_(pa.decimal128(9, 2)))
    check(decimals, "floats", [[1.5, -2.0], None])
    check(pa.nulls(2), "floats", [None, None])
    check(pa.array([[], [None], None], pa.list_(pa.null())), "floats", [[], UNFIT, None])
    fixed = pa.array([[1.0, 2.0], None, [3.0, float("nan")]], pa.list_(pa.float32(), 2))
    check(fixed, "floats", [[1.0, 2.0], None, UNFIT])
    with pytest.raises(UnfitColumnError):
        convert(pa.array([1.5]), "floats")


@pytest.mark.parametrize("separator", ["|", " ", ", "])
def test_texts_of_floats(separator):
    lists = ["1.5", "1e-2", "3"], ["x"], ["1", "", "2"], [""], ["[1", "2]"]
    texts = [separator.join(items) for items in lists] + [None]
    expected = [[1.5, float(np.float32(0.01)), 3.0], UNFIT, UNFIT, None, UNFIT, None]
    for values in encodings(texts):
        check(values, "floats", expected, separator=separator)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_vectors_are_lists_of_one_size(dim):
    rows = [[1.0, 2.0], None, [3.0], [], [4.0, 5.0], [6.0, 7.0, 8.0], [9.0]]
    lists, _ = convert(pa.array(rows), "floats")
    for found in (as_vectors(lists, dim), as_vectors(lists.slice(2), dim)):
        found.validate(full=True)
        assert found.type == pa.list_(pa.float32(), dim)
        wanted = rows[len(rows) - len(found) :]
        assert found.to_pylist() == [r if r and len(r) == dim else None for r in wanted]
