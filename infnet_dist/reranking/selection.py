"""Chooses results one after the other: rules first, then the largest gain."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from infnet_dist.reranking.calibration.calibrators import Array
from infnet_dist.reranking.rules import RuleState


class Objective(Protocol):
    """What a candidate adds to the list so far, e.g. `Mmr` or `Dpp`."""

    def gains(self) -> Array:
        """The gain of each candidate if it were next, float64 [n]."""

    def add(self, chosen: int) -> None:
        """Choose a candidate."""


class ByScore:
    """The score alone.

    Args:
        scores: float64 [n].
    """

    def __init__(self, scores: Array) -> None:
        self._scores = scores

    def gains(self) -> Array:
        """The scores."""
        return self._scores

    def add(self, chosen: int) -> None:
        """Choose a candidate: nothing changes."""


@dataclass(frozen=True)
class Selection:
    """Chosen candidates, in order.

    Attributes:
        order: int64 [k], numbers of candidates.
        gains: float64 [k], the gain of each when it was chosen.
        relaxed: by position, the rules that the candidate breaks since no candidate obeyed them.
    """

    order: Array
    gains: Array
    relaxed: tuple[tuple[str, ...], ...]


def select(objective: Objective, rules: RuleState, *, num_candidates: int, count: int) -> Selection:
    """Choose `count` candidates, or all if there are fewer; of equal gains the first candidate."""
    remaining = np.ones(num_candidates, bool)
    order, gains, relaxed = [], [], []
    for _ in range(min(count, num_candidates)):
        gain = np.where(rules.eligible(remaining), objective.gains(), -np.inf)
        chosen = int(gain.argmax())
        order.append(chosen)
        gains.append(float(gain[chosen]))
        relaxed.append(rules.add(chosen))
        objective.add(chosen)
        remaining[chosen] = False
    return Selection(np.array(order, np.int64), np.array(gains, np.float64), tuple(relaxed))
