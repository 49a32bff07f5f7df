"""How two configs differ, by dotted key."""

from collections.abc import Iterator
from typing import Any

from infnet_dist.config.run import Config


def changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, in the order of the sections, with both values.

    A key that only one of them has, e.g. an option of another model, has None on the other side.
    """
    one, other = (dict(flat("", c.model_dump(mode="json"))) for c in (before, after))
    return {
        key: (one.get(key), other.get(key))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    }


def flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted key; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(f"{place}.{key}" if place else str(key), inner)
    else:
        yield place, value
