"""Finished trials -> one result per model: best point, all seeds, deviation, paired tests."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from infnet_dist.comparison.costs import ModelCosts
from infnet_dist.comparison.protocol import CONTROL, Trial

SUMMARY = "summary.json"  # exists in the run folder of a finished trial
_SPLIT = "valid"


@dataclass(frozen=True)
class Finished:
    """A finished trial and its results.

    Attributes:
        trial: the trial.
        metrics: metrics after the last step by `valid/metric/task`.
        samples_per_s: training throughput, with concurrent trials; 0 if a resumed trial had nothing
            left to train.
        curve: (examples, mean AUC over tasks) at each evaluation.
    """

    trial: Trial
    metrics: dict[str, float]
    samples_per_s: float
    curve: list[tuple[int, float]]

    @property
    def seed(self) -> int:
        """The seed of the trial."""
        return self.trial.config.run.seed

    def mean(self, metric: str) -> float:
        """Mean of a metric over the tasks that have it."""
        return mean_over_tasks(self.metrics, metric)


@dataclass
class ModelResult:
    """One model at its best point.

    Attributes:
        name: name of the model.
        point: the best point of the grid, by mean AUC with the first seed.
        runs: finished trials at that point, one per seed.
        costs: parameters, operations, time.
        tried: mean AUC at every point of the grid, with the first seed.
        compared_with: the best other model with several seeds; for an ablation, its model.
        difference: mean AUC minus that of `compared_with`, averaged over common seeds.
        p_value: paired t-test over common seeds; None with fewer than two.
        ablation_of: the ablated model, if this is an ablation.
        over_control: mean AUC minus that of the control, averaged over common seeds; None for the
            control.
    """

    name: str
    point: dict[str, Any]
    runs: list[Finished]
    costs: ModelCosts
    tried: list[tuple[dict[str, Any], float]]
    compared_with: str | None = None
    difference: float | None = None
    p_value: float | None = None
    ablation_of: str | None = None
    over_control: float | None = None

    @property
    def is_control(self) -> bool:
        """Whether this is the control, the linear model of every comparison."""
        return self.name == CONTROL

    def values(self, key: str) -> list[float]:
        """A metric by seed: `auc` or `gauc`, averaged over tasks, or `metric/task`."""
        if "/" in key:
            return [run.metrics[f"{_SPLIT}/{key}"] for run in self.runs]
        return [run.mean(key) for run in self.runs]

    def mean(self, key: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values(key)))

    def deviation(self, key: str) -> float:
        """Standard deviation over seeds; NaN with one seed."""
        values = self.values(key)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    @property
    def samples_per_s(self) -> float:
        """Median over seeds."""
        return float(np.median([run.samples_per_s for run in self.runs]))


def mean_over_tasks(metrics: Mapping[str, float], metric: str) -> float:
    """Mean of `valid/<metric>/<task>` over tasks; NaN if a value is missing."""
    prefix = f"{_SPLIT}/{metric}/"
    values = [v for k, v in metrics.items() if k.startswith(prefix)]
    return float(np.mean([np.nan if v is None else v for v in values])) if values else float("nan")


def is_finished(trial: Trial) -> bool:
    """Whether the run folder has a summary, which is written last."""
    return (trial.folder / SUMMARY).is_file()


def read_finished(trial: Trial) -> Finished:
    """Read the results of a finished trial from its run folder."""
    summary = json.loads((trial.folder / SUMMARY).read_text())
    curve: dict[int, float] = {}
    for line in (trial.folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        mean = mean_over_tasks(record, "auc")
        if np.isfinite(mean):
            curve[record["examples"]] = mean
    metrics = {k: math.nan if v is None else v for k, v in summary["metrics"].items()}
    return Finished(trial, metrics, summary["samples_per_s"], sorted(curve.items()))


def best_points(grid: Sequence[Finished]) -> dict[str, Finished]:
    """The trial with the best mean AUC by model, best model first."""
    best: dict[str, Finished] = {}
    for one in sorted(grid, key=lambda one: -_or_worst(one.mean("auc"))):
        best.setdefault(one.trial.model, one)
    return best


def summarise(
    grid: Sequence[Finished],
    more_seeds: Sequence[Finished],
    costs: Mapping[str, ModelCosts],
    *,
    ablations: Sequence[Finished] = (),
    ablations_of: str | None = None,
) -> list[ModelResult]:
    """One result per model, with paired tests.

    Args:
        grid: every model at every point, with the first seed.
        more_seeds: the finalists with the other seeds.
        costs: costs by model, including ablations.
        ablations: trials of variants of `ablations_of`.
        ablations_of: the ablated model.

    Returns:
        Finalists by mean AUC, then the other models, then the ablations.
    """
    tried: dict[str, list[tuple[dict[str, Any], float]]] = defaultdict(list)
    for one in grid:
        tried[one.trial.model].append((one.trial.point, one.mean("auc")))
    results = [
        ModelResult(
            name=name,
            point=best.trial.point,
            runs=[best, *(one for one in more_seeds if one.trial.model == name)],
            costs=costs[name],
            tried=tried[name],
        )
        for name, best in best_points(grid).items()
    ]
    # A single seed is the best of a grid, so it isn't ranked among means over seeds.
    results.sort(key=lambda result: (len(result.runs) == 1, -_or_worst(result.mean("auc"))))
    several = [result for result in results if len(result.runs) > 1]
    for result in several:
        others = (other for other in several if other is not result and not other.is_control)
        _compare(result, next(others, None))
    variants = _summarise_ablations(ablations, costs, ablations_of)
    for variant in variants:
        _compare(variant, next(r for r in results if r.name == ablations_of))
    control = next((result for result in results if result.is_control), None)
    for result in results + variants:
        if control is None or result is control:
            continue
        if found := _differences(result, control):
            result.over_control = float(np.mean(found))
    return results + variants


def _summarise_ablations(
    ablations: Sequence[Finished], costs: Mapping[str, ModelCosts], of: str | None
) -> list[ModelResult]:
    """One result per ablation, best first."""
    runs: dict[str, list[Finished]] = defaultdict(list)
    for one in ablations:
        runs[one.trial.model].append(one)
    variants = [
        ModelResult(name, same[0].trial.point, same, costs[name], tried=[], ablation_of=of)
        for name, same in runs.items()
    ]
    return sorted(variants, key=lambda variant: -_or_worst(variant.mean("auc")))


def _compare(one: ModelResult, other: ModelResult | None) -> None:
    """Set the difference from `other` over common seeds."""
    if other is None:
        return
    found = _differences(one, other)
    if not found:
        return
    one.compared_with = other.name
    one.difference = float(np.mean(found))
    if len(found) > 1:
        one.p_value = float(stats.ttest_1samp(found, 0.0).pvalue)


def _differences(one: ModelResult, other: ModelResult) -> list[float]:
    """Differences of mean AUC by common seed."""
    mine = {run.seed: run.mean("auc") for run in one.runs}
    theirs = {run.seed: run.mean("auc") for run in other.runs}
    return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]


def _or_worst(value: float) -> float:
    return value if np.isfinite(value) else -np.inf
