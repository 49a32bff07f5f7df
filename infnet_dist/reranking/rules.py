"""Rules on neighbouring results: how many of a kind may be near each other, or near the top.

A kind is a value of a column of the candidates, e.g. an author. A rule may be limited to some
values, e.g. to advertisements; candidates of other values, or without one (None), always obey it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infnet_dist.errors import ConfigError, DataError, unknown_name
from infnet_dist.reranking.calibration.calibrators import Array

Value = int | str


@dataclass(frozen=True)
class InWindow:
    """At most `at_most` of a kind in any `window` neighbouring results.

    At most k in a row is a window of k + 1; one in every k is a window of k with at most 1.

    Raises:
        ConfigError: expected 1 <= at_most < window.
    """

    column: str
    at_most: int
    window: int
    values: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.at_most < self.window:
            raise ConfigError(
                f"rules: at most {self.at_most} of a {self.column} in any {self.window} results; "
                "expected 1 <= at_most < window"
            )

    @property
    def reach(self) -> int:
        """Number of earlier results that count."""
        return self.window - 1

    @property
    def ends(self) -> float:
        """Position from which on the rule allows everything."""
        return np.inf

    def __str__(self) -> str:
        return f"at most {self.at_most} of a {self.column}{_of(self.values)} in {self.window}"


@dataclass(frozen=True)
class InFirst:
    """At most `at_most` of a kind in the first `positions` results.

    Raises:
        ConfigError: expected 0 <= at_most < positions, and 0 only for given values.
    """

    column: str
    at_most: int
    positions: int
    values: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        least = 1 if self.values is None else 0
        if not least <= self.at_most < self.positions:
            raise ConfigError(
                f"rules: at most {self.at_most} of a {self.column} in the first {self.positions} "
                f"results; expected {least} <= at_most < positions"
            )

    @property
    def reach(self) -> int:
        """Number of earlier results that count."""
        return self.positions

    @property
    def ends(self) -> float:
        """Position from which on the rule allows everything."""
        return self.positions

    def __str__(self) -> str:
        first = f"the first {self.positions}"
        return f"at most {self.at_most} of a {self.column}{_of(self.values)} in {first}"


Rule = InWindow | InFirst


def in_a_row(column: str, at_most: int, values: tuple[Value, ...] | None = None) -> InWindow:
    """At most `at_most` of a kind in a row."""
    return InWindow(column, at_most, at_most + 1, values)


def _of(values: tuple[Value, ...] | None) -> str:
    return "" if values is None else f" ({', '.join(map(str, values))})"


class RuleState:
    """The rules over a list that grows, most important rule first.

    A rule limits the candidates of a position unless none of those that the more important rules
    left obeys it. So the least important rule is the first to be relaxed, and no rule is relaxed
    that a candidate could obey together with all more important ones.

    Args:
        rules: in order of importance.
        columns: values [n] of the candidates by column: integers, booleans, text, or None.
        num_candidates: n.

    Raises:
        DataError: a column is missing, or of another type.
    """

    def __init__(
        self, rules: Sequence[Rule], columns: Mapping[str, Array], num_candidates: int
    ) -> None:
        for rule in rules:
            if rule.column not in columns:
                raise DataError(f"rules: {unknown_name('column', rule.column, columns)}")
        self._counters = [_Counter(r, columns[r.column], num_candidates) for r in rules]

    def eligible(self, remaining: Array) -> Array:
        """Mask [n] of the candidates that may come next, some of `remaining` (bool [n])."""
        mask = remaining
        for counter in self._counters:
            narrowed = mask & counter.allowed_N
            if narrowed.any():
                mask = narrowed
        return mask

    def add(self, chosen: int) -> tuple[str, ...]:
        """Choose a candidate; the rules that it breaks."""
        broken = tuple(str(c.rule) for c in self._counters if not c.allowed_N[chosen])
        for counter in self._counters:
            counter.add(chosen)
        return broken


class _Counter:
    """Counts the kinds within the reach of one rule.

    Attributes:
        allowed_N: mask of the candidates that obey the rule at the next position.
    """

    def __init__(self, rule: Rule, values: Array, num_candidates: int) -> None:
        self.rule = rule
        self._kinds_N = _kinds(rule, values, num_candidates)
        self._counts = np.zeros(self._kinds_N.max(initial=-1) + 2, np.int64)  # last: no kind
        self._chosen: list[int] = []  # kinds of all results so far
        self.allowed_N = self._allowed()

    def add(self, chosen: int) -> None:
        """Choose a candidate."""
        self._chosen.append(int(self._kinds_N[chosen]))
        self._counts[self._chosen[-1]] += 1
        if len(self._chosen) > self.rule.reach:
            self._counts[self._chosen[-1 - self.rule.reach]] -= 1
        self.allowed_N = self._allowed()

    def _allowed(self) -> Array:
        if len(self._chosen) >= self.rule.ends:
            return np.ones(len(self._kinds_N), bool)
        allowed_K = self._counts < self.rule.at_most
        allowed_K[-1] = True
        return allowed_K[self._kinds_N]


def _kinds(rule: Rule, values: Array, num_candidates: int) -> Array:
    """The number of each candidate's kind, int64 [n]; -1: the rule isn't about it."""
    found = np.asarray(values)
    if found.shape != (num_candidates,) or found.dtype.kind not in "biuUO":
        raise DataError(
            f"column {rule.column!r}: got {found.dtype} of shape {found.shape}, expected "
            f"{num_candidates} integers, booleans or texts"
        )
    listed = found.tolist()
    if found.dtype.kind == "O" and not all(isinstance(v, int | str | None) for v in listed):
        raise DataError(f"column {rule.column!r}: expected integers, booleans, texts or None")
    numbers: dict[Value | None, int] = {}
    if rule.values is not None:
        numbers = {value: i for i, value in enumerate(rule.values)}
        return np.array([numbers.get(value, -1) for value in listed], np.int64)
    numbers = {None: -1}
    return np.array([numbers.setdefault(v, len(numbers) - 1) for v in listed], np.int64)
