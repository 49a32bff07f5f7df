"""The `checkpoint.init_from` section: a new run starts from another run's checkpoint."""

from typing import Any

from pydantic import Field, model_validator

from infnet_dist.config.model import Section


class InitFromConfig(Section):
    """The checkpoint from which a new run starts, and what it takes; as text: the source alone."""

    source: str = Field(
        min_length=1,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]+$",
        description="a run (its name, or name/run-id, under run.folder), a path that begins with / "
        "or ./, or a URL; a run or a folder of checkpoints may be followed by @newest (the "
        "default), @best or @STEP",
    )
    optimizer_state: bool = Field(
        True, description="take the state of the optimizers too; false: it starts fresh"
    )
    progress: bool = Field(
        False,
        description="count steps from the checkpoint's on, so that warm-up isn't repeated; "
        "training.max_steps then includes the earlier steps",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="names or patterns of tables and of parameters, e.g. `user` or "
        "`model.dense.*`, that start fresh",
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
        if isinstance(value, dict) and isinstance(value.get("exclude"), list):
            return value | {"exclude": tuple(value["exclude"])}  # pydantic is strict after "before"
        return value
