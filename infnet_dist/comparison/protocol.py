"""The protocol of a comparison: a base run file, models, a grid that all models share, and seeds.

base: kuairand_pure.yaml            # in the same folder; defines everything else
set: {training.epochs: 1, data.batch_size: 256}
models:
  infnet: {name: infnet}
  deepfm: {name: stack, sequence: {name: mean}, interaction: {name: deepfm}, head: {name: linear}}
grid: {dense_optimizer.learning_rate: [0.0003, 0.001]}
seeds: [0, 1, 2]
finalists: 4
always_finalists: [infnet]
ablations: {of: infnet, models: {four_hubs: {name: infnet, num_hubs: 4}}}

Every comparison includes the control, `linear_control`: logistic regression on the same features
and counters (histories as the mean of their items), trained with every seed. Its score is due to
the features, not to a model.

First every model is trained at every point of the grid with the first seed; then the finalists,
each at its best point, with the other seeds. Ablations are trained at their model's best point and
aren't ranked among the models. A model's section inherits the options that all towers share from
the base run file: token_dim, dropout, first_order, conditional_on.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, ValidationError, model_validator

from infnet_dist.config.messages import explain
from infnet_dist.config.model import ModelSection, Section
from infnet_dist.config.overrides import apply_overrides, covers, key_of
from infnet_dist.config.run import Config, parse_config, read_sections
from infnet_dist.errors import ConfigError, unknown_name
from infnet_dist.io.parsing import checked

CONTROL = "linear_control"
_CONTROL_SECTION = {
    "name": "stack",
    "sequence": {"name": "mean"},
    "interaction": {"name": "linear"},
    "head": {"name": "linear"},
}


class Ablations(Section):
    """Variants of a model, trained at its best point."""

    of: str = Field(description="name of the model")
    models: dict[str, dict[str, Any]] = Field(
        min_length=1, description="model section by name of the variant"
    )
    seeds: list[int] | None = Field(
        None, min_length=1, description="subset of the comparison's seeds; null: all"
    )


class Protocol(Section):
    """The contents of a comparison file."""

    base: Path = Field(description="run file, relative to the folder of the comparison file")
    set: dict[str, Any] = Field(default_factory=dict, description="changes to the run file, by key")
    models: dict[str, dict[str, Any]] = Field(
        min_length=1, description="model section by name of the model"
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="values by key; every model tries all combinations"
    )
    seeds: list[int] = Field([0], min_length=1, description="seeds; the first is the grid's")
    finalists: PositiveInt = Field(4, description="models that are trained with every seed")
    always_finalists: list[str] = Field([], description="models that are always finalists")
    ablations: Ablations | None = Field(None, description="variants of one of the models")

    @property
    def all_models(self) -> dict[str, dict[str, Any]]:
        """Model sections of all models; the control is last."""
        return self.models | {CONTROL: _CONTROL_SECTION}

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Model sections of the ablations."""
        return self.ablations.models if self.ablations else {}

    @property
    def ablation_seeds(self) -> list[int]:
        """Seeds of the ablations."""
        return (self.ablations and self.ablations.seeds) or self.seeds

    @model_validator(mode="after")
    def _check(self) -> "Protocol":
        self._check_set_once()
        for seed in set(self.ablation_seeds) - set(self.seeds):
            raise ValueError(f"ablations.seeds: {seed} isn't one of seeds ({self.seeds})")
        if len({*self.ablation_seeds}) != len(self.ablation_seeds):
            raise ValueError(f"ablations.seeds: a seed appears twice in {self.ablation_seeds}")
        for name in self.models.keys() & self.variants.keys():
            raise ValueError(f"ablations.models: {name!r} is also the name of a model; rename one")
        for name in [*self.models, *self.variants]:
            if name == CONTROL:
                raise ValueError(f"models: {name!r} is the control's name; rename the model")
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"models: {name!r}: expected a name of letters, digits, . _ -")
        for name in [*self.always_finalists, *([self.ablations.of] if self.ablations else [])]:
            if name not in self.models:
                raise ValueError(unknown_name("model", name, self.models))
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key} has no values; add one")
            if len({json.dumps(value) for value in values}) != len(values):
                raise ValueError(f"grid.{key}: a value appears twice in {values}")
        if len({*self.seeds}) != len(self.seeds):
            raise ValueError(f"seeds: a seed appears twice in {self.seeds}")
        return self

    def _check_set_once(self) -> None:
        """Check that only one of seeds, grid, model section and run file sets a key."""
        for key in self.grid:
            for other in self.grid:
                if key != other and covers(key, other):
                    raise ValueError(f"grid.{other} is a part of grid.{key}; keep one of them")
            if covers(key, "run.seed"):
                raise ValueError(f"grid.{key}: set 'seeds' instead")
            for name, section in (self.models | self.variants).items():
                for option in section:
                    if covers(key, f"model.{option}") or covers(f"model.{option}", key):
                        raise ValueError(
                            f"models.{name}.{option}: grid.{key} would replace it; remove one"
                        )
        for key in self.set:
            if reason := self.without_effect(key):
                raise ValueError(f"set.{key}: {reason}")

    def without_effect(self, key: str) -> str | None:
        """The reason why a change of the run file would affect no trial; None if it would."""
        for varied in self.grid:
            if covers(key, varied) or covers(varied, key):
                return f"grid.{varied} sets it; change the grid, or set other keys individually"
        if covers(key, "run.seed"):
            return "the comparison has its own seeds; change 'seeds'"
        common = [f"model.{option}" for option in ModelSection.model_fields]
        if covers("model", key) and not any(covers(option, key) for option in common):
            return f"each model has its own section; only {', '.join(common)} can be set here"
        return None


