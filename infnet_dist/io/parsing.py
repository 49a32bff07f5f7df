"""Parses YAML and JSON of unknown origin within limits; errors are one line.

YAML scalars follow the core schema of YAML 1.2: `true` and `false` are the only booleans, `010` is
10, `1:30`, `yes` and `2026-05-04` are text, `1e-3` is a number. One addition: digits may be grouped
by thousands, as in `2_000_000`. A key that appears twice in a mapping is an error.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

MAX_YAML_CHARACTERS = 4 * 2**20
MAX_VALUES = 500_000  # with YAML aliases expanded: a few lines can mean billions of values
MAX_DEPTH = 50
_QUOTED = re.compile(r"'[^'<>]{2,}'")
_SHOWN_KEY = re.compile(r"[A-Za-z0-9_./-]{1,100}")  # other keys may contain a secret
_MAX_MESSAGE = 500  # characters
_PLAIN = (bool, float, type(None))

Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,1000}$")]  # safe on a terminal
Model = TypeVar("Model", bound=BaseModel)


class MalformedError(ValueError):
    """A text isn't valid YAML or JSON, or its value is too large or too deep."""


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text: mappings with text keys, lists, text, numbers, null.

    Raises:
        MalformedError: names the position, but no values, which may contain a secret.
    """
    return _parse_yaml(text, _CoreLoader)


def parse_saved_yaml(text: str) -> Any:
    """The plain value of a text of `dump_yaml`, of earlier versions too; errors as in `parse_yaml`.

    Earlier versions quoted for YAML 1.1 only and wrote text such as `1e3` without quotes.
    """
    return _parse_yaml(text, _BoundedLoader)


def dump_yaml(value: Any) -> str:
    """A plain value as YAML; text is quoted if YAML 1.1 or 1.2 would read another type."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedError: names the position; or a key appears twice in an object.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(str(error)) from None


def checked(model: type[Model], value: Any) -> Model:
    """Validate a plain value strictly: integers, numbers, booleans and text aren't converted.

    Integers are accepted as numbers, lists as tuples, and text as paths, as in JSON.

    Raises:
        ValidationError: the value is invalid.
    """
    return model.model_validate_json(json.dumps(value), strict=True)


def first_error(error: ValidationError) -> str:
    """Key and message of the first error of a document, safe to print."""
    first = error.errors()[0]
    text = f"{'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}"
    return printable(text)[:_MAX_MESSAGE]


def printable(text: str) -> str:
    """The text, safe to print."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_plain(value: Any) -> None:
    """Check the types, size and depth of a parsed value.

    Raises:
        MalformedError: a value isn't plain, or the whole is too large or too deep.
    """
    waiting, seen = [(value, 1)], 0
    while waiting:
        found, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise MalformedError(f"it is nested more than {MAX_DEPTH} levels deep")
        if isinstance(found, dict):
            inner = [*found, *found.values()]
            _check_keys(found)
        elif isinstance(found, list):
            inner = found
        else:
            _check_scalar(found)
            continue
        if seen + len(waiting) + len(inner) > MAX_VALUES:
            raise MalformedError(f"it contains more than {MAX_VALUES} values")
        waiting += [(one, depth + 1) for one in inner]


def _check_keys(found: dict[Any, Any]) -> None:
    for key in found:
        if not isinstance(key, str):
            shown = key if isinstance(key, int | float | None) else type(key).__name__
            raise MalformedError(f"key {shown!s:.50}: expected text as a key; quote it")


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise MalformedError("it contains half of a surrogate pair, expected whole characters")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise MalformedError("it contains an integer of more than 64 bits")
    elif not isinstance(value, _PLAIN):
        raise MalformedError(f"it contains a {type(value).__name__}, expected plain values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedError(f"key {_shown(twice)} appears twice in one object; keep one of them")
    return found


def _shown(key: str) -> str:
    return repr(key) if _SHOWN_KEY.fullmatch(key) else "'...'"


def _parse_yaml(text: str, loader: type["_BoundedLoader"]) -> Any:
    if len(text) > MAX_YAML_CHARACTERS:
        raise MalformedError(f"{len(text)} characters, at most {MAX_YAML_CHARACTERS} are read")
    try:
        value = yaml.load(text, loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = _QUOTED.sub("'...'", error.problem or error.context or "wrong")
        raise MalformedError(f"{problem}{where}") from None
    except yaml.YAMLError:
        raise MalformedError("it contains characters that YAML doesn't allow") from None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except MalformedError:
        raise
    except (ValueError, TypeError, OverflowError):  # e.g. 5,000 digits, or a mapping as a key
        raise MalformedError("it contains a number or key that can't be read") from None
    check_plain(value)
    return value


class _BoundedLoader(yaml.SafeLoader):
    """Rejects keys that appear twice; limits the size of merged mappings and the depth.

    Merged mappings (`<<`) can double with each line. The time of the scanner is quadratic in the
    depth.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._flattened: set[yaml.MappingNode] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next value."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merged keys, once for all references to the mapping."""
        if node in self._flattened:
            return
        self._flattened.add(node)
        self._check_unique(node)  # first: a key may override a merged one
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            problem = f"merged keys contain more than {MAX_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def _check_unique(self, node: yaml.MappingNode) -> None:
        places: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = places.setdefault((key.tag, key.value), key.start_mark)
            if first is not key.start_mark:
                where = " and ".join(
                    f"line {mark.line + 1}, column {mark.column + 1}"
                    for mark in (first, key.start_mark)
                )
                raise MalformedError(
                    f"key {_shown(key.value)} appears twice, in {where}; keep one of them"
                )


class _CoreLoader(_BoundedLoader):
    """Reads scalars by the core schema of YAML 1.2."""

    def process_directives(self) -> Any:
        """Reject a text that declares another version."""
        found = super().process_directives()  # type: ignore[no-untyped-call]
        if self.yaml_version not in (None, (1, 2)):
            raise MalformedError("its %YAML directive has another version, expected 1.2 or none")
        return found


class _Dumper(yaml.SafeDumper):
    """Quotes text that either schema would read as another type; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values in full each time."""
        return True


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    return int(digits, {"0o": 8, "0x": 16}.get(digits[:2], 10))


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# YAML 1.2.2, section 10.3.2, plus groups of thousands.
_CORE: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"null|Null|NULL|~|", "~nN\0", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?[1-9][0-9]{0,2}(_[0-9]{3})+",
        "-+0123456789",
        _integer,
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _number,
    ),
}


def _constructor(
    name: str, pattern: re.Pattern[str], make: Callable[[str], Any]
) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)  # type: ignore[no-untyped-call]
        if not pattern.fullmatch(text):
            problem = f"expected a value of the tag !!{name}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return make(text)

    return construct


def _add_core_schema() -> None:
    _CoreLoader.yaml_implicit_resolvers = {}  # without those of YAML 1.1
    for name, (text, first_letters, make) in _CORE.items():
        tag, pattern = f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{text})$")
        first = ["" if letter == "\0" else letter for letter in first_letters]
        for kind in (_CoreLoader, _Dumper):
            kind.add_implicit_resolver(tag, pattern, first)
        _CoreLoader.add_constructor(tag, _constructor(name, pattern, make))
    merge = "tag:yaml.org,2002:merge"
    _CoreLoader.add_implicit_resolver(merge, re.compile(r"^<<$"), ["<"])


_add_core_schema()
