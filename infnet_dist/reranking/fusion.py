"""Formulas that fuse the predictions of all tasks for a candidate into one score.

The forms are those of industrial feeds, as collected in Wang Shusen's lectures on recommender
systems (https://github.com/wangshusen/RecommenderSystem, ranking: fusing predicted scores). A value
p of a task is a probability, or seconds of watch time; `completion` may be another value.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from infnet_dist.errors import ConfigError, DataError, unknown_name
from infnet_dist.reranking.calibration.calibrators import Array


class Formula(ABC):
    """A fusion formula."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it combines."""

    @property
    def probabilities(self) -> tuple[str, ...]:
        """Those that must be probabilities, not watch times."""
        return ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the candidates' columns that it reads."""
        return ()

    @abstractmethod
    def score(self, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
        """Scores float64 [n] from values [n] and columns [n]."""


@dataclass(frozen=True)
class Linear(Formula):
    """sum_k w_k p_k."""

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_finite("weights", self.weights)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Formula`."""
        return tuple(self.weights)

    def score(self, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
        """See `Formula`."""
        return _weighted_sum(self.weights, values)


@dataclass(frozen=True)
class ClickTimes(Formula):
    """p_click (1 + sum_k w_k p_k), where p_k are rates after the click."""

    click: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_finite("weights", self.weights)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Formula`."""
        return (self.click, *self.weights)

    @property
    def probabilities(self) -> tuple[str, ...]:
        """See `Formula`."""
        return (self.click,)

    def score(self, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
        """See `Formula`."""
        return values[self.click] * (1 + _weighted_sum(self.weights, values))


@dataclass(frozen=True)
class Power:
    """A factor (offset + scale p)^exponent.

    Raises:
        ConfigError: a number isn't finite; offset or scale is negative; or the factor is infinite
            at p = 0.
    """

    exponent: float
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        numbers = {"exponent": self.exponent, "scale": self.scale, "offset": self.offset}
        _check_finite("factors", numbers)
        if self.offset < 0 or self.scale < 0 or (self.exponent < 0 and self.offset == 0):
            raise ConfigError(
                f"fusion.factors: got (offset {self.offset:g} + scale {self.scale:g} p)^"
                f"{self.exponent:g}, expected offset and scale >= 0, and offset > 0 for a negative "
                "exponent"
            )


@dataclass(frozen=True)
class Powers(Formula):
    """prod_k (b_k + w_k p_k)^a_k.

    b = 0, w = 1 is a product of powers of the predictions; b = 1 is the product of (1 + w p)^a of
    short-video feeds, in which a small p doesn't hide the others.
    """

    factors: Mapping[str, Power]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ConfigError("fusion.factors: got none, expected at least one")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Formula`."""
        return tuple(self.factors)

    def score(self, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
        """See `Formula`."""
        return _product(
            (one.offset + one.scale * values[name], one.exponent)
            for name, one in self.factors.items()
        )


@dataclass(frozen=True)
class Price(Formula):
    """prod_k p_k^a_k price^a of e-commerce: p_click p_buy price is the expected revenue.

    Attributes:
        rates: exponent a_k >= 0 by task.
        price: column of the candidates' prices, >= 0 (> 0 for a negative exponent).
        exponent: a; 0 ranks by rates alone.

    Raises:
        ConfigError: a number isn't finite, or the exponent of a rate is negative.
    """

    rates: Mapping[str, float]
    price: str
    exponent: float

    def __post_init__(self) -> None:
        _check_finite("rates", self.rates)
        _check_finite("exponent", {self.price: self.exponent})
        for name, exponent in self.rates.items():
            if exponent < 0:
                raise ConfigError(f"fusion.rates.{name}: got {exponent:g}, expected at least 0")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Formula`."""
        return tuple(self.rates)

    @property
    def probabilities(self) -> tuple[str, ...]:
        """See `Formula`."""
        return tuple(self.rates)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Formula`."""
        return (self.price,)

    def score(self, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
        """See `Formula`.

        Raises:
            DataError: a price isn't finite or too low.
        """
        prices = np.asarray(columns[self.price], np.float64)
        if not (np.isfinite(prices) & (prices >= 0)).all() or (
            self.exponent < 0 and not prices.all()
        ):
            wanted = "> 0" if self.exponent < 0 else ">= 0"
            raise DataError(f"column {self.price!r}: expected finite prices {wanted}")
        rates = ((values[name], exponent) for name, exponent in self.rates.items())
        return _product([*rates, (prices, self.exponent)])


def check_names(formula: Formula, known: Collection[str]) -> None:
    """Check that a formula combines values that there are.

    Raises:
        ConfigError: names the nearest one.
    """
    for name in formula.inputs:
        if name not in known:
            raise ConfigError(f"fusion: {unknown_name('task', name, known)}")


def fuse(formula: Formula, values: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
    """The score of each candidate, float64 [n].

    Args:
        formula: the formula.
        values: values [n] by task.
        columns: columns [n] of the candidates by name.

    Raises:
        ConfigError: the formula combines a value that there isn't.
        DataError: a column is missing, or a score isn't finite.
    """
    check_names(formula, values.keys())
    for name in formula.columns:
        if name not in columns:
            raise DataError(f"fusion: {unknown_name('column', name, columns)}")
    with np.errstate(over="ignore", invalid="ignore"):
        scores = formula.score(values, columns)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        found = ", ".join(f"{name} {float(values[name][row]):.4g}" for name in formula.inputs)
        raise DataError(
            f"the fused score of candidate {row} is {float(scores[row])} ({found}); lower the "
            "weights or exponents"
        )
    return scores


def _weighted_sum(weights: Mapping[str, float], values: Mapping[str, Array]) -> Array:
    found = np.zeros(len(next(iter(values.values()))))
    for name, weight in weights.items():
        found += weight * values[name]
    return found


def _product(factors: Iterable[tuple[Array, float]]) -> Array:
    found: Array = np.ones(1)
    for base, exponent in factors:
        found = found * base**exponent
    return found


def _check_finite(key: str, numbers: Mapping[str, float]) -> None:
    if not numbers:
        raise ConfigError(f"fusion.{key}: got none, expected at least one")
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ConfigError(f"fusion.{key}.{name}: got {number}, expected a finite number")
