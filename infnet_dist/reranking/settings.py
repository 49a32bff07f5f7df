"""Settings of the order, from plain JSON values: of a run file, or of an exported model.

`config/order.py` has the same keys with descriptions, limits and defaults; its dumped section is
what `settings_from_json` reads, in processes without pydantic too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infnet_dist.errors import ConfigError, UserError, unknown_name
from infnet_dist.reranking.exposure import ExposureSettings
from infnet_dist.reranking.fusion import (
    ClickTimes,
    Formula,
    Linear,
    Power,
    Powers,
    Price,
    check_names,
)
from infnet_dist.reranking.rules import InFirst, InWindow, Rule, in_a_row


@dataclass(frozen=True)
class CompletionSettings:
    """The adjusted completion rate, a value for fusion beside those of the tasks.

    Attributes:
        task: the watch time.
        duration: column of the candidates' durations, in seconds.
        name: name of the value.
    """

    task: str
    duration: str
    name: str = "completion"


@dataclass(frozen=True)
class DiversitySettings:
    """How results are made different from their neighbours.

    Attributes:
        method: none (by score alone), mmr or dpp.
        score_weight: weight w of the score, in [0, 1]; 1 - w is that of diversity.
        window: number of results that a candidate is compared with; None: all before it.
        scale: min_max: scores are scaled to [0, 1] within the request, so that w doesn't depend on
            the formula; none: as they are.

    Raises:
        ConfigError: a value isn't allowed.
    """

    method: str = "none"
    score_weight: float = 0.7
    window: int | None = 10
    scale: str = "min_max"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("method", self.method, ("none", "mmr", "dpp")),
            ("scale", self.scale, ("min_max", "none")),
        ):
            if value not in known:
                raise ConfigError(f"diversity.{key}: {unknown_name(key, value, known)}")
        if not 0 <= self.score_weight <= 1 or (self.window is not None and self.window < 1):
            raise ConfigError(
                f"diversity: got score_weight {self.score_weight} and window {self.window}, "
                "expected a weight in [0, 1] and a window of at least 1, or null"
            )


@dataclass(frozen=True)
class OrderSettings:
    """How the candidates of a request become a list.

    Attributes:
        fusion: formula of the scores.
        count: number of results.
        completion: None: there is no such value.
        diversity: similarity of neighbours.
        rules: most important first.
        exposure: size of the filters of what users were shown; None: it isn't recorded.

    Raises:
        ConfigError: count is less than 1.
    """

    fusion: Formula
    count: int = 50
    completion: CompletionSettings | None = None
    diversity: DiversitySettings = DiversitySettings()
    rules: tuple[Rule, ...] = ()
    exposure: ExposureSettings | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count: got {self.count}, expected at least 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the candidates must have, beside those of calibrators."""
        durations = [self.completion.duration] if self.completion else []
        found = [*self.fusion.columns, *durations, *(rule.column for rule in self.rules)]
        return tuple(dict.fromkeys(found))

    def check(self, kinds: Mapping[str, str]) -> None:
        """Check the names of tasks against those of a model.

        Args:
            kinds: `binary` or `watch_time` by task.

        Raises:
            ConfigError: a task is unknown or of the wrong kind.
        """
        names = {*kinds}
        if self.completion is not None:
            task, name = self.completion.task, self.completion.name
            watch_times = [task for task, kind in kinds.items() if kind == "watch_time"]
            if task not in watch_times:
                raise ConfigError(
                    f"completion.task: {unknown_name('watch time', task, watch_times)}"
                )
            if name in kinds:
                raise ConfigError(
                    f"completion.name: {name!r} is the name of a task; choose another"
                )
            names |= {name}
        check_names(self.fusion, names)
        for name in self.fusion.probabilities:
            if kinds.get(name) != "binary":
                raise ConfigError(
                    f"fusion: {name!r} must be a binary task, since the formula needs a probability"
                )


def settings_from_json(value: Mapping[str, Any]) -> OrderSettings:
    """The settings in plain values.

    Raises:
        ConfigError: a key is missing or unknown, or a value isn't allowed.
    """
    try:
        given = dict(value)
        given["fusion"] = _fusion(given["fusion"])
        given["rules"] = tuple(_rule(one) for one in given.get("rules", ()))
        for key, kind in _SECTIONS.items():
            if given.get(key) is not None:
                given[key] = kind(**given[key])
        return OrderSettings(**given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise ConfigError(f"malformed settings of the order ({error})") from None


_SECTIONS: dict[str, Callable[..., object]] = {
    "completion": CompletionSettings,
    "diversity": DiversitySettings,
    "exposure": ExposureSettings,
}


def _fusion(value: Mapping[str, Any]) -> Formula:
    options = dict(value)
    formula = options.pop("formula")
    if formula == "powers":
        factors = {name: Power(**one) for name, one in options.pop("factors").items()}
        return Powers(factors, **options)
    kinds: dict[str, Callable[..., Formula]] = {
        "linear": Linear,
        "click_times": ClickTimes,
        "price": Price,
    }
    if formula not in kinds:
        raise ConfigError(f"fusion: {unknown_name('formula', str(formula), [*kinds, 'powers'])}")
    return kinds[formula](**options)


def _rule(value: Mapping[str, Any]) -> Rule:
    options = dict(value)
    kind, values = options.pop("rule"), options.pop("values", None)
    kinds: dict[str, Callable[..., Rule]] = {
        "in_a_row": in_a_row,
        "in_window": InWindow,
        "in_first": InFirst,
    }
    if kind not in kinds:
        raise ConfigError(f"rules: {unknown_name('rule', str(kind), kinds)}")
    return kinds[kind](**options, values=None if values is None else tuple(values))
