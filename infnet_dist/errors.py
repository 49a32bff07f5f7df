"""Errors that a user can mend: each says what, got, allowed and the next move in one line.

Everything below is a `ValueError`, so callers can catch the family. Our own invariants are asserts.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of all errors whose cause is the user's input, never a bug of ours."""


class ConfigError(UserError):
    """A run file or a `--set` override is wrong."""


class DataError(UserError):
    """A training set or a raw log is missing, malformed or can't feed the run."""


class PlanError(UserError):
    """A sharding plan doesn't fit the tables, the workers or the device."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or belongs to another model."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """Message for a name that isn't known, with the nearest known one.

    Example: `unknown task 'clik'; did you mean 'click'? (known: click, like)`
    """
    names, got = sorted(known), got[:100]
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {got!r}{hint} (known: {', '.join(names) or 'none'})"
