"""Fusion formulas against values computed by hand; predictions; the adjusted completion rate."""

import math
from typing import Any

import numpy as np
import pytest

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.reranking.calibration.calibrators import Platt
from infnet_dist.reranking.calibration.negatives import NegativeSampling
from infnet_dist.reranking.calibration.stored import Calibration
from infnet_dist.reranking.completion import (
    CompletionCurve,
    curve_from_json,
    fit_completion_curve,
)
from infnet_dist.reranking.fusion import ClickTimes, Linear, Power, Powers, Price, fuse
from infnet_dist.reranking.predictions import predicted_values

VALUES = {
    "click": np.array([0.5, 0.1, 0.0]),
    "like": np.array([0.2, 0.4, 1.0]),
    "watch": np.array([8.0, 2.0, 0.0]),
}
COLUMNS = {"price": np.array([4.0, 100.0, 9.0])}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (Linear({"click": 1.0, "like": 3.0, "watch": -0.5}), [-2.9, 0.3, 3.0]),
        (ClickTimes("click", {"like": 2.0, "watch": 0.5}), [2.7, 0.28, 0.0]),
        (Powers({"click": Power(2.0), "like": Power(0.5)}), [0.25 * math.sqrt(0.2), 0.00632456, 0]),
        (
            Powers({"click": Power(2.0, 4.0, 1.0), "watch": Power(0.5, 1.0, 1.0)}),
            [27.0, 1.96 * math.sqrt(3), 1.0],
        ),
        (Powers({"like": Power(-1.0, 1.0, 1.0)}), [1 / 1.2, 1 / 1.4, 0.5]),
        (Price({"click": 1.0, "like": 2.0}, "price", 0.5), [0.5 * 0.04 * 2, 0.1 * 0.16 * 10, 0.0]),
        (Price({"like": 1.0}, "price", -1.0), [0.05, 0.004, 1 / 9]),
        (Price({"like": 1.0}, "price", 0.0), [0.2, 0.4, 1.0]),
    ],
)
def test_a_formula_gives_the_values_computed_by_hand(formula: Any, expected: list[float]) -> None:
    assert fuse(formula, VALUES, COLUMNS) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Linear({"click": math.nan}), "click"),
        (lambda: Linear({}), "weights"),
        (lambda: ClickTimes("click", {"like": math.inf}), "like"),
        (lambda: Power(-1.0), "exponent"),
        (lambda: Power(1.0, -1.0), "scale"),
        (lambda: Powers({}), "factors"),
        (lambda: Price({"click": -1.0}, "price", 1.0), "click"),
        (lambda: Price({"click": 1.0}, "price", math.inf), "price"),
        (lambda: fuse(Linear({"clik": 1.0}), VALUES, {}), "'click'"),
    ],
)
def test_a_wrong_formula_is_refused(make: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def test_wrong_values_are_refused() -> None:
    formula = Price({"click": 1.0}, "price", -1.0)
    with pytest.raises(DataError, match="price"):
        fuse(formula, VALUES, {"price": np.array([1.0, 0.0, 1.0])})
    with pytest.raises(DataError, match="price"):
        fuse(formula, VALUES, {})
    with pytest.raises(DataError, match="candidate 1"):
        fuse(Linear({"click": 1.0}), {"click": np.array([1.0, np.inf])}, {})


def predicted(logits: dict[str, Any], calibration: Calibration | None = None) -> dict[str, Any]:
    return predicted_values(
        {task: np.array(values) for task, values in logits.items()},
        watch_time_s={"watch": 20.0} if "watch" in logits else {},
        columns={},
        calibration=calibration or Calibration(),
    )


def test_logits_become_probabilities_and_seconds() -> None:
    found = predicted({"click": [0.0, math.log(3)], "watch": [0.0, math.log(1.5)]})
    assert found["click"] == pytest.approx([0.5, 0.75])
    assert found["watch"] == pytest.approx([20.0, 30.0])


def test_the_correction_comes_before_the_calibrator() -> None:
    calibration = Calibration({"click": Platt(2.0, 1.0)}, NegativeSampling("click", 0.1))
    found = predicted({"click": [0.3], "watch": [0.2]}, calibration)
    corrected = 0.3 + math.log(0.1)
    assert found["click"] == pytest.approx([1 / (1 + math.exp(-(2 * corrected + 1)))])
    rate = 1 / (1 + math.exp(-corrected))
    assert found["watch"] == pytest.approx([20 * math.exp(0.2) * (rate + 0.1 * (1 - rate))])


def test_predictions_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"'click'.*candidate 1"):
        predicted({"click": [0.0, math.nan]})
    with pytest.raises(DataError, match="'clik'"):
        predicted({"click": [0.0]}, Calibration({"clik": Platt(1.0, 0.0)}))
    with pytest.raises(DataError, match="'watch'"):
        predicted({"click": [0.0], "watch": [0.0]}, Calibration({"watch": Platt(1.0, 0.0)}))


def test_completion_is_divided_by_what_is_typical_of_the_length() -> None:
    curve = CompletionCurve((10.0, 40.0), (0.8, 0.4))
    # 20 s is half-way between 10 s and 40 s in logarithms.
    found = curve(np.array([8.0, 12.0, 16.0, 4.0, 50.0]), np.array([10.0, 20.0, 40.0, 5.0, 100.0]))
    assert found == pytest.approx([1.0, 0.6 / 0.6, 1.0, 1.0, 1.25])
    assert curve_from_json(curve.to_json()) == curve
    with pytest.raises(DataError, match="durations"):
        curve(np.array([1.0]), np.array([0.0]))


def test_a_curve_goes_through_the_quantiles_of_each_duration() -> None:
    rng = np.random.default_rng(0)
    durations = np.array([5.0, 15.0, 60.0])
    ratios = rng.uniform(0, 1, (3, 1001)) * np.array([[1.2], [0.8], [0.3]])
    curve = fit_completion_curve(
        (ratios * durations[:, None]).ravel(), durations.repeat(1001), quantile=0.7, buckets=3
    )
    assert curve.durations_s == tuple(durations)
    assert curve.completions == pytest.approx([sorted(one)[700] for one in ratios])


@pytest.mark.parametrize(
    ("watch_s", "duration_s", "options"),
    [
        ([1.0], [1.0, 2.0], {}),
        ([], [], {}),
        ([1.0], [0.0], {}),
        ([np.nan], [1.0], {}),
        ([0.0, 0.0], [1.0, 1.0], {}),
        ([1.0], [1.0], {"quantile": 1.0}),
    ],
)
def test_a_curve_of_wrong_rows_is_refused(
    watch_s: list[float], duration_s: list[float], options: dict[str, float]
) -> None:
    with pytest.raises(DataError, match="completion curve"):
        fit_completion_curve(np.array(watch_s), np.array(duration_s), **options)
