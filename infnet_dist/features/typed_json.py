"""JSON values -> dataclasses, strictly: no key is unknown, and no value is converted."""

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from infnet_dist.errors import DataError

Made = TypeVar("Made")


def typed(value: Any, kind: type[Made]) -> Made:
    """An instance of a dataclass from a JSON value.

    Fields are int, str, float, bool, Literal, tuple[X, ...], dict[str, X], X | None, dataclasses,
    or unions of dataclasses with different values of `kind`.

    Raises:
        DataError: a key is missing or unknown, or a value is of another type; names its place.
    """
    found: Made = _typed(value, kind, "")
    return found


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as a value of a type; DataError names its place."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _instance(value, hint, where)
    if origin in (Union, types.UnionType):
        if type(None) in inner:
            rest = next(one for one in inner if one is not type(None))
            return None if value is None else _typed(value, rest, where)
        kinds = {one.kind: one for one in inner}  # dataclasses that differ by kind
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise DataError(f"{where}: got kind {kind!r}, expected one of {', '.join(kinds)}")
        return _instance(value, kinds[kind], where)
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(v, inner[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _typed(v, inner[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise DataError(f"{where or 'it'}: got {str(value)[:60]!r}, expected {hint}")


def _instance(value: Any, cls: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DataError(f"{where or 'it'}: got {str(value)[:60]!r}, expected an object")
    hints = get_type_hints(cls)
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for name in sorted(required - value.keys()):
        raise DataError(f"{where or 'it'} lacks the key {name!r}")
    for name in sorted(value.keys() - hints.keys()):
        raise DataError(f"{where or 'it'}: unknown key {str(name)[:60]!r}")
    made = {k: _typed(v, hints[k], f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    try:
        return cls(**made)
    except DataError as error:
        raise DataError(f"{where}: {error}" if where else str(error)) from None
