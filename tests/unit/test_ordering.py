"""`order_candidates` from predictions to a list, and the settings that describe it."""

import math
import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from infnet_dist.config.messages import explain
from infnet_dist.config.order import OrderConfig
from infnet_dist.errors import ConfigError, DataError, UserError
from infnet_dist.io.parsing import checked, parse_yaml
from infnet_dist.reranking.calibration.calibrators import Platt, logit
from infnet_dist.reranking.calibration.stored import Calibration
from infnet_dist.reranking.completion import CompletionCurve
from infnet_dist.reranking.exposure import ExposureFilter, ExposureSettings
from infnet_dist.reranking.fusion import ClickTimes, Linear, Power, Powers, Price
from infnet_dist.reranking.ordering import Candidates, order_candidates
from infnet_dist.reranking.rules import InFirst, InWindow
from infnet_dist.reranking.settings import (
    CompletionSettings,
    DiversitySettings,
    OrderSettings,
    settings_from_json,
)
from tests.conftest import REPOSITORY

KINDS = {"click": "binary", "like": "binary", "watch": "watch_time"}
CLICK = [0.1, 0.9, 0.5, 0.8, 0.7, 0.6]


def candidates(**given: Any) -> Candidates:
    """Six candidates with falling rates of clicks: 1, 3, 4, 5, 2, 0."""
    return Candidates(**({"logits": {"click": logit(np.array(CLICK))}} | given))


def settings(**given: Any) -> OrderSettings:
    return OrderSettings(**({"fusion": Linear({"click": 1.0})} | given))


def test_candidates_are_ordered_by_score() -> None:
    found = order_candidates(candidates(), settings(count=4))
    assert found.order.tolist() == [1, 3, 4, 5]
    assert found.scores == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert found.ranks.tolist() == [1, 2, 3, 4]
    assert found.already_shown.tolist() == []
    assert found.reasons[0] == "score 0.9 (rank 1)"


def test_shown_items_are_left_out_before_the_rules_count() -> None:
    shown = ExposureFilter(ExposureSettings())
    shown.add(np.array([103]), now_s=0)
    ids, author = np.arange(100, 106), np.array(["a", "b", "c", "b", "b", "d"])
    found = order_candidates(
        candidates(item_ids=ids, columns={"author": author}),
        settings(rules=(InWindow("author", 1, 2),)),
        exposure=shown,
        now_s=60.0,
    )
    assert found.already_shown.tolist() == [3]
    assert found.order.tolist() == [1, 5, 4, 2, 0]
    assert found.ranks.tolist() == [1, 3, 2, 4, 5]
    with pytest.raises(DataError, match="item_ids"):
        order_candidates(candidates(), settings(), exposure=shown, now_s=60.0)


def test_relaxed_rules_are_reported() -> None:
    columns = {"kind": np.array(["ad"] * 5 + ["post"])}
    rule = InFirst("kind", 1, 3, ("ad",))
    found = order_candidates(candidates(columns=columns), settings(rules=(rule,), count=3))
    assert found.order.tolist() == [1, 5, 3]
    assert found.relaxed == ((), (), (str(rule),))
    assert "relaxed" in found.reasons[2]
    assert "relaxed" not in found.reasons[1]


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_a_near_copy_comes_later(method: str) -> None:
    """Candidate 3 is nearly 1, the best one; 4 differs."""
    embeddings = np.eye(6)
    embeddings[3] = embeddings[1] + 0.01 * embeddings[3]
    found = order_candidates(
        candidates(embeddings_ND=embeddings),
        settings(diversity=DiversitySettings(method, score_weight=0.5, window=2)),
    )
    assert found.order.tolist() == [1, 4, 5, 3, 2, 0]  # the window of two has left 1
    assert found.scores == pytest.approx([CLICK[i] for i in found.order])
    assert (
        "diversity"
        in order_candidates(
            candidates(embeddings_ND=np.ones((6, 2))),
            settings(diversity=DiversitySettings(method)),
        ).reasons[1]
    )


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_diversity_does_not_depend_on_the_scale_of_the_formula(method: str) -> None:
    embeddings = np.random.default_rng(0).normal(size=(6, 3))
    orders = [
        order_candidates(
            candidates(embeddings_ND=embeddings),
            settings(
                fusion=Linear({"click": weight}), diversity=DiversitySettings(method, 0.4, None)
            ),
        ).order.tolist()
        for weight in (1.0, 1000.0)
    ]
    assert orders[0] == orders[1] != [1, 3, 4, 5, 2, 0]


