"""`--set key.path=value`: changes to a run file, applied before validation."""

import logging
from collections.abc import Sequence
from typing import Any

from infnet_dist.errors import ConfigError
from infnet_dist.io.parsing import MalformedError, parse_yaml

_MOST_SHOWN = 100  # characters of a key
_NULLS = ("null", "Null", "NULL", "~")
log = logging.getLogger("infnet_dist")


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides to the sections of a run file, in place.

    Raises:
        ConfigError: an override isn't key.path=value, its value is empty, or two set the same key.
    """
    keys: list[str] = []
    for override in overrides:
        key = key_of(override)
        for other in keys:
            if covers(other, key) or covers(key, other):
                both = "twice" if key == other else f"together with --set {_shown(other)}"
                raise ConfigError(f"--set {_shown(key)}: given {both}; keep one")
        keys.append(key)
        _apply(raw, key, override)


def key_of(override: str) -> str:
    """The key of `key.path=value`.

    Raises:
        ConfigError: the text has another form.
    """
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {_shown(key)!r}: expected key.path=value, e.g. training.epochs=2")
    return key


def covers(key: str, other: str) -> bool:
    """Whether `other` is the key itself or inside its section."""
    return f"{other}.".startswith(f"{key}.")


def _apply(raw: dict[str, Any], key: str, override: str) -> None:
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(
                f"--set {_shown(key)}=...: {parent[:_MOST_SHOWN]!r} is a value, not a section"
            )
    before, section[last] = section.get(last), _value(key, override.partition("=")[2])
    if isinstance(before, dict) and isinstance(section[last], dict):
        if dropped := [name for name in before if name not in section[last]]:
            log.info(
                "--set %s replaces the whole section: %s of the run file no longer apply",
                *(key, ", ".join(dropped)),
            )


def _value(key: str, text: str) -> Any:
    try:
        value = parse_yaml(text)
    except MalformedError as error:
        if "appears twice" in str(error):
            raise ConfigError(f"--set {_shown(key)}=...: {error}") from None
        raise ConfigError(f"--set {_shown(key)}=...: the value is not YAML; quote it") from None
    if value is None and text.strip() not in _NULLS:
        raise ConfigError(
            f"--set {_shown(key)}=...: the value is empty; write null for none, '' for empty text"
        )
    if isinstance(value, str) and "#" in text and "#" not in value:
        raise ConfigError(
            f"--set {_shown(key)}=...: YAML reads # and the text after it as a comment; quote the "
            "value"
        )
    return value


def _shown(key: str) -> str:
    return key.partition("://")[0][:_MOST_SHOWN]  # the rest may contain a secret
