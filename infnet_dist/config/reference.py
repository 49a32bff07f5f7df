"""The configuration reference: every section and key of a run file, as Markdown.

    python -m infnet_dist.config.reference > docs/configuration.md

Names, types, limits, defaults and descriptions come from the models; `make reference` writes the
page, and a test fails where it is stale.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infnet_dist.config.messages import sections
from infnet_dist.config.run import Config

HEADER = """\
# Configuration reference

Generated from the models in `infnet_dist/config` by `make reference`; edit the descriptions there.

One YAML file is one run. It holds only the keys whose values differ from the defaults below; a key
is written as `section: {key: value}` in the file and as `--set section.key=value` on the command
line. `<name>` is a name that you choose. Keys marked *required* have no default. How YAML,
paths and overrides are read: [configs/README.md](../configs/README.md).
"""
_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
_SIGNS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
_SYMBOLS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def reference() -> str:
    """The whole page."""
    parts = [HEADER]
    for name, field in Config.model_fields.items():
        parts += _section(name, field.annotation, level=2)
    return "\n".join(parts)


def _section(place: str, annotation: Any, level: int) -> Iterator[str]:
    """A heading and a table for each kind of a section, then its inner sections."""
    kinds = sections(annotation)
    for kind, model in kinds.items():
        tag = _tag(model) if len(kinds) > 1 else None
        title = f"`{place}`" + (f", `{tag}: {kind}`" if tag else "")
        yield f"{'#' * level} {title}\n\n{_summary(model)}\n"
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        rows = [_row(name, field) for name, field in fields.items() if name != tag]
        if rows:
            yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])
        for name, field in model.model_fields.items():
            if sections(_value_type(field.annotation)):
                inner = f"{place}.{name}{'.<name>' if _is_mapping(field.annotation) else ''}"
                yield from _section(inner, _value_type(field.annotation), level + 1)


def _tag(model: type[BaseModel]) -> str | None:
    """The key whose one value tells this kind of section from others."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return name
    return None


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{name}`", _type(field.annotation, field.metadata), _default(field)]
    inner = [_summary(model) for model in sections(field.annotation).values()]
    meaning = field.description or ("; ".join(inner) if len(inner) == 1 else "see below")
    meaning = re.sub(r"(?:<[\w ]+>[\w/]*)+", r"`\g<0>`", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, meaning]) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        tag = _tag(type(value))
        return f"`{{{tag}: {getattr(value, tag)}}}`" if tag else "its defaults"
    return f"`{value}`" if isinstance(value, str | Path) else f"`{json.dumps(value)}`"


def _type(annotation: Any, metadata: list[Any]) -> str:
    limits = _limits(metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if kinds := sections(annotation):
        return f"one of {', '.join(kinds)}" if len(kinds) > 1 else "section"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        named = [_type(argument, metadata) for argument in arguments if argument is not NoneType]
        return " or ".join([*dict.fromkeys(named), *(["null"] if NoneType in arguments else [])])
    if origin is tuple:
        return f"list of {_type(arguments[0], [])}{limits}"
    if origin is dict:
        return f"mapping: {_type(arguments[0], [])} to {_type(arguments[1], [])}{limits}"
    return f"{_NAMES.get(annotation, annotation)}{limits}"


def _limits(metadata: list[Any]) -> str:
    found = []
    for limit in metadata:
        if isinstance(limit, FieldInfo):
            found.append(_limits(limit.metadata).strip(" ()"))
        for kind, name in _SIGNS.items():
            if isinstance(limit, kind):
                found.append(f"{_SYMBOLS[name]} {_number(getattr(limit, name))}")
        if isinstance(limit, MultipleOf):
            found.append(f"multiple of {limit.multiple_of}")
        if isinstance(limit, MinLen):
            found.append(f"length >= {limit.min_length}")
        if isinstance(limit, MaxLen):
            found.append(f"length <= {limit.max_length}")
        if pattern := getattr(limit, "pattern", None):
            found.append(f"matches `{pattern}`")
    return f" ({', '.join(filter(None, found))})" if any(found) else ""


def _number(value: Any) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _value_type(annotation: Any) -> Any:
    return get_args(annotation)[1] if _is_mapping(annotation) else annotation


if __name__ == "__main__":
    print(reference(), end="")
