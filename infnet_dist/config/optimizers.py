"""The optimizer of the dense part, one class per kind, and the learning-rate schedules."""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from infnet_dist.config.model import Section


class FtrlConfig(Section):
    """FTRL-proximal, for online learning of the first-order part; the schedule doesn't apply."""

    name: Literal["ftrl"] = Field("ftrl", description="kind of the optimizer")
    alpha: float = Field(0.1, gt=0, description="learning rate")
    beta: float = Field(1.0, ge=0, description="added to the square root of the squared gradients")
    l1: float = Field(0.0, ge=0, description="L1 regularisation, which sets weights to exactly 0")
    l2: float = Field(0.0, ge=0, description="L2 regularisation")


class DenseOptimizerSection(Section):
    """Settings that all dense optimizers share."""

    learning_rate: float = Field(1e-3, gt=0, description="learning rate")
    max_gradient_norm: float | None = Field(
        None,
        gt=0,
        description="the gradient of all dense parameters is scaled down to this norm; null: no "
        "limit",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the dense parameters, which "
        "evaluation and checkpoints use; null: no average",
    )
    first_order: FtrlConfig | None = Field(
        None, description="another optimizer for the linear term of model.first_order; null: none"
    )


class AdamWConfig(DenseOptimizerSection):
    """AdamW for all dense parameters."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")


class AdagradConfig(DenseOptimizerSection):
    """Adagrad for all dense parameters."""

    name: Literal["adagrad"]
    weight_decay: float = Field(0.0, ge=0, description="L2 weight decay")
    eps: float = Field(1e-10, gt=0, description="added to the square root of the accumulator")


class SgdConfig(DenseOptimizerSection):
    """Stochastic gradient descent for all dense parameters."""

    name: Literal["sgd"]
    weight_decay: float = Field(0.0, ge=0, description="L2 weight decay")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum")


def _name(value: Any) -> str:
    """Discriminator with a default: a `dense_optimizer:` section without a name is AdamW."""
    get = value.get if isinstance(value, dict) else lambda key, other: getattr(value, key, other)
    return str(get("name", "adamw"))


DenseOptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")]
    | Annotated[AdagradConfig, Tag("adagrad")]
    | Annotated[SgdConfig, Tag("sgd")],
    Discriminator(_name),
]


class PartScheduleConfig(Section):
    """The schedule of one part of the model; null: as `schedule`."""

    warmup_steps: int | None = Field(None, ge=0, description="overrides schedule.warmup_steps")
    decay_share: float | None = Field(
        None, ge=0, le=1, description="overrides schedule.decay_share"
    )


class ScheduleConfig(Section):
    """Factor on all learning rates: linear warm-up, then constant, then linear decay to 0."""

    warmup_steps: int = Field(0, ge=0, description="number of linear warm-up steps")
    decay_share: float = Field(
        0.0, ge=0, le=1, description="share of all steps, at the end, with linear decay to 0"
    )
    sparse: PartScheduleConfig = Field(PartScheduleConfig(), description="overrides for the tables")
    dense: PartScheduleConfig = Field(
        PartScheduleConfig(), description="overrides for the dense part"
    )

    def of(self, part: Literal["sparse", "dense"]) -> "ScheduleConfig":
        """The schedule of this part, overrides applied."""
        return self._of[part]

    @cached_property
    def _of(self) -> "dict[str, ScheduleConfig]":  # asked for in each step
        shared = ScheduleConfig(warmup_steps=self.warmup_steps, decay_share=self.decay_share)
        return {
            part: shared.model_copy(update=getattr(self, part).model_dump(exclude_none=True))
            for part in ("sparse", "dense")
        }