def test_equal_scores_keep_the_order_of_the_request() -> None:
    equal = candidates(logits={"click": np.zeros(6)}, embeddings_ND=np.eye(6))
    for method in ("none", "mmr", "dpp"):
        found = order_candidates(equal, settings(diversity=DiversitySettings(method)))
        assert found.order.tolist() == [0, 1, 2, 3, 4, 5]


def test_all_parts_together_against_values_computed_by_hand() -> None:
    given = Candidates(
        logits={"click": np.array([0.0, 1.0]), "watch": np.array([math.log(2), 0.0])},
        watch_time_s={"watch": 10.0},
        columns={"duration_s": np.array([20.0, 5.0]), "price": np.array([3.0, 4.0])},
    )
    made = settings(
        fusion=Powers({"click": Power(1.0), "completion": Power(2.0, 1.0, 1.0)}),
        completion=CompletionSettings("watch", "duration_s"),
    )
    calibration = Calibration({"click": Platt(2.0, 1.0)}, None, CompletionCurve((10.0,), (0.5,)))
    found = order_candidates(given, made, calibration=calibration)
    # completions: 20 s of 20 s and 10 s of 5 s, over 0.5
    expected = {0: (1 + 2) ** 2 / (1 + math.exp(-1)), 1: (1 + 4) ** 2 / (1 + math.exp(-3))}
    assert found.order.tolist() == [1, 0]
    assert found.scores == pytest.approx([expected[1], expected[0]])
    with pytest.raises(ConfigError, match="completion"):
        order_candidates(given, made)


def test_a_request_without_candidates_has_no_results() -> None:
    empty = Candidates(
        logits={"click": np.zeros(0)},
        item_ids=np.zeros(0, np.int64),
        columns={"author": np.zeros(0, np.int64)},
        embeddings_ND=np.zeros((0, 4)),
    )
    for method in ("none", "mmr", "dpp"):
        made = settings(diversity=DiversitySettings(method), rules=(InWindow("author", 1, 2),))
        shown = ExposureFilter(ExposureSettings())
        found = order_candidates(empty, made, exposure=shown, now_s=0.0)
        assert found.order.tolist() == []
        assert found.reasons == ()


