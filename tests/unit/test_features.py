"""Transforms in numpy against plain loops, and in torch against numpy, bit for bit."""

from bisect import bisect_right

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infnet_dist.errors import DataError
from infnet_dist.features import hashing, lists, numbers, torch_backend
from infnet_dist.features.ids import KeyMap
from infnet_dist.features.raw_values import Column
from infnet_dist.ingest.convert.keys import keys

INT64 = st.integers(-(2**63), 2**63 - 1)
ids_of = hnp.arrays(np.int64, st.integers(0, 40), elements=INT64)
FINITE = st.floats(width=32, allow_nan=True, allow_infinity=False)
floats_of = hnp.arrays(np.float32, st.integers(0, 40), elements=FINITE)
quick = settings(max_examples=60, deadline=None)


def same(tensor: torch.Tensor, array: np.ndarray) -> None:
    assert tensor.numpy().dtype == array.dtype
    assert tensor.numpy().tobytes() == np.ascontiguousarray(array).tobytes()


def test_keys_of_known_texts():
    """SipHash-2-4 and SplitMix64's finaliser: these values are in training sets."""
    found = hashing.text_keys(["a", "ä", "", "a"]).tolist()
    a, empty = -4496393130729816112, 1760245841805064774
    assert found == [a, 169404545344139998, empty, a]
    assert hashing.text_keys([]).tolist() == []


@quick
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=12))
def test_keys_of_texts_are_those_of_pandas(texts):
    wanted = pd.util.hash_array(np.array([*texts, "x"], object), categorize=False)[:-1]
    assert hashing.text_keys(texts).tolist() == wanted.view(np.int64).tolist()
    assert keys(pa.array(texts, pa.large_string())).tolist() == hashing.text_keys(texts).tolist()


def test_keys_of_texts_of_all_lengths():
    texts = [chr(97 + n % 26) * n for n in range(70)] + ["é😀" * n for n in (3, 85, 1_000)]
    wanted = pd.util.hash_array(np.array(texts, object), categorize=False).view(np.int64)
    assert hashing.text_keys(texts).tolist() == wanted.tolist()
    assert [int(hashing.text_keys([text])[0]) for text in texts] == wanted.tolist()
    assert hashing.text_keys(texts[::-1]).tolist() == wanted[::-1].tolist()


@quick
@given(ids_of, st.integers(0, 5), st.sampled_from([2, 3, 7_000, 10**14]))
def test_hashes(values, seed, rows):
    tensor = torch.tensor(values)
    same(torch_backend.splitmix64(tensor, seed), hashing.splitmix64(values, seed).view(np.int64))
    hashed = hashing.hashed_rows(values, rows, seed)
    same(torch_backend.hashed_rows(tensor, rows, seed), hashed)
    assert hashed.tolist() == [
        1 + int(x) % (rows - 1) for x in hashing.splitmix64(values, seed).tolist()
    ]
    same(torch_backend.raw_rows(tensor, rows), hashing.raw_rows(values, rows))
    same(torch_backend.known_ids(tensor, rows), hashing.known_ids(values, rows))


@quick
@given(hnp.arrays(np.int64, st.tuples(st.just(3), st.integers(0, 20)), elements=INT64 | st.just(0)))
def test_crosses(components):
    made = hashing.cross_ids(list(components), 50)
    same(torch_backend.cross_ids([torch.tensor(c) for c in components], 50), made)
    assert ((made == 0) == (components == 0).any(axis=0)).all()


@quick
@given(floats_of, st.lists(FINITE.filter(lambda x: x == x), max_size=6))
def test_buckets(values, edges):
    edges = sorted({*edges, *values[:2][~np.isnan(values[:2])].tolist()})  # some are on an edge
    made = numbers.bucketise(values, edges)
    assert made.tolist() == [0 if v != v else 1 + bisect_right(edges, v) for v in values.tolist()]
    same(torch_backend.bucketise(torch.tensor(values), edges), made)


@quick
@given(floats_of, st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_standardised(values, mean, std):
    with np.errstate(over="ignore"):
        made = numbers.standardise(values, mean, std)
    same(torch_backend.standardise(torch.tensor(values), mean, std), made)


@quick
@given(hnp.arrays(np.int64, 20, elements=st.integers(-5, 2**62) | st.integers(0, 70)))
def test_time_gaps(gaps):
    wanted = [min(max(gap, 1).bit_length(), 31) for gap in gaps.tolist()]
    assert numbers.time_gap_buckets(gaps).tolist() == wanted
    same(torch_backend.time_gap_buckets(torch.tensor(gaps)), numbers.time_gap_buckets(gaps))
    rows, events = gaps, gaps[::-1].copy()
    made = numbers.gap_seconds(rows, events)
    wanted = [max((r - e) // 1000, 1) for r, e in zip(rows.tolist(), events.tolist(), strict=True)]
    assert made.tolist() == wanted
    same(torch_backend.gap_seconds(torch.tensor(rows), torch.tensor(events)), made)


@quick
@given(hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(0, 6)), st.integers(1, 7))
def test_lists_are_cut(lengths, limit):
    rows = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1]) if len(lengths) else []
    kept = lists.first_items(lengths, limit)
    assert np.flatnonzero(kept).tolist() == [int(i) for row in rows for i in row[:limit]]
    same(torch_backend.first_items(torch.tensor(lengths), limit), kept)
    same(torch_backend.cut(torch.tensor(lengths), limit), lists.cut(lengths, limit))


