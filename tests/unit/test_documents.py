"""YAML of a few lines that stands for billions of values, or takes minutes."""

import time

import pytest

from infnet_dist.documents import MalformedError, parse_json, parse_yaml

MERGED = [f"l{i}: &l{i} {{<<: [*l{i - 1}, *l{i - 1}], x{i}: 1}}" for i in range(1, 40)]
LISTS = [f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}, *l{i - 1}]" for i in range(1, 40)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(["l0: &l0 {a: 1, b: 2}", *MERGED]), "merged keys stand for more than 500000"),
        ("\n".join(["l0: &l0 [1, 2, 3]", *LISTS]), "stands for more than 500000 values"),
        ("&a [*a]", "more than 50 levels"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 5_000, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("a: 0x" + "f" * 9_000, "more than 64 bits"),
        ("a: " + "9" * 9_000, "a number .* can't be read"),
        ('"\\ud800"', "half a character"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("!!binary AAAA", "it holds a bytes"),
        ("a: b: c", "line 1, column 5"),
        ("\x00", "characters that YAML doesn't allow"),
        ("x" * 5_000_000, "at most 4194304 are read"),
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
