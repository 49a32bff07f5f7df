"""The `training.teacher` section: an older model whose scores are soft labels (distillation)."""

from typing import Any

from pydantic import Field, NonNegativeFloat, model_validator

from infnet_dist.config.model import Section


class TeacherConfig(Section):
    """The teacher's checkpoint and how much its scores count; as text: the source alone."""

    source: str = Field(
        min_length=1,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]+$",
        description="the teacher's checkpoint, named as in `checkpoint.init_from.source`",
    )
    weight: NonNegativeFloat = Field(
        1.0,
        description="weight of the loss against the teacher's scores, beside that against labels; "
        "0: no teacher is loaded",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="the teacher is asked in steps below this number, counted as in "
        "training.max_steps; null: in all",
    )
    allow_other_data: bool = Field(
        False,
        description="accept a checkpoint of another training set, where an id may mean something "
        "else",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    def is_asked(self, step: int) -> bool:
        """Whether the teacher is asked in this step, from 0."""
        return self.weight > 0 and (self.steps is None or step < self.steps)
