"""The order of a request's candidates: fusion of the tasks, diversity, rules, exposures.

`infnet_dist.reranking.settings.settings_from_json` turns the dumped section into plain settings.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from infnet_dist.config.model import Section

Text = Annotated[str, Field(min_length=1)]
Weights = Annotated[dict[str, float], Field(min_length=1)]
Exponent = Annotated[float, Field(ge=0)]
KindValue = Annotated[int, Field(strict=True)] | str


class LinearFusion(Section):
    """The sum of w p over the tasks."""

    formula: Literal["linear"]
    weights: Weights = Field(description="weight w by task, or by the name of the completion rate")


class ClickTimesFusion(Section):
    """p_click (1 + sum of w p): a click, and what follows it."""

    formula: Literal["click_times"]
    click: Text = Field("click", description="binary task of the click")
    weights: Weights = Field(description="weight w by task, or by the name of the completion rate")


class PowerConfig(Section):
    """A factor (offset + scale p)^exponent."""

    exponent: float = Field(1.0, description="exponent; a negative one needs an offset")
    scale: float = Field(1.0, ge=0, description="factor of p")
    offset: float = Field(
        0.0, ge=0, description="added to scale p; 1: a small p doesn't hide the other factors"
    )

    @model_validator(mode="after")
    def _check(self) -> "PowerConfig":
        if self.exponent < 0 and self.offset == 0:
            raise ValueError("a negative exponent needs offset > 0, since p may be 0")
        return self


class PowersFusion(Section):
    """The product of (offset + scale p)^exponent."""

    formula: Literal["powers"]
    factors: dict[str, PowerConfig] = Field(
        min_length=1, description="by task, or by the name of the completion rate"
    )


class PriceFusion(Section):
    """The product of rates and price, each to a power; p_click p_buy price is expected revenue."""

    formula: Literal["price"]
    rates: Annotated[dict[str, Exponent], Field(min_length=1)] = Field(
        description="exponent by binary task, e.g. `{click: 1, buy: 1}`"
    )
    price: Text = Field("price", description="column of the candidates' prices")
    exponent: float = Field(1.0, description="exponent of the price; 0: by rates alone")


FusionConfig = Annotated[
    Annotated[LinearFusion, Tag("linear")]
    | Annotated[ClickTimesFusion, Tag("click_times")]
    | Annotated[PowersFusion, Tag("powers")]
    | Annotated[PriceFusion, Tag("price")],
    Discriminator("formula"),
]


class CompletionConfig(Section):
    """The completion rate, adjusted by length, as a value for the formula."""

    task: Text = Field(description="task of the watch time")
    duration: Text = Field("duration_s", description="column of the durations, in seconds")
    name: Text = Field("completion", description="name of the value in the formula")


class DiversityConfig(Section):
    """How results are made different from their neighbours."""

    method: Literal["none", "mmr", "dpp"] = Field(
        "none",
        description="none: by score; mmr: maximal marginal relevance; dpp: greedy inference of a "
        "determinantal point process",
    )
    score_weight: float = Field(
        0.7, ge=0, le=1, description="weight of the score; that of diversity is the rest up to 1"
    )
    window: int | None = Field(
        10, ge=1, description="number of results that a candidate is compared with; null: all"
    )
    scale: Literal["min_max", "none"] = Field(
        "min_max", description="min_max: scores are scaled to [0, 1] within a request; none: as is"
    )


class KindRule(Section):
    """What all rules have in common."""

    column: Text = Field(description="column of the candidates whose values are kinds")
    values: tuple[KindValue, ...] | None = Field(
        None, min_length=1, description="the kinds that the rule limits; null: each value"
    )


class InARowRule(KindRule):
    """At most so many of a kind in a row."""

    rule: Literal["in_a_row"]
    at_most: int = Field(ge=1, description="number of results")


class InWindowRule(KindRule):
    """At most so many of a kind in any window; `at_most: 1`: one of a kind in every `window`."""

    rule: Literal["in_window"]
    at_most: int = Field(ge=1, description="number of results")
    window: int = Field(ge=2, description="number of neighbouring results")

    @model_validator(mode="after")
    def _check(self) -> "InWindowRule":
        if self.at_most >= self.window:
            raise ValueError(f"at_most is {self.at_most}, expected less than window, {self.window}")
        return self


class InFirstRule(KindRule):
    """At most so many of a kind in the first results."""

    rule: Literal["in_first"]
    at_most: int = Field(ge=0, description="number of results; 0: for given values only")
    positions: int = Field(ge=1, description="number of first results")

    @model_validator(mode="after")
    def _check(self) -> "InFirstRule":
        if self.at_most >= self.positions:
            raise ValueError(
                f"at_most is {self.at_most}, expected less than positions, {self.positions}"
            )
        if self.at_most == 0 and self.values is None:
            raise ValueError("at_most 0 without values allows no result; set values")
        return self


RuleConfig = Annotated[
    Annotated[InARowRule, Tag("in_a_row")]
    | Annotated[InWindowRule, Tag("in_window")]
    | Annotated[InFirstRule, Tag("in_first")],
    Discriminator("rule"),
]


class ExposureConfig(Section):
    """The Bloom filters of what a user was shown."""

    days: int = Field(7, ge=1, lt=2**16, description="days for which an item isn't shown again")
    per_day: int = Field(500, ge=1, lt=2**32, description="exposures of a user on a day")
    false_positive_rate: float = Field(
        0.01, gt=0, lt=1, description="share of new items that are left out by mistake, at most"
    )


class OrderConfig(Section):
    """How the candidates of a request become a list."""

    fusion: FusionConfig
    count: int = Field(50, ge=1, description="number of results")
    completion: CompletionConfig | None = None
    diversity: DiversityConfig = DiversityConfig()
    rules: tuple[RuleConfig, ...] = Field(
        (), description="rules on neighbouring results, most important first"
    )
    exposure: ExposureConfig | None = None
