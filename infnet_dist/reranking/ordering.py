"""Candidates with predictions -> an ordered list: fusion, exposure filter, rules and diversity."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from infnet_dist.errors import ConfigError, DataError, unknown_name
from infnet_dist.reranking.calibration.calibrators import Array
from infnet_dist.reranking.calibration.stored import Calibration
from infnet_dist.reranking.dpp import Dpp
from infnet_dist.reranking.exposure import ExposureFilter
from infnet_dist.reranking.fusion import fuse
from infnet_dist.reranking.mmr import Mmr
from infnet_dist.reranking.predictions import predicted_values
from infnet_dist.reranking.rules import RuleState
from infnet_dist.reranking.selection import ByScore, Objective, select
from infnet_dist.reranking.settings import CompletionSettings, DiversitySettings, OrderSettings
from infnet_dist.reranking.similarity import Cosine, GivenSimilarity


@dataclass(frozen=True)
class Candidates:
    """The candidates of one request.

    Attributes:
        logits: float [n] by task.
        watch_time_s: of the tasks that are watch times, the seconds of a label of 1.
        columns: values [n] by column: prices, durations, kinds of rules, features of calibrators.
        item_ids: integers [n], for the exposure filter.
        embeddings_ND: item embeddings, whose cosine is the similarity; None: none.
        similarity_NN: their similarity in place of embeddings; None: none.
    """

    logits: Mapping[str, Array]
    watch_time_s: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Array] = field(default_factory=dict)
    item_ids: Array | None = None
    embeddings_ND: Array | None = None
    similarity_NN: Array | None = None

    def __post_init__(self) -> None:
        given = {f"logits of {task!r}": np.shape(one) for task, one in self.logits.items()}
        given |= {f"column {name!r}": np.shape(one) for name, one in self.columns.items()}
        given |= {} if self.item_ids is None else {"item ids": np.shape(self.item_ids)}
        if not self.logits:
            raise DataError("candidates: got no predictions, expected logits of at least one task")
        for name, shape in given.items():
            if shape != (len(self),):
                raise DataError(f"candidates: {name} have shape {shape}, expected ({len(self)},)")

    def __len__(self) -> int:
        return len(next(iter(self.logits.values())))


@dataclass(frozen=True)
class Ordering:
    """The results of one request.

    Attributes:
        order: int64 [k], numbers of candidates, first result first.
        scores: float64 [k], fused scores of the results.
        ranks: int64 [k], place of each by score alone among those that weren't shown, from 1 on.
        diversity: float64 [k], what diversity added to the weighted score when it was chosen.
        relaxed: by result, the rules that it breaks since no candidate obeyed them.
        already_shown: int64, numbers of the candidates that the exposure filter left out.
    """

    order: Array
    scores: Array
    ranks: Array
    diversity: Array
    relaxed: tuple[tuple[str, ...], ...]
    already_shown: Array

    @property
    def reasons(self) -> tuple[str, ...]:
        """By result, why it is at its place, in words."""
        found = []
        for i, broken in enumerate(self.relaxed):
            parts = [f"score {self.scores[i]:.4g} (rank {self.ranks[i]})"]
            if self.diversity[i]:
                parts.append(f"diversity {self.diversity[i]:+.3g}")
            parts += [f"relaxed: {rule}" for rule in broken]
            found.append("; ".join(parts))
        return tuple(found)


def order_candidates(
    candidates: Candidates,
    settings: OrderSettings,
    *,
    calibration: Calibration | None = None,
    exposure: ExposureFilter | None = None,
    now_s: float | None = None,
) -> Ordering:
    """Order the candidates of a request.

    1. Logits become calibrated values, and the formula fuses them into one score.
    2. Candidates that the user was shown are left out; the list may get shorter than `count`.
    3. Results are chosen one after the other: of the candidates that obey the rules, the one with
       the best sum of score and diversity; of equal ones the one of the higher score, then the
       first one. Rules that no candidate obeys are relaxed, see `RuleState`.

    Args:
        candidates: n of them; none gives an empty list.
        settings: checked against the model's tasks by `OrderSettings.check`.
        calibration: what was fitted for the model's predictions; None: nothing.
        exposure: what the user was shown; None: unknown. The caller adds the results.
        now_s: epoch seconds, for the exposure filter.

    Raises:
        ConfigError: the formula combines a value that there isn't, or needs what wasn't fitted.
        DataError: an input is malformed or missing.
    """
    scores = _scores(candidates, settings, calibration or Calibration())
    shown = _shown(candidates, exposure, now_s)
    left = np.flatnonzero(~shown)
    left = left[np.argsort(-scores[left], kind="stable")]
    columns = {rule.column: candidates.columns.get(rule.column) for rule in settings.rules}
    for name, values in columns.items():
        if values is None:
            raise DataError(f"rules: {unknown_name('column', name, candidates.columns)}")
    rules = RuleState(
        settings.rules, {name: np.asarray(v)[left] for name, v in columns.items()}, len(left)
    )
    weighted, objective = _objective(candidates, settings.diversity, left, scores[left])
    chosen = select(objective, rules, num_candidates=len(left), count=settings.count)
    return Ordering(
        order=left[chosen.order],
        scores=scores[left[chosen.order]],
        ranks=chosen.order + 1,
        diversity=chosen.gains - weighted[chosen.order],
        relaxed=chosen.relaxed,
        already_shown=np.flatnonzero(shown),
    )


def _scores(candidates: Candidates, settings: OrderSettings, calibration: Calibration) -> Array:
    """Fused scores, float64 [n]."""
    values = predicted_values(
        candidates.logits,
        watch_time_s=candidates.watch_time_s,
        columns=candidates.columns,
        calibration=calibration,
    )
    if settings.completion is not None:
        completion = _completion(candidates, settings.completion, calibration, values)
        values[settings.completion.name] = completion
    return fuse(settings.fusion, values, candidates.columns)


def _completion(
    candidates: Candidates,
    settings: CompletionSettings,
    calibration: Calibration,
    values: Mapping[str, Array],
) -> Array:
    if calibration.completion is None:
        raise ConfigError(
            "completion: the calibration has no completion curve; fit one with "
            "fit_completion_curve, or remove the section"
        )
    if settings.task not in candidates.watch_time_s or settings.task not in values:
        known = candidates.watch_time_s
        raise ConfigError(f"completion.task: {unknown_name('watch time', settings.task, known)}")
    if settings.duration not in candidates.columns:
        known_columns = candidates.columns
        raise DataError(f"completion: {unknown_name('column', settings.duration, known_columns)}")
    return calibration.completion(values[settings.task], candidates.columns[settings.duration])


def _shown(candidates: Candidates, exposure: ExposureFilter | None, now_s: float | None) -> Array:
    """Mask [n] of the candidates that the user was shown."""
    if exposure is None:
        return np.zeros(len(candidates), bool)
    if candidates.item_ids is None or now_s is None:
        raise DataError("the exposure filter needs item_ids of the candidates and now_s")
    return exposure.seen(candidates.item_ids, now_s)


def _objective(
    candidates: Candidates, settings: DiversitySettings, left: Array, scores: Array
) -> tuple[Array, Objective]:
    """Weighted scores of the candidates `left`, and the objective of their selection."""
    if settings.method == "none":
        return scores, ByScore(scores)
    embeddings, matrix = candidates.embeddings_ND, candidates.similarity_NN
    if (embeddings is None) == (matrix is None):
        raise DataError(
            f"diversity by {settings.method} needs embeddings_ND or similarity_NN of the "
            f"candidates, and not both; got {'neither' if matrix is None else 'both'}"
        )
    for given in (embeddings, matrix):
        if given is not None and len(given) != len(candidates):
            raise DataError(
                f"candidates: {len(given)} rows of embeddings or similarity for "
                f"{len(candidates)} candidates"
            )
    if embeddings is not None:
        similarity: Cosine | GivenSimilarity = Cosine(np.asarray(embeddings)[left])
    else:
        similarity = GivenSimilarity(np.asarray(matrix)[np.ix_(left, left)])
    if settings.scale == "min_max" and len(scores):
        spread = scores.max() - scores.min()
        scores = (scores - scores.min()) / (spread if spread > 0 else 1.0)
    weight, window = settings.score_weight, settings.window
    method = Mmr if settings.method == "mmr" else Dpp
    return weight * scores, method(scores, similarity, score_weight=weight, window=window)
