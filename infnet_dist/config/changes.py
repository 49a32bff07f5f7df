"""Differences between two configs, by dotted key."""

from collections.abc import Iterator
from typing import Any

from infnet_dist.config.run import Config


def changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both values, in the order of the sections.

    A key that only one config has, e.g. an option of another model, is None in the other.
    """
    one, other = (dict(flat("", c.model_dump(mode="json"))) for c in (before, after))
    return {
        key: (one.get(key), other.get(key))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    }


def flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values of nested mappings by dotted key; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(f"{place}.{key}" if place else str(key), inner)
    else:
        yield place, value
