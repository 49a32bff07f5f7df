"""Metrics against scikit-learn and quadratic loops, and the state that gathers over ranks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from infnet_dist.evaluation.metrics import (
    MetricState,
    auc,
    calibration,
    gauc,
    log_loss,
    mean_absolute_error,
    normalized_entropy,
    r2,
)

# -------------------------------------------------------------------------------------- references


def auc_by_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    positives = [s for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if y == 1]
    negatives = [s for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if y == 0]
    if not positives or not negatives:
        return math.nan
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def gauc_by_users(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    total, weight = 0.0, 0
    for user in sorted(set(groups.tolist())):
        rows = [i for i, g in enumerate(groups.tolist()) if g == user]
        value = auc_by_pairs(scores[rows], labels[rows])
        if not math.isnan(value):
            total, weight = total + value * len(rows), weight + len(rows)
    return total / weight if weight else math.nan


def loss_by_rows(logits: np.ndarray, labels: np.ndarray) -> float:
    """-log sigmoid(x) for a positive, -log sigmoid(-x) for a negative, without overflow."""
    total = 0.0
    for x, y in zip(logits.tolist(), labels.tolist(), strict=True):
        z = x if y == 1 else -x
        total += math.log1p(math.exp(-abs(z))) + max(-z, 0.0)
    return total / len(logits)


def probability(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def calibration_by_rows(logits: np.ndarray, labels: np.ndarray) -> float:
    if not labels.sum():
        return math.nan
    return sum(probability(x) for x in logits.tolist()) / float(labels.astype(np.float64).sum())


def entropy(labels: np.ndarray) -> float:
    p = float(labels.astype(np.float64).mean())
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


def entropy_ratio_by_rows(logits: np.ndarray, labels: np.ndarray) -> float:
    if len(set(labels.tolist())) < 2:
        return math.nan
    return loss_by_rows(logits, labels) / entropy(labels)


def same(found: float, expected: float, tolerance: float = 1e-9) -> None:
    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=tolerance, abs=1e-12, nan_ok=True)


def rows(
    seed: int, size: int, *, ties: int | None = None, rate: float = 0.3, users: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels, group ids (some negative, unsorted)."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(size) < rate).astype(np.float32)
    scores = (rng.normal(size=size) + labels).astype(np.float32)
    if ties is not None:
        scores = np.round(scores * ties).astype(np.float32) / ties
    groups = rng.integers(-users, users, size) * 1_000_003
    return scores, labels, groups


CASES = {
    "random": rows(0, 300),
    "tied": rows(1, 300, ties=1),
    "tied-tenths": rows(2, 200, ties=10),
    "rare": rows(3, 300, rate=0.02),
    "common": rows(4, 150, rate=0.9),
    "two": (np.float32([0.5, -1]), np.float32([0, 1]), np.array([3, 3])),
    "five": rows(6, 5, users=1, rate=0.5),
    "one-score": (np.zeros(50, np.float32), rows(7, 50)[1], rows(7, 50)[2]),
    "huge": (60 * np.sign(rows(8, 200)[0]), rows(8, 200)[1], rows(8, 200)[2]),
    "many-users": rows(9, 300, users=500),
    "float64": (*(x.astype(np.float64) for x in rows(10, 200)[:2]), rows(10, 200)[2]),
    "integer-labels": (rows(11, 99)[0], rows(11, 99)[1].astype(np.int64), rows(11, 99)[2]),
}
ONE_CLASS = {
    "no-positive": (np.float32([1, 2, 3]), np.zeros(3, np.float32), np.array([1, 1, 2])),
    "all-positive": (np.float32([1, 2, 3]), np.ones(3, np.float32), np.array([1, 1, 2])),
    "single-positive-row": (np.float32([0.3]), np.ones(1, np.float32), np.array([-4])),
    "single-negative-row": (np.float32([0.3]), np.zeros(1, np.float32), np.array([-4])),
}


# -------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_auc(case: tuple[np.ndarray, ...]) -> None:
    scores, labels, _ = case
    found = auc(scores, labels)
    same(found, auc_by_pairs(scores, labels), 1e-12)
    same(found, float(sklearn_metrics.roc_auc_score(labels, scores)), 1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gauc(case: tuple[np.ndarray, ...]) -> None:
    same(gauc(*case), gauc_by_users(*case), 1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses(case: tuple[np.ndarray, ...]) -> None:
    logits, labels, _ = case
    same(log_loss(logits, labels), loss_by_rows(logits, labels), 1e-12)
    same(normalized_entropy(logits, labels), entropy_ratio_by_rows(logits, labels), 1e-12)
    same(calibration(logits, labels), calibration_by_rows(logits, labels), 1e-12)


def test_log_loss_is_that_of_scikit_learn() -> None:
    logits, labels, _ = CASES["float64"]
    probabilities = np.array([probability(x) for x in logits])
    same(log_loss(logits, labels), float(sklearn_metrics.log_loss(labels, probabilities)))


@pytest.mark.parametrize("case", ONE_CLASS.values(), ids=ONE_CLASS)
def test_one_class(case: tuple[np.ndarray, ...]) -> None:
    scores, labels, groups = case
    assert math.isnan(auc(scores, labels))
    assert math.isnan(gauc(scores, labels, groups))
    assert math.isnan(normalized_entropy(scores, labels))
    same(log_loss(scores, labels), loss_by_rows(scores, labels))
    same(calibration(scores, labels), calibration_by_rows(scores, labels))
    assert math.isnan(calibration(scores, labels)) == (labels.sum() == 0)


@pytest.mark.filterwarnings("error")
def test_nothing_at_all() -> None:
    nothing = np.zeros(0, np.float32)
    assert math.isnan(auc(nothing, nothing))
    assert math.isnan(gauc(nothing, nothing, np.zeros(0, np.int64)))
    assert math.isnan(log_loss(nothing, nothing))
    assert math.isnan(normalized_entropy(nothing, nothing))
    assert math.isnan(calibration(nothing, nothing))


def test_by_hand() -> None:
    scores, labels = np.float32([0.1, 0.4, 0.35, 0.8]), np.float32([0, 0, 1, 1])
    assert auc(scores, labels) == 0.75
    assert auc(np.float32([1, 1, 0, 2]), np.float32([1, 0, 0, 1])) == 0.875
    # User 5: rows 0, 2, AUC 1; user -1: rows 1, 3, 4, AUC 0.5; user 9 has one class only.
    found = gauc(
        np.float32([2, 0, 1, 0, 0, 9]),
        np.float32([1, 1, 0, 0, 0, 1]),
        np.array([5, -1, 5, -1, -1, 9]),
    )
    assert found == pytest.approx((2 * 1.0 + 3 * 0.5) / 5, rel=1e-12)
    zeros = np.zeros(4, np.float32)
    assert log_loss(zeros, labels) == pytest.approx(math.log(2), rel=1e-12)
    assert normalized_entropy(zeros, labels) == pytest.approx(1.0, rel=1e-12)
    assert calibration(zeros, labels) == pytest.approx(1.0, rel=1e-12)
    assert calibration(zeros, np.float32([0, 0, 0, 1])) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [60.0, 1000.0])
def test_huge_logits(size: float, dtype: type) -> None:
    logits = np.array([size, -size, size, -size], dtype=dtype)
    right, wrong = np.float32([1, 0, 1, 0]), np.float32([0, 1, 0, 1])
    half = np.float32([1, 1, 0, 0])
    loss = math.log1p(math.exp(-size))  # 9e-27, then 0
    assert log_loss(logits, right) == pytest.approx(loss, rel=1e-9, abs=0)
    assert log_loss(logits, wrong) == pytest.approx(size, rel=1e-9)
    assert log_loss(logits, half) == pytest.approx(size / 2, rel=1e-9)
    assert normalized_entropy(logits, wrong) == pytest.approx(size / math.log(2), rel=1e-9)
    for labels in (half, right, wrong):
        assert calibration(logits, labels) == pytest.approx(1.0, rel=1e-9)
    assert calibration(np.abs(logits), half) == pytest.approx(2.0, rel=1e-9)
    few = calibration(-np.abs(logits), half)
    assert few == pytest.approx(2 * math.exp(-size), rel=1e-9, abs=0)
    assert (auc(logits, right), auc(logits, wrong), auc(logits, half)) == (1.0, 0.0, 0.5)


@pytest.mark.parametrize("place", [0, 17, 49])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nan_score_makes_every_metric_nan(place: int, dtype: type) -> None:
    scores, labels, groups = rows(15, 50)
    scores = scores.astype(dtype)
    assert not math.isnan(gauc(scores, labels, groups))
    for label in (0, 1):
        labels[place] = label
        for user in (groups[place], 10**12):  # among others, or a user without any other row
            broken, users = scores.copy(), groups.copy()
            broken[place], users[place] = math.nan, user
            assert math.isnan(gauc(broken, labels, users))
            for metric in (auc, log_loss, normalized_entropy, calibration):
                assert math.isnan(metric(broken, labels)), metric.__name__
    assert math.isnan(auc(np.full(50, math.nan, dtype), labels))


def test_scores_that_differ_by_one_bit_are_no_tie() -> None:
    low = np.float32(0.1)
    scores = np.array([low, np.nextafter(low, np.float32(1))], np.float32)
    assert auc(scores, np.float32([0, 1])) == 1.0
    assert gauc(scores, np.float32([0, 1]), np.array([1, 1])) == 1.0
    logits = np.array([1.0, 1.0 + 1e-15])  # float64 must not be rounded to float32
    assert auc(logits, np.float32([0, 1])) == 1.0


def test_large_input_is_exact() -> None:
    scores, labels, groups = rows(12, 50_000, ties=1000, rate=0.5, users=100)
    same(auc(scores, labels), float(sklearn_metrics.roc_auc_score(labels, scores)), 1e-12)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    values = [float(sklearn_metrics.roc_auc_score(labels[p], scores[p])) for p in parts]
    same(gauc(scores, labels, groups), float(np.average(values, weights=[len(p) for p in parts])))
    same(log_loss(scores, labels), loss_by_rows(scores, labels))
    same(calibration(scores, labels), calibration_by_rows(scores, labels))


def test_group_ids_far_apart() -> None:
    scores, labels, groups = rows(13, 200, users=5)
    expected = gauc_by_users(scores, labels, groups)
    limits = np.iinfo(np.int64)
    extreme = np.where(groups < 0, limits.min - groups, limits.max - groups)
    assert len(set(extreme.tolist())) == len(set(groups.tolist()))
    same(gauc(scores, labels, extreme), expected, 1e-12)


def test_arguments_are_left_alone() -> None:
    arguments = rows(14, 50, ties=2)
    copies = [x.copy() for x in arguments]
    gauc(*arguments)
    for metric in (auc, log_loss, normalized_entropy, calibration):
        metric(*arguments[:2])
    for now, before in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(now, before)


SOME_ROWS = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(-2, 2)), min_size=1, max_size=25
)


@settings(max_examples=150)
@given(SOME_ROWS, st.randoms(use_true_random=False))
def test_any_few_rows(some: list[tuple[int, int, int]], random: Any) -> None:
    scores, labels, groups = (np.array(column) for column in zip(*some, strict=True))
    scores, labels = scores.astype(np.float32), labels.astype(np.float32)
    same(auc(scores, labels), auc_by_pairs(scores, labels), 1e-12)
    same(gauc(scores, labels, groups), gauc_by_users(scores, labels, groups), 1e-12)
    same(log_loss(scores, labels), loss_by_rows(scores, labels))
    same(normalized_entropy(scores, labels), entropy_ratio_by_rows(scores, labels))
    same(calibration(scores, labels), calibration_by_rows(scores, labels))
    # Order of rows, monotone maps and swapped classes.
    order = list(range(len(some)))
    random.shuffle(order)
    same(auc(scores[order], labels[order]), auc(scores, labels), 1e-12)
    same(gauc(scores[order], labels[order], groups[order]), gauc(scores, labels, groups), 1e-12)
    same(auc(np.exp(scores), labels), auc(scores, labels), 1e-12)
    same(auc(scores, 1 - labels), 1 - auc(scores, labels), 1e-12)


# ---------------------------------------------------------------------------------- MetricState

TASKS = ("click", "like")
METRICS: dict[str, Callable[..., float]] = {
    "auc": auc_by_pairs,
    "gauc": gauc_by_users,
    "log_loss": loss_by_rows,
    "normalized_entropy": entropy_ratio_by_rows,
    "calibration": calibration_by_rows,
}


class OneRank:
    """The collectives of a world of one process."""

    rank = 0
    world_size = 1
    is_first = True

    def gather_to_first(self, value: Any) -> list[Any] | None:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


class Recorder(OneRank):
    """Notes what a rank sends; like any rank but the first it receives only the broadcast."""

    rank = 1
    world_size = 3
    is_first = False

    def __init__(self, answer: Any = None) -> None:
        self.sent: list[Any] = []
        self.answer = answer

    def gather_to_first(self, value: Any) -> list[Any] | None:
        self.sent.append(value)
        return None

    def broadcast(self, value: Any) -> Any:
        return self.answer


class FirstOf(OneRank):
    """Rank 0 among several: it receives what all of them sent, call by call."""

    def __init__(self, recorders: list[Recorder]) -> None:
        self.calls = list(zip(*(r.sent for r in recorders), strict=True))
        self.world_size = len(recorders)

    def gather_to_first(self, value: Any) -> list[Any] | None:
        return list(self.calls.pop(0))


Data = dict[str, np.ndarray]


def make_data(size: int = 240, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.02, 0.98, (size, 2)).astype(np.float32)
    return {
        "logits": np.round(rng.normal(size=(size, 2)) * 4).astype(np.float32) / 4,
        "labels": (rng.random((size, 2)) < truth).astype(np.float32),
        "truth": truth,
        "group": rng.integers(-9, 9, size),
        "weights": (rng.random(size) < 0.8).astype(np.float32),
    }


def update(state: MetricState, data: Data, picked: Any) -> None:
    part = {name: torch.from_numpy(array[picked]) for name, array in data.items()}
    state.update(
        part["logits"],
        part["labels"],
        truth_BK=part["truth"],
        group_B=part["group"],
        weights_B=part["weights"],
    )


def expected_metrics(data: Data, split: str = "valid", scores: str = "logits") -> dict[str, float]:
    real = data["weights"] > 0
    result = {}
    for k, task in enumerate(TASKS):
        labels, logits = data["labels"][real, k], data["logits"][real, k]
        if scores == "truth":
            p = data["truth"][real, k].astype(np.float64)
            logits = np.log(p) - np.log1p(-p)
        for name, metric in METRICS.items():
            more = (data["group"][real],) if name == "gauc" else ()
            result[f"{split}/{name}/{task}"] = metric(logits, labels, *more)
    return result


def check(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-9) -> None:
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, nan_ok=True), name


def test_state_on_one_rank() -> None:
    data = make_data()
    state = MetricState(TASKS)
    for start in range(0, 240, 64):
        update(state, data, slice(start, start + 64))
    result = state.compute(OneRank(), "valid")
    assert set(result) == {"model", "optimum"}
    check(result["model"], expected_metrics(data))
    check(result["optimum"], expected_metrics(data, scores="truth"))
    assert all(isinstance(v, float | int) for part in result.values() for v in part.values())

    real = data["weights"] > 0
    for k, task in enumerate(TASKS):
        labels, logits = data["labels"][real, k], data["logits"][real, k].astype(np.float64)
        area = sklearn_metrics.roc_auc_score(labels, logits)
        loss = sklearn_metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
        assert result["model"][f"valid/auc/{task}"] == pytest.approx(area, rel=1e-12)
        assert result["model"][f"valid/log_loss/{task}"] == pytest.approx(loss, rel=1e-9)


def test_split_names_the_keys() -> None:
    data = make_data()
    state = MetricState(TASKS)
    update(state, data, slice(None))
    result = state.compute(OneRank(), "test")
    check(result["model"], expected_metrics(data, "test"))
    assert all(key.startswith("test/") for part in result.values() for key in part)


def test_padding_is_left_out_whatever_it_holds() -> None:
    data = make_data()
    before, after = MetricState(TASKS), MetricState(TASKS)
    update(before, data, slice(None))
    padding = data["weights"] == 0
    assert padding.any()
    for name, value in (("logits", np.nan), ("labels", 1.0), ("truth", np.nan), ("group", 77)):
        data[name][padding] = value
    update(after, data, slice(None))
    assert before.compute(OneRank(), "valid") == after.compute(OneRank(), "valid")


def test_a_nan_logit_spoils_its_task_alone() -> None:
    data = make_data()
    data["logits"][np.flatnonzero(data["weights"])[5], 1] = np.nan
    state = MetricState(TASKS)
    update(state, data, slice(None))
    result = state.compute(OneRank(), "valid")
    expected = expected_metrics(data)
    for name in METRICS:
        assert math.isnan(result["model"][f"valid/{name}/like"]), name
        del expected[f"valid/{name}/like"]
    check(result["model"], expected)
    check(result["optimum"], expected_metrics(data, scores="truth"))


def test_unknown_labels_are_left_out_of_their_task() -> None:
    data = make_data()
    expected = {}
    unknown = np.random.default_rng(1).random((240, 2)) < 0.3
    unknown[:, 1] |= data["group"] == 3  # all rows of a user
    for k, task in enumerate(TASKS):
        known = {name: array[~unknown[:, k]] for name, array in data.items()}
        every = expected_metrics(known)
        expected |= {name: value for name, value in every.items() if name.endswith(task)}
    data["labels"][unknown] = np.nan
    state = MetricState(TASKS)
    update(state, data, slice(None))
    check(state.compute(OneRank(), "valid")["model"], expected)
    data["labels"][:] = np.nan
    state = MetricState(TASKS)
    update(state, data, slice(None))
    assert all(math.isnan(v) for v in state.compute(OneRank(), "valid")["model"].values())


@pytest.mark.parametrize("unknown", ["all", "one"])
def test_no_optimum_without_truth(unknown: str) -> None:
    data = make_data()
    first = int(np.flatnonzero(data["weights"])[0])
    data["truth"][slice(None) if unknown == "all" else first] = np.nan
    state = MetricState(TASKS)
    update(state, data, slice(None))
    result = state.compute(OneRank(), "valid")
    assert result["optimum"] == {}
    check(result["model"], expected_metrics(data))


def over_ranks(data: Data, shares: list[np.ndarray], batch: int = 32) -> dict[str, dict]:
    states, recorders = [], []
    for share in shares:
        state = MetricState(TASKS)
        for start in range(0, len(share), batch):
            update(state, data, share[start : start + batch])
        recorder = Recorder()
        state.compute(recorder, "valid")
        states.append(state)
        recorders.append(recorder)
    result = states[0].compute(FirstOf(recorders), "valid")
    for state in states[1:]:
        assert state.compute(Recorder(result), "valid") == result
    return result


def test_the_split_over_ranks_doesn_t_matter() -> None:
    data = make_data()
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(240)
    by_label = np.argsort(data["labels"][:, 0], kind="stable")
    padding = np.flatnonzero(data["weights"] == 0)
    real = np.flatnonzero(data["weights"] > 0)
    splits = {
        "alone": [np.arange(240)],
        "thirds": [np.arange(80), np.arange(80, 160), np.arange(160, 240)],
        "shuffled": [shuffled[:50], shuffled[50:51], shuffled[51:]],
        "one class a rank": [by_label[:70], by_label[70:140], by_label[140:]],
        "one rank has padding only": [real[:100], padding, real[100:]],
        "one rank has nothing": [real[:100], real[100:], real[:0]],
        "the first has nothing": [real[:0], real[100:], real[:100]],
    }
    expected = expected_metrics(data)
    optimum = expected_metrics(data, scores="truth")
    for name, shares in splits.items():
        result = over_ranks(data, shares)
        assert set(result) == {"model", "optimum"}, name
        check(result["model"], expected)
        check(result["optimum"], optimum)
        for key in ("valid/auc/click", "valid/gauc/like"):
            assert result["model"][key] == pytest.approx(expected[key], rel=1e-12), name


def test_one_class_in_the_state() -> None:
    data = make_data(60)
    data["labels"][:, 1] = 0
    state = MetricState(TASKS)
    update(state, data, slice(None))
    model = state.compute(OneRank(), "valid")["model"]
    check(model, expected_metrics(data))
    for name in ("auc", "gauc", "normalized_entropy", "calibration"):
        assert math.isnan(model[f"valid/{name}/like"])
        assert not math.isnan(model[f"valid/{name}/click"])


def test_state_keeps_its_rows_when_buffers_are_reused() -> None:
    data = make_data(64)
    real = slice(None)
    data["weights"][:] = 1
    kept, reused = MetricState(TASKS), MetricState(TASKS)
    update(kept, data, real)
    buffers = {name: torch.from_numpy(array.copy()) for name, array in data.items()}
    reused.update(
        buffers["logits"],
        buffers["labels"],
        truth_BK=buffers["truth"],
        group_B=buffers["group"],
        weights_B=buffers["weights"],
    )
    for buffer in buffers.values():
        buffer.zero_()
    assert kept.compute(OneRank(), "valid") == reused.compute(OneRank(), "valid")


def test_logits_may_carry_gradients_and_low_precision() -> None:
    data = make_data(64)
    expected = expected_metrics(data)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # quarters are exact in all
        state = MetricState(TASKS)
        state.update(
            torch.from_numpy(data["logits"]).to(dtype).requires_grad_(),
            torch.from_numpy(data["labels"]),
            truth_BK=torch.from_numpy(data["truth"]),
            group_B=torch.from_numpy(data["group"]),
            weights_B=torch.from_numpy(data["weights"]),
        )
        check(state.compute(OneRank(), "valid")["model"], expected)


# ------------------------------------------------------------------------------- weights of rows


def weighted_gauc(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> float:
    """By scikit-learn within each group that has both classes."""
    values, sums = [], []
    for group in np.unique(groups):
        rows = (groups == group) & (weights > 0)
        if len(set(labels[rows].tolist())) == 2:
            sample = {"sample_weight": weights[rows].astype(np.float64)}
            values.append(sklearn_metrics.roc_auc_score(labels[rows], scores[rows], **sample))
            sums.append(weights[rows].sum(dtype=np.float64))
    return float(np.average(values, weights=sums)) if values else math.nan


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weighted_metrics_are_those_of_scikit_learn(case: tuple[np.ndarray, ...]) -> None:
    scores, labels, _ = case
    rng = np.random.default_rng(5)
    for weights in (
        rng.exponential(size=len(scores)).astype(np.float32),
        np.where(rng.random(len(scores)) < 0.3, 0, rng.random(len(scores))),
        np.full(len(scores), 3.0),
    ):
        present = weights > 0
        sample = {"sample_weight": weights.astype(np.float64)}
        probabilities = np.array([probability(x) for x in scores.tolist()])
        if len(set(labels[present].tolist())) < 2:
            assert math.isnan(auc(scores, labels, weights))
            continue
        same(auc(scores, labels, weights), sklearn_metrics.roc_auc_score(labels, scores, **sample))
        same(gauc(*case, weights), weighted_gauc(*case, weights))
        if np.abs(scores).max() < 20:  # scikit-learn clips probabilities
            loss = float(sklearn_metrics.log_loss(labels, probabilities, **sample))
            same(log_loss(scores, labels, weights), loss)
            rate = np.average(labels, weights=sample["sample_weight"])
            entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
            same(normalized_entropy(scores, labels, weights), loss / entropy)
        expected = (sample["sample_weight"] * probabilities).sum()
        expected /= (sample["sample_weight"] * labels).sum()
        same(calibration(scores, labels, weights), float(expected))
        error = sklearn_metrics.mean_absolute_error(labels, probabilities, **sample)
        same(mean_absolute_error(probabilities, labels, weights), float(error))
        squared = sklearn_metrics.r2_score(labels, probabilities, **sample)
        same(r2(probabilities, labels, weights), float(squared))


def test_a_weight_is_a_number_of_rows() -> None:
    scores, labels, groups = CASES["tied"]
    weights = np.random.default_rng(0).integers(0, 4, len(scores))
    repeated = [np.repeat(x, weights) for x in (scores, labels, groups)]
    same(gauc(scores, labels, groups, weights), gauc(*repeated), 1e-12)
    for metric in (auc, log_loss, normalized_entropy, calibration):
        same(metric(scores, labels, weights), metric(*repeated[:2]), 1e-12)
    ones = np.ones(len(scores))
    same(gauc(scores, labels, groups, ones), gauc(scores, labels, groups), 1e-12)
    nothing = np.zeros(len(scores))
    assert math.isnan(gauc(scores, labels, groups, nothing))
    for metric in (auc, log_loss, normalized_entropy, calibration, mean_absolute_error, r2):
        assert math.isnan(metric(scores, labels, nothing))


def test_few_weights_among_many_are_exact() -> None:
    scores, labels, groups = rows(17, 20_000, ties=50, rate=0.4, users=900)
    weights = np.random.default_rng(1).exponential(size=20_000) ** 4
    same(gauc(scores, labels, groups, weights), weighted_gauc(scores, labels, groups, weights))


def test_state_weighs_rows() -> None:
    data = make_data()
    plain, ones, weighted = MetricState(TASKS), MetricState(TASKS), MetricState(TASKS)
    update(plain, data, slice(None))
    expected = plain.compute(OneRank(), "valid")
    for batch in np.array_split(np.arange(240), 7):
        update(ones, data, batch)
    assert ones.compute(OneRank(), "valid") == expected, "bit for bit"
    data["weights"] *= np.random.default_rng(2).exponential(size=240).astype(np.float32)
    data["labels"][::7] = np.nan
    update(weighted, data, slice(None))
    found = weighted.compute(OneRank(), "valid")
    real = ~np.isnan(data["labels"][:, 1]) & (data["weights"] > 0)
    logits, labels, weights = (
        data["logits"][real, 1],
        data["labels"][real, 1],
        data["weights"][real],
    )
    area = sklearn_metrics.roc_auc_score(labels, logits, sample_weight=weights.astype(np.float64))
    same(found["model"]["valid/auc/like"], float(area))
    by_user = weighted_gauc(logits, labels, data["group"][real], weights)
    same(found["model"]["valid/gauc/like"], by_user)
    same(found["model"]["valid/log_loss/like"], log_loss(logits, labels, weights))
    same(found["model"]["valid/calibration/like"], calibration(logits, labels, weights))
    truth = data["truth"][real, 1]
    area = sklearn_metrics.roc_auc_score(labels, truth, sample_weight=weights.astype(np.float64))
    same(found["optimum"]["valid/auc/like"], float(area))


def test_watch_time_metrics() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, 2)).astype(np.float32)
    labels = np.stack([rng.random(100) < 0.5, 2 * rng.random(100)], axis=1).astype(np.float32)
    state = MetricState(["click", "time"], {"time": 7.0})
    state.update(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        truth_BK=torch.full((100, 2), float("nan")),
        group_B=torch.zeros(100, dtype=torch.int64),
        weights_B=torch.ones(100),
    )
    found = state.compute(OneRank(), "valid")["model"]
    predicted, seconds = 7 * np.exp(logits[:, 1].astype(np.float64)), 7 * labels[:, 1]
    error = sklearn_metrics.mean_absolute_error(seconds, predicted)
    assert found["valid/mae_s/time"] == pytest.approx(error, rel=1e-6)
    expected = sklearn_metrics.r2_score(seconds, predicted)
    assert found["valid/r2/time"] == pytest.approx(expected, rel=1e-6)
    assert "valid/auc/click" in found and "valid/auc/time" not in found
    state = MetricState(["click", "time"], {"time": 7.0})
    truth = torch.full((100, 2), float("nan"))
    truth[:, 0] = 0.5
    state.update(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        truth_BK=truth,
        group_B=torch.zeros(100, dtype=torch.int64),
        weights_B=torch.ones(100),
    )
    optimum = state.compute(OneRank(), "valid")["optimum"]
    assert "valid/auc/click" in optimum and not any(key.endswith("/time") for key in optimum)
    assert np.isnan(r2(np.ones(3), np.ones(3)))
    assert np.isnan(mean_absolute_error(np.ones(0), np.ones(0)))
