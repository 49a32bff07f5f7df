"""YAML scalars, and short YAML texts that would take minutes or contain billions of values."""

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from infnet_dist.io.parsing import (
    MalformedError,
    checked,
    dump_yaml,
    parse_json,
    parse_saved_yaml,
    parse_yaml,
)

MERGED = [f"l{i}: &l{i} {{<<: [*l{i - 1}, *l{i - 1}], x{i}: 1}}" for i in range(1, 40)]
LISTS = [f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}, *l{i - 1}]" for i in range(1, 40)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(["l0: &l0 {a: 1, b: 2}", *MERGED]), "500000"),
        ("\n".join(["l0: &l0 [1, 2, 3]", *LISTS]), "500000"),
        ("&a [*a]", "50"),
        ("[" * 100_000, "nested"),
        ("{a: " * 5_000, "nested"),
        ("- " * 20_000, "nested"),
        ("a: 0x" + "f" * 9_000, "64 bits"),
        ("a: " + "9" * 9_000, "number"),
        ('"\\ud800"', "character"),
        ("!!python/object/apply:os.system [ls]", "constructor.*line 1"),
        ("!!binary AAAA", "bytes"),
        ("a: b: c", "line 1, column 5"),
        ("\x00", "characters"),
        ("x" * 5_000_000, "4194304"),
    ],
)
def test_it_is_refused_at_once(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(MalformedError, match=message):
        parse_yaml(text)
    assert time.process_time() - start < 2


def test_plain_yaml_and_json_are_read() -> None:
    assert parse_yaml("a: &x {b: 1_000, <<: {c: 2}}\nd: *x\n") == {
        "a": {"b": 1000, "c": 2},
        "d": {"b": 1000, "c": 2},
    }
    assert parse_yaml("") is None
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    for text in ("[" * 100_000, "9" * 9_000, b"\xff", "{"):
        with pytest.raises(MalformedError):
            parse_json(text)


SCALARS: list[tuple[str, Any]] = [
    *((text, text) for text in ("yes", "no", "on", "off", "y", "n", "tRUE")),
    *((text, text) for text in ("1:30", "190:20:30", "1_0", "1__000", "10_00", "0_000", "0b11")),
    *((text, text) for text in ("2022-05-06", "2022-05-06 06:00:00", "=", "1_000.5", "1e", "0x")),
    *(("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None)),
    *(("010", 10), ("08", 8), ("-017", -17), ("0o17", 15), ("0x1F", 31), ("+5", 5), ("-0", 0)),
    *(("1_000", 1000), ("2_000_000_000", 2_000_000_000), ("-12_345", -12345)),
    *(("1e-3", 0.001), ("1e3", 1000.0), ("1.5E+2", 150.0), (".5", 0.5), ("1.", 1.0)),
    *((".inf", math.inf), ("-.INF", -math.inf), ("!!str 010", "010"), ("'1e3'", "1e3")),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert (type(found), found) == (type(value), value)
    assert parse_yaml(f"k: {text}\n") == {"k": value}


def test_not_a_number_is_one() -> None:
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize(
    "text",
    [
        *("!!int 1:30", "!!int yes", "!!bool yes", "!!null 5", "!!float 1:30.5", "!!int 0b11"),
        *("!!timestamp 2022-05-06", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]"),
        *("1: a", "true: a", "~: a", "1.5: a", "? [a]\n: b", "a: 1\n---\nb: 2"),
        "%YAML 1.1\n---\na: yes",
    ],
)
def test_other_tags_keys_and_versions_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("x:\n  a: 1\n  'a': 1\n", "a", (2, 3)),
        ("x: [{b: 1}, {b: 2,\n b: 3}]", "b", (1, 2)),
        ("d: &d {a: 1}\nx:\n  <<: *d\n  c: 1\n  c: 2\n", "c", (4, 5)),
        ("data: {path: x}\ntraining: {epochs: 1}\ndata: {path: y}\n", "data", (1, 3)),
    ],
)
def test_a_key_that_appears_twice_is_named_with_both_lines(
    text: str, key: str, lines: tuple[int, int]
) -> None:
    for parse in (parse_yaml, parse_saved_yaml):
        with pytest.raises(MalformedError) as caught:
            parse(text)
        assert all(part in str(caught.value) for part in (repr(key), *(f"line {n}" for n in lines)))


def test_two_merges_in_one_mapping_are_a_key_twice_but_an_own_key_may_replace_a_merged_one() -> (
    None
):
    base = "d: &d {a: 1, b: 2}\n"
    with pytest.raises(MalformedError):
        parse_yaml(base + "x: {<<: *d, <<: *d}")
    found = parse_yaml(base + "x: &x {<<: *d, b: 3}\ny: {<<: *x, b: 4}\nz: {<<: [*x, *d]}")
    assert found["x"] == {"a": 1, "b": 3}
    assert found["y"] == {"a": 1, "b": 4}
    assert found["z"] == {"a": 1, "b": 3}


def test_a_key_that_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(MalformedError) as caught:
        parse_yaml("{s3://me:secret@store: 1, s3://me:secret@store: 2}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_of_json_that_appears_twice_is_named(text: str) -> None:
    with pytest.raises(MalformedError, match="'a'"):
        parse_json(text)


WRITTEN = ["yes", "010", "1e3", "1:30", "2022-05-06", "null", "~", "1_000", "0o17", "08", "<<", "="]
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)
LIKE_NUMBERS = st.from_regex(r"[-+.]?[0-9_:.oxeE+-]{1,8}", fullmatch=True)
TEXT = st.sampled_from(WRITTEN) | LIKE_NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(VALUES)
@example({text: text for text in WRITTEN})
def test_what_is_written_reads_back_as_the_same(value: Any) -> None:
    text = dump_yaml(value)
    # Surrogates and the like are refused, whoever wrote them.
    try:
        found = parse_yaml(text)
    except MalformedError:
        assert not str(value).isprintable()
        return
    assert repr(found) == repr(value), "types too"
    assert repr(parse_saved_yaml(text)) == repr(value)
    assert repr(yaml.safe_load(text)) == repr(value), "and by parsers of YAML 1.1"


@pytest.mark.parametrize("text", ["1e3", "1e-3", "0o17", "08", ".5e3", "1.5e3"])
def test_text_that_earlier_versions_wrote_unquoted_reads_as_text(text: str) -> None:
    written = yaml.safe_dump({"name": text, text: 1.0e-8})
    assert parse_saved_yaml(written) == {"name": text, text: 1.0e-8}
    assert not isinstance(parse_yaml(yaml.safe_dump(text).split("\n")[0]), str), "not by 1.2"


class Kinds(BaseModel):
    count: int = 0
    share: float = 0.0
    on: bool = False
    name: str = ""
    pair: tuple[int, ...] = ()


def test_a_model_takes_numbers_for_numbers_alone() -> None:
    for wrong in (
        *({"count": value} for value in ("2", 2.0, True, None, [2])),
        *({"share": value} for value in ("2", True, None)),
        *({"on": value} for value in (1, 0, "yes", "true", 1.0)),
        *({"name": value} for value in (1, 1.5, True, None)),
        *({"pair": value} for value in ([1.0], ["1"], "12", {"1": 2})),
    ):
        with pytest.raises(ValidationError):
            checked(Kinds, wrong)
    found = checked(Kinds, {"share": 2, "pair": [1, 2]})
    assert (found.share, type(found.share), found.pair) == (2.0, float, (1, 2))
