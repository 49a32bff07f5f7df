"""Errors that a user can fix: one line each with what is wrong, the value, what is allowed, a fix.

All of them are `ValueError`s with one base class. Internal invariants are asserts.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of all errors that are caused by the user's input, not by a bug."""


class ConfigError(UserError):
    """A run file or a `--set` override is wrong."""


class DataError(UserError):
    """A training set or a raw log is missing, malformed or unsuitable for the run."""


class PlanError(UserError):
    """A sharding plan doesn't fit the tables, the workers or the device."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete, or of another model."""


class BundleError(UserError):
    """A bundle for serving is missing, incomplete or damaged."""


class RequestError(UserError):
    """A request to score candidates is malformed, or asks for more than is allowed."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """Message for an unknown name, with the nearest known one.

    Example: `unknown task 'clik'; did you mean 'click'? (known: click, like)`
    """
    names, got = sorted(known), got[:100]
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {got!r}{hint} (known: {', '.join(names) or 'none'})"
