"""Messages for the validation errors of a run file.

Each message names the key, the value, the expected type or range with its unit, and for an unknown
key the nearest valid one.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infnet_dist.config.renamed import RENAMED_KEYS
from infnet_dist.errors import unknown_name

# By prefix of pydantic's error types: int_parsing, int_type, int_from_float, ...
_EXPECTED = {
    "int_": "an integer",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_type": "text",
    "path_": "a path",
    "tuple_type": "a list",
    "too_short": "{min_length} or more entries",
    "dict_type": "a section of keys",
    "model_": "a section of keys",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "invalid_key": "text as a key",
}
_MOST_SHOWN = 200  # characters of a value
_MOST_LINES = 20


def explain(problems: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """One line for each invalid key of a run file.

    Args:
        problems: `ValidationError.errors()`.
        root: the validated model.
    """
    found: dict[str, str] = {}
    for problem in problems:
        place = _Place(root)
        for part in problem["loc"]:
            place.enter(part)
        key = _short(".".join(place.parts))
        message = _message(problem, key, place)
        if key in found and problem["type"] == "literal_error":
            # A union such as a path or 'auto': pydantic reports each member separately.
            found[key] = f"{found[key]}, or {problem['ctx']['expected']}"
        else:
            found.setdefault(key, message)
    lines = list(found.values())
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return lines[:_MOST_LINES] + more


class _Place:
    """The key of a problem: follows pydantic's location through sections, unions and mappings."""

    def __init__(self, root: type[BaseModel]) -> None:
        self.annotation: Any = root
        self.parts: list[str] = []
        self.section: type[BaseModel] | None = None
        self.field: FieldInfo | None = None

    def enter(self, part: str | int) -> None:
        """Descend one step; pydantic's tags of union members aren't part of the key."""
        members = sections(self.annotation)
        if len(members) > 1 and part in members:
            self.annotation = members[str(part)]
        elif len(members) == 1 and get_origin(self.annotation) is not dict:
            self.section = next(iter(members.values()))
            self.field = _fields(self.section).get(str(part))
            self.annotation = self.field.annotation if self.field else None
            self.parts.append(str(part))
        elif get_origin(self.annotation) is dict:
            self.annotation = get_args(self.annotation)[1]
            self.parts.append(str(part))
        elif isinstance(part, int):
            if get_origin(self.annotation) is tuple:
                self.annotation = get_args(self.annotation)[0]
            self.parts.append(str(part))


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by their keys in a run file."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The section models inside an annotation, by the tag that identifies each of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        literals = [
            get_args(field.annotation)
            for field in annotation.model_fields.values()
            if get_origin(field.annotation) is Literal
        ]
        tags = [values[0] for values in literals if len(values) == 1]
        return {str(next(iter(tags), annotation.__name__)): annotation}
    if get_origin(annotation) in (Annotated, Union, UnionType):
        found: dict[str, type[BaseModel]] = {}
        for argument in get_args(annotation):
            found |= sections(argument)
        return found
    return {}


def _message(problem: Any, key: str, place: _Place) -> str:
    kind, members = problem["type"], sections(place.annotation)
    described = place.field.description if place.field else None
    unit = f" ({described})" if described else ""
    if kind == "extra_forbidden" and key in RENAMED_KEYS:
        return f"unknown key {key!r}; it is now {RENAMED_KEYS[key]!r}"
    if kind == "extra_forbidden":
        return f"unknown key {key!r}; {_nearest(place)}"
    if kind == "missing" and len(members) == 1:
        keys = ", ".join(*(model.model_fields for model in members.values()))
        return f"missing section {key!r} (keys: {keys})"
    if kind == "missing":
        return f"missing key {key!r}{unit}"
    if kind == "union_tag_invalid":
        return unknown_name(f"kind of {key}", problem["ctx"]["tag"], members)
    if kind == "union_tag_not_found":
        tag = str(problem["ctx"]["discriminator"]).strip("'")
        return f"missing key '{key}.{tag}'; expected one of: {', '.join(members)}"
    if kind == "value_error":  # raised by our validators
        return ": ".join(part for part in (key, str(problem["ctx"]["error"])) if part)
    if kind == "string_type" and place.field and _takes_path(place.field.annotation):
        kind = "path_type"  # paths are text in JSON
    text = next((text for start, text in _EXPECTED.items() if kind.startswith(start)), None)
    expected = text.format_map(problem.get("ctx", {})) if text else f"other: {problem['msg']}"
    return f"{key}{unit}: got {_short(repr(problem['input']))}, expected {expected}"


def _takes_path(annotation: Any) -> bool:
    return annotation is Path or Path in get_args(annotation)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _nearest(place: _Place) -> str:
    valid = list(_fields(place.section)) if place.section else []
    near = difflib.get_close_matches(place.parts[-1][:100], valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
