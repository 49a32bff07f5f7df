"""YAML and JSON that may come from elsewhere: parsed within bounds, or refused in one line."""

import json
import re
from datetime import date
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

MAX_YAML_CHARACTERS = 4 * 2**20
MAX_VALUES = 500_000  # aliases of YAML followed: a few lines can stand for billions of values
MAX_DEPTH = 50
_QUOTED = re.compile(r"'[^'<>]{2,}'")
_MOST_TOLD = 500  # characters
_PLAIN = (bool, float, date, type(None))

Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,1000}$")]  # safe on a terminal


class MalformedError(ValueError):
    """A text is no YAML or JSON, or describes what is too large or too deep."""


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text: mappings, lists, text, numbers, days, null.

    Raises:
        MalformedError: says where, but doesn't repeat the text, which may hold a secret.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise MalformedError(f"{len(text)} characters, at most {MAX_YAML_CHARACTERS} are read")
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = _QUOTED.sub("'...'", error.problem or error.context or "wrong")
        raise MalformedError(f"{problem}{where}") from None
    except yaml.YAMLError:
        raise MalformedError("it holds characters that YAML doesn't allow") from None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except (ValueError, TypeError, OverflowError):  # of no day 2026-13-45, of 5,000 digits
        raise MalformedError("it holds a day or number that doesn't exist") from None
    check_plain(value)
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedError: says where.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(str(error)) from None


def first_fault(error: ValidationError) -> str:
    """Key and first fault of a checked document, safe on a terminal."""
    fault = error.errors()[0]
    text = f"{'.'.join(map(str, fault['loc'])) or 'as a whole'}: {fault['msg']}"
    return printable(text)[:_MOST_TOLD]


def printable(text: str) -> str:
    """The text, safe on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_plain(value: Any) -> None:
    """Check that a parsed value is of plain types, and neither deep nor huge.

    Raises:
        MalformedError: it isn't.
    """
    waiting, seen = [(value, 1)], 0
    while waiting:
        found, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise MalformedError(f"it is nested more than {MAX_DEPTH} levels deep")
        if isinstance(found, dict):
            inner = [*found, *found.values()]
        elif isinstance(found, list):
            inner = found
        else:
            _check_scalar(found)
            continue
        if seen + len(waiting) + len(inner) > MAX_VALUES:
            raise MalformedError(f"it stands for more than {MAX_VALUES} values")
        waiting += [(one, depth + 1) for one in inner]


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise MalformedError("it holds half a character")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise MalformedError("it holds a whole number of more than 64 bits")
    elif not isinstance(value, _PLAIN):
        raise MalformedError(f"it holds a {type(value).__name__}, expected plain values")


class _Loader(yaml.SafeLoader):
    """Keeps merged mappings (`<<`) small, which can double with each line, and nesting shallow.

    The scanner's time goes by the square of the depth.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the merged keys in place."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            problem = f"merged keys stand for more than {MAX_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
