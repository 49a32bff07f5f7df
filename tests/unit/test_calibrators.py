"""Calibration of predictions against scikit-learn, and against a planted truth."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from infnet_dist.errors import DataError
from infnet_dist.evaluation.metrics import calibration as calibration_metric
from infnet_dist.reranking.calibration.calibrators import (
    Isotonic,
    PerSlice,
    Platt,
    calibrator_from_json,
    logit,
    sigmoid,
)
from infnet_dist.reranking.calibration.fitting import fit_isotonic, fit_per_slice, fit_platt
from infnet_dist.reranking.calibration.negatives import (
    NegativeSampling,
    corrected_logits,
    corrected_probabilities,
)
from infnet_dist.reranking.calibration.stored import (
    Calibration,
    dump_calibration,
    load_calibration,
)
from infnet_dist.reranking.completion import CompletionCurve


def logged(seed: int, rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, with ties, that are too high and too steep; labels; weights, some of them 0."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(-0.5, 2.0, rows), 1)
    labels = (rng.uniform(size=rows) < sigmoid(0.6 * logits - 1)).astype(np.float64)
    return logits, labels, rng.integers(0, 4, rows).astype(np.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_equals_scikit_learn(weighted: bool) -> None:
    logits, labels, weights = logged(1)
    given_weights = weights if weighted else np.ones_like(weights)
    kept = given_weights > 0
    theirs = IsotonicRegression(out_of_bounds="clip")
    theirs.fit(sigmoid(logits)[kept], labels[kept], given_weights[kept])
    ours = fit_isotonic(logits, labels, weights if weighted else None)
    asked = np.linspace(-12, 12, 5001)
    assert ours(asked, {}) == pytest.approx(theirs.predict(sigmoid(asked)), abs=1e-9)
    assert len(ours.predicted) < len(np.unique(logits))


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_equals_scikit_learn(weighted: bool) -> None:
    logits, labels, weights = logged(2)
    weights = weights if weighted else np.ones_like(weights)
    positive, negative = weights[labels == 1].sum(), weights[labels == 0].sum()
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    # A soft target is a row of each label, with the target's weights.
    theirs.fit(
        np.tile(logits, 2)[:, None],
        np.repeat([1, 0], len(logits)),
        np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    ours = fit_platt(logits, labels, weights if weighted else None)
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], rel=1e-4)
    assert calibration_metric(logits, labels, weights) > 1.2
    fixed = logit(ours(logits, {}))
    assert calibration_metric(fixed, labels, weights) == pytest.approx(1, abs=0.01)


def test_platt_is_finite_where_labels_are_separable() -> None:
    logits = np.linspace(-3, 3, 200)
    found = fit_platt(logits, (logits > 0).astype(float))
    assert np.isfinite([found.slope, found.intercept]).all()


def test_slices_are_calibrated_alone_and_small_ones_together() -> None:
    parts = [logged(seed, rows) for seed, rows in ((3, 2000), (4, 1500), (5, 60))]
    logits, labels, weights = (np.concatenate(one) for one in zip(*parts, strict=True))
    values = np.repeat([7, -1, 9], [2000, 1500, 60])
    found = fit_per_slice(fit_platt, logits, labels, weights, feature="city", values=values)
    assert found.slices == {7: fit_platt(*parts[0]), -1: fit_platt(*parts[1])}
    assert found.fallback == fit_platt(logits, labels, weights)
    asked = {"city": np.array([9, 7, 1234, -1])}
    logits = np.array([0.1, 0.2, 0.3, 0.4])
    expected = [
        one(np.array([z]), {})[0]
        for one, z in zip(
            [found.fallback, found.slices[7], found.fallback, found.slices[-1]], logits, strict=True
        )
    ]
    assert found(logits, asked) == pytest.approx(expected, rel=1e-12)


def test_a_slice_that_cannot_be_fitted_gets_the_calibrator_of_all_rows() -> None:
    logits, labels, _ = logged(6)
    values = np.where(labels > 0, "a", "b")  # one label in each
    found = fit_per_slice(fit_isotonic, logits, labels, feature="city", values=values)
    assert found.slices == {}


def test_unsuitable_slices_are_refused() -> None:
    one = PerSlice("city", {7: Platt(1.0, 0.0)}, Platt(2.0, 0.0))
    for columns, named in (
        ({}, "city"),
        ({"city": np.array(["7", "8"])}, "city"),
        ({"city": np.array([7.0, 8.0])}, "city"),
        ({"city": np.array([7])}, "city"),
    ):
        with pytest.raises(DataError, match=named):
            one(np.zeros(2), columns)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda z, y, w: (z[:50], y[:50], w[:50]), "100 rows"),
        (lambda z, y, w: (z, np.zeros_like(y), w), "0 rows with label 1"),
        (lambda z, y, w: (z, np.ones_like(y), w), "with 0"),
        (lambda z, y, w: (z, y + 0.5, w), "labels"),
        (lambda z, y, w: (np.where(z > 1, np.nan, z), y, w), "logit"),
        (lambda z, y, w: (z, y, -w), "weights"),
        (lambda z, y, w: (z[1:], y, w), "shapes"),
        (lambda z, y, w: (z, y, 0 * w), "0 rows with label 1"),
    ],
)
@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_too_little_or_malformed_data_is_refused(fit: Any, change: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        fit(*change(*logged(7)))


def test_a_calibrator_that_would_turn_the_order_round_is_refused() -> None:
    logits, labels, _ = logged(8)
    with pytest.raises(DataError, match="slope"):
        fit_platt(-logits, labels)
    with pytest.raises(DataError, match="equal"):
        fit_platt(np.zeros_like(logits), labels)


def test_unknown_labels_and_rows_without_weight_do_not_count() -> None:
    logits, labels, weights = logged(9)
    labels[::5] = np.nan
    kept = ~np.isnan(labels) & (weights > 0)
    assert fit_platt(logits, labels, weights) == fit_platt(
        logits[kept], labels[kept], weights[kept]
    )


ASCENDING = st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True).map(sorted)


@given(ASCENDING, st.data(), st.floats(1e-3, 50), st.floats(-20, 20))
@settings(max_examples=100, deadline=None)
def test_calibrators_never_decrease_and_survive_json(
    predicted: list[float], data: Any, slope: float, intercept: float
) -> None:
    count = len(predicted)
    values = sorted(data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    isotonic, platt = Isotonic(tuple(predicted), tuple(values)), Platt(slope, intercept)
    for one in (isotonic, platt, PerSlice("city", {"a": isotonic}, platt)):
        cities = np.full(601, "a")
        found = one(np.linspace(-30, 30, 601), {"city": cities})
        assert (np.diff(found) >= 0).all()
        assert ((found >= 0) & (found <= 1)).all()
        assert calibrator_from_json(json.loads(json.dumps(one.to_json()))) == one


# ---- down-sampling


def test_the_correction_recovers_the_rates_of_all_rows() -> None:
    """Click, like (after a click) and watch time (of clicks) in groups of known rates."""
    rng = np.random.default_rng(10)
    group = rng.integers(0, 3, 600_000)
    click = rng.uniform(size=len(group)) < np.array([0.02, 0.2, 0.6])[group]
    like = click & (rng.uniform(size=len(group)) < np.array([0.5, 0.1, 0.3])[group])
    watch = click * rng.exponential(np.array([1.0, 3.0, 0.5])[group])
    kept = click | (rng.uniform(size=len(group)) < 0.05)

    def rates(label: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.array([label[rows & (group == g)].mean() for g in range(3)])

    everything = np.ones(len(group), bool)
    logits = {"click": logit(rates(click, kept)), "like": logit(rates(like, kept))}
    logits["watch"] = np.log(rates(watch, kept))
    assert (rates(click, kept) > 1.4 * rates(click, everything)).all()  # there is much to correct
    found = NegativeSampling("click", 0.05).corrected(logits, {"watch"})
    assert sigmoid(found["click"]) == pytest.approx(rates(click, everything), rel=0.03)
    assert sigmoid(found["like"]) == pytest.approx(rates(like, everything), rel=0.03)
    assert np.exp(found["watch"]) == pytest.approx(rates(watch, everything), rel=0.03)


@given(st.floats(0.001, 0.999), st.floats(0.001, 1))
@settings(deadline=None)
def test_the_correction_undoes_the_sampling(rate: float, share: float) -> None:
    sampled = np.array([rate / (rate + share * (1 - rate))])
    assert corrected_probabilities(sampled, share) == pytest.approx([rate], rel=1e-9)
    assert corrected_logits(logit(sampled), share) == pytest.approx(logit(np.array([rate])))
    joint = rate / 3  # a label that is 1 on a third of the positive rows
    kept = rate + share * (1 - rate)
    logits = {"click": logit(sampled), "like": logit(np.array([joint / kept]))}
    found = NegativeSampling("click", share).corrected(logits)
    assert sigmoid(found["like"]) == pytest.approx([joint], rel=1e-6)


def test_a_share_of_one_changes_nothing() -> None:
    logits = {"click": np.array([-3.0, 0.0, 40.0]), "like": np.array([-5.0, 2.0, 40.0])}
    found = NegativeSampling("click", 1.0).corrected(logits)
    for task in logits:
        # A logit of 40 is a probability of 1 in a float64.
        assert found[task][:2] == pytest.approx(logits[task][:2])
        assert found[task][2] > 30


def test_wrong_samplings_are_refused() -> None:
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(DataError, match="share"):
            NegativeSampling("click", share)
    sampling = NegativeSampling("clik", 0.5)
    with pytest.raises(DataError, match="'click'"):
        sampling.corrected({"click": np.zeros(1)})


# ---- files


def test_a_calibration_survives_json() -> None:
    before = Calibration(
        {
            "click": PerSlice("city", {3: Platt(1.0, 0.1)}, Platt(0.5, 0.0)),
            "like": Isotonic((0.1, 0.7), (0.0, 0.9)),
        },
        NegativeSampling("click", 0.1),
        CompletionCurve((5.0, 60.0), (0.9, 0.2)),
    )
    assert load_calibration(dump_calibration(before)) == before
    assert load_calibration(dump_calibration(Calibration())) == Calibration()


@pytest.mark.parametrize(
    "calibrators",
    [
        '{"click": {"kind": "spline"}}',
        '{"click": {"kind": "platt", "slope": 1}}',
        '{"click": {"kind": "platt", "slope": -1, "intercept": 0}}',
        '{"click": {"kind": "platt", "slope": NaN, "intercept": 0}}',
        '{"click": {"kind": "isotonic", "predicted": [0.5, 0.1], "calibrated": [0, 1]}}',
        '{"click": {"kind": "isotonic", "predicted": [0.1, 0.5], "calibrated": [0, 2]}}',
        '{"click": {"kind": "isotonic", "predicted": [], "calibrated": []}}',
        '{"click": []}',
        "[]",
        '{}, "sampling": {"task": "click"}',
        '{}, "sampling": {"task": "click", "share": 0}',
        '{}, "completion": {"durations_s": [1]}',
        '{}, "completion": {"durations_s": [1, 1], "completions": [1, 1]}',
    ],
)
def test_a_malformed_calibration_is_refused(calibrators: str) -> None:
    with pytest.raises(DataError):
        load_calibration(f'{{"format_version": 1, "calibrators": {calibrators}}}')


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2}', '{"format_version": 1}'])
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the calibration"):
        load_calibration(text)