# Sections and keys that don't affect the result of a trial.
_WITHOUT_EFFECT: dict[str, Any] = {
    "run": True,
    "ingest": True,
    "tracking": True,
    "checkpoint": True,
    "data": {"path", "prefetch_batches"},
    "scaling": {"timeout_s", "resources_per_worker"},
    "training": {"log_every_steps"},
}


@dataclass(frozen=True)
class Trial:
    """One training run of the comparison.

    Attributes:
        model: name of the model.
        point: values by key of the grid.
        config: the run.
        data: content hash of the training set.
    """

    model: str
    point: dict[str, Any]
    config: Config
    data: str

    @property
    def id(self) -> str:
        """Name of the run folder: depends on the data and all settings that affect the result."""
        settings = self.config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        text = json.dumps([self.data, self.config.run.seed, settings], sort_keys=True)
        return f"{self.model}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run.folder / self.config.run.name / self.id


def load_protocol(path: str | Path) -> Protocol:
    """Read a comparison file.

    Raises:
        ConfigError: the file is missing or isn't YAML, or a key is wrong.
    """
    try:
        return checked(Protocol, read_sections(path))
    except ValidationError as error:
        lines = explain(error.errors(), Protocol)
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None


def base_config(protocol: Protocol, path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The run file with the comparison's changes, then `overrides` (key.path=value)."""
    path = Path(path)
    base = path.parent / protocol.base
    raw = read_sections(base)
    apply_overrides(raw, [f"{key}={json.dumps(value)}" for key, value in protocol.set.items()])
    for key in map(key_of, overrides):
        if reason := protocol.without_effect(key):
            raise ConfigError(f"--set {key}: {reason}")
    apply_overrides(raw, overrides)
    return parse_config(raw, source=str(base))


def trials(protocol: Protocol, base: Config, *, seed: int, data: str) -> list[Trial]:
    """Every model at every point of the grid, on the training set with content hash `data`.

    Raises:
        ConfigError: a model's section or a key of the grid is wrong; names the model.
    """
    points = [
        dict(zip(protocol.grid, values, strict=True))
        for values in itertools.product(*protocol.grid.values())
    ]
    return [
        Trial(name, point, _config(base, name, section, point, seed), data)
        for name, section in protocol.all_models.items()
        for point in points
    ]


def ablation_trials(protocol: Protocol, base: Config, best: Trial) -> list[Trial]:
    """Every ablation with each of its seeds, at the point of `best`, a trial of the ablated model.

    Raises:
        ConfigError: an ablation's section is wrong; names the ablation.
    """
    return [
        Trial(name, best.point, _config(base, name, section, best.point, seed), best.data)
        for name, section in protocol.variants.items()
        for seed in protocol.ablation_seeds
    ]


def with_seed(trial: Trial, seed: int) -> Trial:
    """The same trial with another seed."""
    run = trial.config.run.model_copy(update={"seed": seed})
    return replace(trial, config=trial.config.model_copy(update={"run": run}))


def _config(
    base: Config, model: str, section: dict[str, Any], point: dict[str, Any], seed: int
) -> Config:
    raw = base.model_dump(mode="json")
    common = {key: raw["model"][key] for key in ModelSection.model_fields}
    raw["model"] = common | section
    raw["run"]["seed"] = seed
    raw["tracking"]["wandb"] = "disabled"  # the report is sent as one run
    for key, value in point.items():
        *parents, last = key.split(".")
        inner = raw
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                raise ConfigError(f"grid.{key}: the run file has no section {parent!r}")
            inner = inner[parent]
        inner[last] = value
    return parse_config(raw, source=f"model {model!r} at {point}")
