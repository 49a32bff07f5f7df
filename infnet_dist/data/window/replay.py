"""Replay: rows older than the window, sampled anew for each epoch, against forgetting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infnet_dist.data.manifest import Part
from infnet_dist.data.window.selected_part import SelectedPart

REPLAY = "replay"  # split of the older parts, in the manifest of a window
_STREAM = 1  # differs from the streams of epoch_order.py


@dataclass(frozen=True)
class Replay:
    """A sample of older rows that is mixed into each epoch.

    The sample of an epoch has whole row groups, chosen at random with equal probability; of the
    last one, its first rows. It depends on the seed and the epoch only.

    Attributes:
        parts: all older parts.
        rows: number of rows per epoch; at most those of the parts.
        seed: of the run.
    """

    parts: tuple[Part, ...]
    rows: int
    seed: int

    def sample(self, epoch: int) -> tuple[SelectedPart, ...]:
        """The parts with the row groups of an epoch, `rows` rows in total."""
        groups = [
            (number, index, rows)
            for number, part in enumerate(self.parts)
            for index, rows in enumerate(part.row_groups)
        ]
        rng = np.random.default_rng((self.seed, epoch, 0, _STREAM))
        chosen: dict[int, list[int]] = {}
        left = self.rows
        for place in rng.permutation(len(groups)):
            if not left:
                break
            number, index, rows = groups[place]
            counts = chosen.setdefault(number, [0] * len(self.parts[number].row_groups))
            counts[index] = min(rows, left)
            left -= counts[index]
        return tuple(SelectedPart.of(self.parts[n], counts) for n, counts in sorted(chosen.items()))


def replay_of(parts: Sequence[Part], *, window_rows: int, share: float, seed: int) -> Replay:
    """A replay whose rows are a share of an epoch's; all of the parts if they have too few."""
    wanted = replay_rows(window_rows, share)
    return Replay(tuple(parts), min(wanted, sum(part.rows for part in parts)), seed)


def replay_rows(window_rows: int, share: float) -> int:
    """Number of older rows that are a share of an epoch with this many rows of the window."""
    return round(window_rows * share / (1 - share))
