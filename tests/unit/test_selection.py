"""MMR, DPP and rules against direct computations on small cases."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.reranking.dpp import DIAGONAL, Dpp
from infnet_dist.reranking.mmr import Mmr
from infnet_dist.reranking.rules import InFirst, InWindow, Rule, RuleState, in_a_row
from infnet_dist.reranking.selection import ByScore, Selection, select
from infnet_dist.reranking.similarity import Cosine, GivenSimilarity


def random_case(seed: int, dims: int, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and embeddings of which two are equal."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(count, dims))
    embeddings[3] = 2.5 * embeddings[7]
    return rng.uniform(size=count), embeddings


def cosines(embeddings: np.ndarray) -> np.ndarray:
    units = [row / math.sqrt(row @ row) for row in embeddings]
    return np.array([[one @ other for other in units] for one in units])


def greedily(count: int, gain: Callable[[list[int], int], float]) -> tuple[list[int], list[float]]:
    """The order of best gains, each computed from the list so far."""
    order: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        found = {i: gain(order, i) for i in range(count) if i not in order}
        best = max(found, key=lambda i: found[i])
        order.append(best)
        gains.append(found[best])
    return order, gains


def chosen(objective: Any, count: int) -> Selection:
    return select(objective, RuleState((), {}, count), num_candidates=count, count=count)


def last(order: list[int], window: int | None) -> list[int]:
    return order if window is None else order[-window:]


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_mmr_equals_the_naive_loop(seed: int, weight: float, window: int | None) -> None:
    scores, embeddings = random_case(seed, dims=4)
    similarity = cosines(embeddings)

    def gain(order: list[int], i: int) -> float:
        near = [similarity[i, j] for j in last(order, window)]
        return weight * scores[i] - (1 - weight) * max(near, default=0.0)

    found = chosen(Mmr(scores, Cosine(embeddings), score_weight=weight, window=window), 12)
    assert found.gains == pytest.approx(greedily(12, gain)[1])
    if weight:  # with no scores all candidates are as good as the first one
        assert found.order.tolist() == greedily(12, gain)[0]


@pytest.mark.parametrize("dims", [3, 16])  # fewer dimensions than candidates, and more
@pytest.mark.parametrize("window", [None, 1, 2, 5])
@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_dpp_equals_explicit_determinants(weight: float, window: int | None, dims: int) -> None:
    for seed in range(3):
        scores, embeddings = random_case(seed, dims)
        kernel = cosines(embeddings) * (1 - DIAGONAL)
        np.fill_diagonal(kernel, 1.0)

        def det(chosen: list[int], kernel: np.ndarray = kernel) -> float:
            return float(np.linalg.det(kernel[np.ix_(chosen, chosen)])) if chosen else 1.0

        def gain(order: list[int], i: int, scores: np.ndarray = scores) -> float:
            near = last(order, window)
            return weight * scores[i] + (1 - weight) * math.log(det([*near, i]) / det(near))

        order, gains = greedily(12, gain)
        found = chosen(Dpp(scores, Cosine(embeddings), score_weight=weight, window=window), 12)
        assert found.order.tolist() == order
        assert found.gains == pytest.approx(gains, rel=1e-6, abs=1e-6)


def test_dpp_without_a_window_climbs_to_the_determinant_of_all() -> None:
    scores, embeddings = random_case(5, dims=16)
    kernel = cosines(embeddings) * (1 - DIAGONAL)
    np.fill_diagonal(kernel, 1.0)
    found = chosen(Dpp(scores, Cosine(embeddings), score_weight=0.0, window=None), 12)
    assert found.gains.sum() == pytest.approx(np.linalg.slogdet(kernel)[1])


def test_long_windows_stay_exact() -> None:
    """400 choices: errors of the rotations would add up."""
    scores, embeddings = random_case(6, dims=8, count=400)
    kernel = cosines(embeddings) * (1 - DIAGONAL)
    np.fill_diagonal(kernel, 1.0)
    found = chosen(Dpp(scores, Cosine(embeddings), score_weight=0.3, window=6), 400)
    order = found.order.tolist()
    for i in range(10, 400, 13):
        near = order[i - 6 : i]
        ratio = np.linalg.det(kernel[np.ix_([*near, order[i]], [*near, order[i]])]) / np.linalg.det(
            kernel[np.ix_(near, near)]
        )
        expected = 0.3 * scores[order[i]] + 0.7 * math.log(ratio)
        assert found.gains[i] == pytest.approx(expected, abs=1e-6)


def test_given_similarities_are_those_of_embeddings() -> None:
    scores, embeddings = random_case(7, dims=5)
    given_ones = GivenSimilarity(cosines(embeddings))
    for method in (Mmr, Dpp):
        one = chosen(method(scores, given_ones, score_weight=0.4, window=4), 12)
        other = chosen(method(scores, Cosine(embeddings), score_weight=0.4, window=4), 12)
        assert one.order.tolist() == other.order.tolist()


def test_candidates_without_an_embedding_resemble_nothing() -> None:
    similarity = Cosine(np.array([[0.0, 0.0], [1e200, 0.0], [-1e-200, 0.0]]))
    rows = [similarity.row(i).tolist() for i in range(3)]
    assert rows == [[1, 0, 0], [0, 1, -1], [0, -1, 1]]


@pytest.mark.parametrize(
    "matrix",
    [np.ones((2, 3)), np.array([[1, 0.5], [0.4, 1]]), np.eye(2) * 2, np.full((2, 2), np.nan)],
)
def test_unsuitable_similarities_are_refused(matrix: np.ndarray) -> None:
    with pytest.raises(DataError, match="similarity"):
        GivenSimilarity(matrix)
    with pytest.raises(DataError, match="embeddings"):
        Cosine(np.full((2, 2), np.nan))


def test_a_dpp_refuses_a_similarity_without_determinants() -> None:
    matrix = np.array([[1, 0.9, 0.9], [0.9, 1, -0.9], [0.9, -0.9, 1]])
    objective = Dpp(np.array([3.0, 2, 1]), GivenSimilarity(matrix), score_weight=0.9, window=None)
    with pytest.raises(DataError, match="semi-definite"):
        chosen(objective, 3)


# ---- rules


def breaks(rule: Rule, kinds: Sequence[Any]) -> bool:
    """Whether a list of kinds breaks a rule anywhere, by looking at all windows."""
    if isinstance(rule, InFirst):
        windows = [kinds[: rule.positions]]
    else:
        windows = [kinds[i : i + rule.window] for i in range(len(kinds))]
    limited = {kind for kind in kinds if kind is not None}
    limited &= limited if rule.values is None else {*rule.values}
    return any(list(w).count(kind) > rule.at_most for w in windows for kind in limited)


def breaks_at_end(rule: Rule, kinds: Sequence[Any]) -> bool:
    """Whether the last of the kinds makes the list break the rule at its position."""
    tail = kinds if isinstance(rule, InFirst) else kinds[-rule.window :]
    if isinstance(rule, InFirst) and len(kinds) > rule.positions:
        return False
    is_limited = kinds[-1] is not None and (rule.values is None or kinds[-1] in rule.values)
    return is_limited and list(tail).count(kinds[-1]) > rule.at_most


KINDS = st.sampled_from(["a", "b", "c", None])
VALUES = st.none() | st.sampled_from([("a",), ("b", "c")])


@st.composite
def rules(draw: Any) -> Rule:
    at_most, values = draw(st.integers(1, 3)), draw(VALUES)
    column = draw(st.sampled_from(["author", "type"]))
    if draw(st.booleans()):
        return InWindow(column, at_most, at_most + draw(st.integers(1, 3)), values)
    return InFirst(column, at_most, at_most + draw(st.integers(1, 4)), values)


@given(
    st.lists(st.tuples(KINDS, KINDS), max_size=12), st.lists(rules(), max_size=3), st.integers(0, 9)
)
@settings(max_examples=300, deadline=None)
def test_rules_equal_exhaustive_checking(
    kinds: list[tuple[Any, Any]], given_rules: list[Rule], seed: int
) -> None:
    columns = {name: [kind[i] for kind in kinds] for i, name in enumerate(("author", "type"))}
    scores = np.random.default_rng(seed).uniform(size=len(kinds))
    state = RuleState(
        given_rules, {name: np.array(v, object) for name, v in columns.items()}, len(kinds)
    )
    found = select(ByScore(scores), state, num_candidates=len(kinds), count=len(kinds))

    def broken(order: list[int]) -> tuple[bool, ...]:
        return tuple(breaks_at_end(r, [columns[r.column][i] for i in order]) for r in given_rules)

    order: list[int] = []
    for position, best in enumerate(found.order.tolist()):
        left = {i: broken([*order, i]) for i in range(len(kinds)) if i not in order}
        # The most important rule that can be obeyed is, then the next one, and so on.
        allowed = [i for i, rules_broken in left.items() if rules_broken == min(left.values())]
        assert best == max(allowed, key=lambda i: scores[i])
        names = [str(r) for r, is_so in zip(given_rules, left[best], strict=True) if is_so]
        assert list(found.relaxed[position]) == names
        order.append(best)
    for rule in given_rules:
        never_relaxed = not any(str(rule) in broken for broken in found.relaxed)
        assert never_relaxed == (not breaks(rule, [columns[rule.column][i] for i in order]))


def listed(rule: Rule, kinds: list[Any]) -> list[Any]:
    """The kinds in the order that a rule leaves of a falling score."""
    state = RuleState([rule], {"kind": np.array(kinds)}, len(kinds))
    scores = -np.arange(len(kinds), dtype=float)
    found = select(ByScore(scores), state, num_candidates=len(kinds), count=len(kinds))
    return [kinds[i] for i in found.order]


def test_rules_on_lists_written_by_hand() -> None:
    assert listed(in_a_row("kind", 2), list("aaaabb")) == list("aabaab")
    assert listed(InWindow("kind", 1, 3), list("aabbcc")) == list("abcabc")
    assert listed(InWindow("kind", 1, 3, ("a",)), list("aaabbbb")) == list("abbabba")
    assert listed(InFirst("kind", 1, 3), [1, 1, 1, 2, 3, 4]) == [1, 2, 3, 1, 1, 4]
    assert listed(InFirst("kind", 0, 2, (True,)), [True, False, True, False]) == [
        False,
        False,
        True,
        True,
    ]


def test_the_least_important_rule_is_relaxed_first() -> None:
    columns = {"author": np.array([1, 1, 2]), "type": np.array(["x", "y", "x"])}
    author, kind = in_a_row("author", 1), in_a_row("type", 1)
    for given_rules, second, relaxed in (((author, kind), 2, kind), ((kind, author), 1, author)):
        state = RuleState(given_rules, columns, 3)
        found = select(ByScore(np.array([3.0, 2.0, 1.0])), state, num_candidates=3, count=2)
        assert found.order.tolist() == [0, second]
        assert found.relaxed == ((), (str(relaxed),))


@pytest.mark.parametrize(
    "make",
    [
        lambda: InWindow("kind", 0, 3),
        lambda: InWindow("kind", 3, 3),
        lambda: InFirst("kind", 0, 3),
        lambda: InFirst("kind", 3, 3),
        lambda: in_a_row("kind", 0),
    ],
)
def test_rules_without_meaning_are_refused(make: Callable[[], Rule]) -> None:
    with pytest.raises(ConfigError, match="rules"):
        make()


@pytest.mark.parametrize(
    "values", [np.array([0.5, 1.5]), np.array([1]), np.array([[1], [2]], object)]
)
def test_unsuitable_kinds_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="'kind'"):
        RuleState([in_a_row("kind", 1)], {"kind": values}, 2)
    with pytest.raises(DataError, match="'kind'"):
        RuleState([in_a_row("kind", 1)], {"kin": np.array([1, 2])}, 2)


def test_equal_gains_keep_the_order_of_the_candidates() -> None:
    assert chosen(ByScore(np.zeros(5)), 5).order.tolist() == [0, 1, 2, 3, 4]
    assert chosen(ByScore(np.zeros(0)), 0).order.tolist() == []
