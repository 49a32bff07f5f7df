"""The `roll` section of a run file: how `infnet roll` goes from one generation to the next."""

from typing import Literal

from pydantic import Field, model_validator

from infnet_dist.config.model import Section


class GateConfig(Section):
    """A condition on one metric of the candidate, measured on the rows that are held out."""

    metric: str = Field(
        pattern=r"^(auc|gauc|r2|log_loss|normalized_entropy|mae_s|calibration)/[^/]+$",
        description="a metric and a task, e.g. auc/click",
    )
    min_difference: float | None = Field(
        None,
        description="minimum improvement over the current model, e.g. -0.002 to allow a small "
        "loss; lower log_loss, normalized_entropy and mae_s are an improvement; null: any",
    )
    min: float | None = Field(None, description="minimum value; null: no limit")
    max: float | None = Field(None, description="maximum value; null: no limit")

    @model_validator(mode="after")
    def _check(self) -> "GateConfig":
        if self.min_difference is None and self.min is None and self.max is None:
            raise ValueError("set min_difference, min or max")
        if self.metric.startswith("calibration/") and self.min_difference is not None:
            raise ValueError("neither a higher nor a lower calibration is better; set min and max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g}, larger than max, {self.max:g}")
        return self


class RollConfig(Section):
    """The daily loop: ingest, evaluate before training, train, gate, publish."""

    holdout_h: float = Field(
        2.0,
        gt=0,
        le=8784,
        description="newest hours of the logs that a generation isn't trained on, but evaluated "
        "on for the gate; the next generation trains on them",
    )
    gate: tuple[GateConfig, ...] = Field(
        (), description="conditions that a model must meet to replace the current one"
    )
    max_row_norm: float | None = Field(
        None, gt=0, description="maximum L2 norm of an embedding row; null: no limit"
    )
    update: Literal["all", "ids_within_day"] = Field(
        "all",
        description="all: every generation trains the whole model; ids_within_day: the first "
        "generation of a day does, later ones train only embedding tables, and the next day "
        "starts again from the last whole model",
    )
    keep: int = Field(
        3, ge=1, description="number of newest runs that are kept; the current one always is"
    )