@quick
@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 12), st.integers(0, 5))))
def test_actions(flags):
    made = lists.action_codes(list(flags), flags.shape[1])
    assert made.tolist() == [
        1 + sum(2**bit for bit, flag in enumerate(item) if flag) for item in flags.T
    ]
    same(torch_backend.action_codes([torch.tensor(f) for f in flags], flags.shape[1]), made)


@quick
@given(st.dictionaries(INT64 | st.integers(0, 50), st.integers(1, 2**40), max_size=20), ids_of)
def test_vocabularies(known, wanted):
    found = np.array(list(known), np.int64)
    key_map = KeyMap.of(found, np.array(list(known.values()), np.int64))
    asked = np.concatenate([wanted, found, found[::-1]])
    expected = [known.get(key, 0) for key in asked.tolist()]
    assert key_map(asked).tolist() == expected
    assert KeyMap(key_map.keys, key_map.ids, direct=True)(asked).tolist() == expected
    tensors = torch.tensor(key_map.keys), torch.tensor(key_map.ids), torch.tensor(asked)
    assert torch_backend.vocabulary_ids(*tensors).tolist() == expected


def test_vocabularies_on_disk(tmp_path):
    key_map = KeyMap.of(np.array([9, -4, 7]), np.array([1, 2, 3]))
    key_map.save(tmp_path / "v")
    found = KeyMap.load(tmp_path / "v")
    assert found.keys.tolist() == [-4, 7, 9] and found.ids.dtype == np.int32
    assert isinstance(found.keys.base, np.memmap)  # replicas of a node share its pages
    assert found(np.array([7, 8, 9, -4])).tolist() == [3, 0, 1, 2]
    (tmp_path / "v.ids.npy").write_bytes((tmp_path / "v.ids.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match=r"v\.ids\.npy can't be read"):
        KeyMap.load(tmp_path / "v")
    with pytest.raises(DataError, match="the same 64-bit hash"):
        KeyMap.of(np.array([5, 1, 5]), np.array([1, 2, 3]))


def test_values_of_all_containers():
    for values in ([1, None, True, 2**64 - 1], np.array([1, None, True, 2**64 - 1], object)):
        found, null = Column.of_rows("x", values).integers()
        assert found.tolist() == [1, 0, 1, -1] and null.tolist() == [False, True, False, False]
    found, _ = Column.of_rows("x", np.array([2**64 - 1, 5], np.uint64)).integers()
    assert found.tolist() == [-1, 5]
    found, _ = Column.of_rows("x", np.array([-3, 5], np.int8)).integers()
    assert found.dtype == np.int64 and found.tolist() == [-3, 5]
    for values in (["a", None], ("a", None), np.array(["a", None], object)):
        found, null = Column.of_rows("x", values).text_keys()
        assert found[0] == hashing.text_keys(["a"])[0] and null.tolist() == [False, True]
    assert Column.of_rows("x", np.array(["a"])).text_keys()[0][0] == found[0]
    floats = Column.of_rows("x", [1, 2.5, None, True, 10**400, np.float32(0.5)]).floats()
    assert floats[[0, 1, 3, 4, 5]].tolist() == [1, 2.5, 1, np.inf, 0.5] and np.isnan(floats[2])
    for rows in ([[1], None, (2, 3)], [np.array([1]), np.array([], np.int64), np.array([2, 3])]):
        items = Column.of_lists("x", rows)
        assert items.integers()[0].tolist() == [1, 2, 3] and items.lengths.tolist() == [1, 0, 2]
    assert Column.of_lists("x", np.eye(2)).floats().tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("values", "kind", "named"),
    [
        ([1, "7"], "integers", r"'x', row 1 .*'7' \(str\).*integer"),
        ([1, 7.0], "integers", r"row 1 .*7\.0 \(float\)"),
        ([2**64], "integers", r"row 0 .*18446744073709551616"),
        (np.array([0.5]), "integers", r"row 0 .*0\.5"),
        (np.eye(2, dtype=int), "integers", r"row 0 "),
        ([None, 7], "text_keys", r"row 1 .*7 \(int\).*text"),
        (["a", b"b"], "text_keys", r"row 1 .*b'b' \(bytes\)"),
        (["a", "\ud800"], "text_keys", r"row 1 .*UTF-8"),
        ([1.5, "2"], "floats", r"row 1 .*'2' \(str\).*number"),
        ([0, 2], "flags", r"row 1 .*2 .*0 or 1"),
        ("abc", "integers", r"'x': got 'abc' \(str\).*list"),
        ({"a": 1}, "integers", r"'x': got .*dict"),
    ],
)
def test_wrong_values_are_named(values, kind, named):
    with pytest.raises(DataError, match=named):
        getattr(Column.of_rows("x", values), kind)()


def test_wrong_items_are_named():
    items = Column.of_lists("x", [[1, 2], [], [3, "4"]])
    with pytest.raises(DataError, match=r"'x', row 2, item 1 .*'4'"):
        items.integers()
    for rows in ([[1], "39|6"], [[1], 7], [[1], {"a": 1}]):
        with pytest.raises(DataError, match=r"'x', row 1 .*expected a list"):
            Column.of_lists("x", rows)