@pytest.mark.parametrize(
    ("given", "options", "named"),
    [
        ({"columns": {"author": np.zeros(5)}}, {}, "author"),
        ({"item_ids": np.zeros(5, np.int64)}, {}, "item ids"),
        ({"logits": {}}, {}, "predictions"),
        ({}, {"rules": (InWindow("author", 1, 2),)}, "author"),
        ({}, {"diversity": DiversitySettings("mmr")}, "embeddings_ND"),
        ({"embeddings_ND": np.eye(5)}, {"diversity": DiversitySettings("mmr")}, "5 rows"),
        ({"similarity_NN": np.eye(7)}, {"diversity": DiversitySettings("dpp")}, "7 rows"),
        (
            {"similarity_NN": np.eye(6), "embeddings_ND": np.eye(6)},
            {"diversity": DiversitySettings("dpp")},
            "both",
        ),
        ({}, {"fusion": Price({"click": 1.0}, "price", 1.0)}, "price"),
    ],
)
def test_incomplete_candidates_are_refused(
    given: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        order_candidates(candidates(**given), settings(**options))


# ---- settings


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fusion": Linear({"clik": 1.0})}, "click"),
        ({"fusion": ClickTimes("watch", {"like": 1.0})}, "watch"),
        ({"fusion": Price({"watch": 1.0}, "price", 1.0)}, "watch"),
        ({"fusion": Linear({"completion": 1.0})}, "completion"),
        ({"completion": CompletionSettings("click", "duration_s")}, "click"),
        ({"completion": CompletionSettings("watch", "duration_s", "like")}, "like"),
    ],
)
def test_names_are_checked_against_the_tasks(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        settings(**options).check(KINDS)


def test_suitable_names_pass() -> None:
    made = settings(
        fusion=ClickTimes("click", {"like": 2.0, "completion": 1.0}),
        completion=CompletionSettings("watch", "duration_s"),
        rules=(InWindow("author", 1, 3), InFirst("author", 2, 8)),
    )
    made.check(KINDS)
    assert made.columns == ("duration_s", "author")


FUSIONS = [
    ({"formula": "linear", "weights": {"click": 1.5}}, Linear({"click": 1.5})),
    ({"formula": "click_times", "weights": {"like": 2}}, ClickTimes("click", {"like": 2.0})),
    (
        {"formula": "powers", "factors": {"click": {}, "like": {"exponent": 2, "offset": 1}}},
        Powers({"click": Power(1.0), "like": Power(2.0, 1.0, 1.0)}),
    ),
    (
        {"formula": "price", "rates": {"click": 1, "like": 1}, "exponent": 0.5},
        Price({"click": 1.0, "like": 1.0}, "price", 0.5),
    ),
]


@pytest.mark.parametrize(("section", "expected"), FUSIONS)
def test_a_section_becomes_a_formula(section: dict[str, Any], expected: Any) -> None:
    config = checked(OrderConfig, {"fusion": section})
    assert settings_from_json(config.model_dump(mode="json")) == OrderSettings(expected)


def test_defaults_of_the_section_are_those_of_the_room() -> None:
    section = {"fusion": {"formula": "linear", "weights": {"click": 1}}, "exposure": {}}
    section["completion"] = {"task": "watch"}
    found = settings_from_json(checked(OrderConfig, section).model_dump(mode="json"))
    assert found == settings(
        exposure=ExposureSettings(), completion=CompletionSettings("watch", "duration_s")
    )


RULES = [
    ({"rule": "in_a_row", "column": "author", "at_most": 2}, InWindow("author", 2, 3)),
    (
        {"rule": "in_window", "column": "ad", "values": [1], "at_most": 1, "window": 5},
        InWindow("ad", 1, 5, (1,)),
    ),
    (
        {"rule": "in_first", "column": "ad", "values": ["x"], "at_most": 0, "positions": 4},
        InFirst("ad", 0, 4, ("x",)),
    ),
]


@pytest.mark.parametrize(("section", "expected"), RULES)
def test_a_section_becomes_a_rule(section: dict[str, Any], expected: Any) -> None:
    raw = {"fusion": {"formula": "linear", "weights": {"click": 1}}, "rules": [section]}
    found = settings_from_json(checked(OrderConfig, raw).model_dump(mode="json"))
    assert found.rules == (expected,)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fusion": {"formula": "sum", "weights": {"click": 1}}}, "linear"),
        ({"fusion": {"formula": "linear", "weights": {}}}, "weights"),
        ({"fusion": {"formula": "powers", "factors": {"click": {"exponent": -1}}}}, "offset"),
        ({"fusion": {"formula": "price", "rates": {"click": -1}}}, "rates"),
        ({"diversity": {"method": "mmx"}}, "method"),
        ({"diversity": {"score_weight": 1.5}}, "score_weight"),
        ({"rules": [{"rule": "in_window", "column": "a", "at_most": 3, "window": 3}]}, "window"),
        ({"rules": [{"rule": "in_first", "column": "a", "at_most": 0, "positions": 3}]}, "values"),
        ({"cuont": 3}, "count"),
    ],
)
def test_a_wrong_section_is_refused_in_run_files_and_exports(
    change: dict[str, Any], key: str
) -> None:
    raw = {"fusion": {"formula": "linear", "weights": {"click": 1}}} | change
    with pytest.raises(ValidationError) as caught:
        checked(OrderConfig, raw)
    assert key in "; ".join(explain(caught.value.errors(), OrderConfig))
    with pytest.raises(UserError):
        settings_from_json(raw)


def test_the_documented_section_is_valid() -> None:
    text = (REPOSITORY / "docs" / "reranking.md").read_text()
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    found = [textwrap.dedent(one).lstrip("\n") for one in blocks]
    sections = [parse_yaml(one) for one in found if one.startswith("fusion:")]
    assert sections
    for raw in sections:
        dumped = checked(OrderConfig, raw).model_dump(mode="json")
        settings_from_json(dumped).check(KINDS | {"buy": "binary"})


def test_the_room_needs_numpy_alone() -> None:
    """As in a serving process; the code of the fits is apart."""
    code = """
        import sys
        from importlib.abc import MetaPathFinder

        class Nothing(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                top = name.partition(".")[0]
                if top not in {*sys.stdlib_module_names, "numpy", "infnet_dist"}:
                    raise ImportError(f"{name} isn't installed here")

        sys.meta_path.insert(0, Nothing())
        import numpy as np
        from infnet_dist.reranking.calibration.stored import load_calibration
        from infnet_dist.reranking.ordering import Candidates, order_candidates
        from infnet_dist.reranking.settings import settings_from_json

        settings = settings_from_json({
            "fusion": {"formula": "linear", "weights": {"click": 1.0}},
            "diversity": {"method": "dpp"},
        })
        calibration = load_calibration('{"format_version": 1, "calibrators": {}}')
        found = order_candidates(
            Candidates({"click": np.array([0.0, 1.0])}, embeddings_ND=np.eye(2)),
            settings, calibration=calibration,
        )
        print(found.order.tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[1, 0]\n", done.stderr
