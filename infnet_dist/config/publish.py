"""The `publish` section of a run file: full publications and deltas for servers and replicas."""

from typing import Literal

from pydantic import Field, model_validator

from infnet_dist.config.model import Section

RowType = Literal["fp32", "fp16", "int8"]


class PublishConfig(Section):
    """When and where the model is published while it trains, and in which form."""

    folder: str | None = Field(
        None,
        description="folder (path or URL such as s3://...) of the publications version-...; null: "
        "nothing is published",
    )
    every_steps: int | None = Field(
        None,
        ge=1,
        description="number of steps between publications; null: once per epoch, at its end",
    )
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between publications; null: by steps and epochs only"
    )
    max_chain: int = Field(
        24, ge=0, description="number of deltas after which a full one is published; 0: only full"
    )
    keep: int = Field(
        2, ge=1, description="number of newest full publications that are kept, with their deltas"
    )
    rows: RowType = Field(
        "fp32",
        description="data type of the rows in deltas; fp32: as in their table, exactly; fp16 and "
        "int8 (with a scale per row) are rounded, for serving",
    )
    optimizer_state: bool = Field(
        True, description="publish the optimizers' state too, so that training can continue from it"
    )

    @model_validator(mode="after")
    def _check_exact(self) -> "PublishConfig":
        if self.rows != "fp32" and self.optimizer_state:
            raise ValueError(
                f"rows {self.rows} are rounded, so training can't continue from them; set "
                "optimizer_state: false, or rows: fp32"
            )
        return self
