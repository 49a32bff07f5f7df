"""The `checkpoint.init_from` section: a new run starts from another run's checkpoint."""

from pydantic import Field

from infnet_dist.config.checkpoint_source import CheckpointSource


class InitFromConfig(CheckpointSource):
    """The checkpoint from which a new run starts, and what it takes; as text: the source alone."""

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
