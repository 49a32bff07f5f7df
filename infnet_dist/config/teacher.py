"""The `training.teacher` section: an older model whose scores are soft labels (distillation)."""

from pydantic import Field, NonNegativeFloat

from infnet_dist.config.checkpoint_source import CheckpointSource


class TeacherConfig(CheckpointSource):
    """The teacher's checkpoint and how much its scores count; as text: the source alone."""

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

    def is_asked(self, step: int) -> bool:
        """Whether the teacher is asked in this step, from 0."""
        return self.weight > 0 and (self.steps is None or step < self.steps)
