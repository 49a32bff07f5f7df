"""A checkpoint that a run file names; the base of the sections that read one."""

from typing import Any

from pydantic import Field, model_validator

from infnet_dist.config.model import Section


class CheckpointSource(Section):
    """A checkpoint of this or of another training set; as text: the source alone."""

    source: str = Field(
        min_length=1,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]+$",
        description="a run (its name, or name/run-id, under run.folder), a path that begins with / "
        "or ./, or a URL; a run or a folder of checkpoints may be followed by @newest (the "
        "default), @best or @STEP",
    )
    allow_other_data: bool = Field(
        False,
        description="accept a checkpoint of another training set, where an id may mean something "
        "else",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"source": value}
        if not isinstance(value, dict):
            return value
        # After a "before" validator pydantic no longer knows that lists come from JSON.
        return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
