"""Names and patterns of `training.trainable`."""

from typing import Any

import pytest

from infnet_dist.config.run import Config, dump_config, parse_config
from infnet_dist.config.trainable import check_trainable
from infnet_dist.errors import ConfigError
from infnet_dist.sharding.trainable import trainable_name

NAMES = ("user", "user_city", "item", "dense.tower.mix.weight", "dense.tokens.norm.bias")


def config_of(**training: Any) -> Config:
    return parse_config({"data": {"path": "d"}, "training": training})


@pytest.mark.parametrize(
    ("training", "factors"),
    [
        ({}, (1, 1, 1, 1, 1)),
        ({"trainable": {"user": 0}}, (0, 1, 1, 1, 1)),
        ({"trainable": {"user*": 0.5}}, (0.5, 0.5, 1, 1, 1)),
        ({"trainable": {"dense": 0}}, (1, 1, 1, 0, 0)),
        ({"trainable": {"dense": 0, "dense.tower": 2}}, (1, 1, 1, 2, 0)),
        ({"trainable": {"dense.tower": 2, "dense": 0}}, (1, 1, 1, 0, 0)),
        ({"trainable": {"*": 0, "*.bias": 0.1}}, (0, 0, 0, 0, 0.1)),
        ({"ids_only": True}, (1, 1, 1, 0, 0)),
        ({"ids_only": True, "trainable": {"dense": 1, "item": 0}}, (1, 1, 0, 0, 0)),
    ],
)
def test_factors_by_name(training: dict[str, Any], factors: tuple[float, ...]) -> None:
    config = config_of(**training)
    check_trainable(config.training, NAMES)
    assert tuple(map(config.training.lr_factor, NAMES)) == factors
    again = parse_config(config.model_dump(mode="json"))
    assert tuple(map(again.training.lr_factor, NAMES)) == factors
    assert dump_config(again) == dump_config(config)
    assert tuple(config.table(name).lr_factor for name in NAMES[:3]) == factors[:3]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("usr", "'user'"), ("dense.towr", "'dense.tower'"), ("dense.tower.mx.weight", "tower.mix'")],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"training.trainable.*{pattern}.*{near}"):
        check_trainable(config_of(trainable={pattern: 0}).training, NAMES)


@pytest.mark.parametrize("training", [{"trainable": {"*": 0}}, {"ids_only": 1}])
def test_what_is_no_factor_or_would_train_nothing(training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="training"):
        check_trainable(config_of(**training).training, NAMES)


@pytest.mark.parametrize("factor", [-0.1, float("inf"), "half"])
def test_factors_are_numbers_from_0(factor: Any) -> None:
    with pytest.raises(ConfigError, match=r"training\.trainable"):
        config_of(trainable={"user": factor})


def test_names_of_parameters() -> None:
    names = {
        "model.sparse.sequences.16.embeddings.item.weight": "item",
        "model.sparse.bags.embedding_bags.user.weight": "user",
        "model.model.dense.tower.mix.weight": "dense.tower.mix.weight",
        "dense.tower.mix.weight": "dense.tower.mix.weight",
    }
    assert {name: trainable_name(name) for name in names} == names
