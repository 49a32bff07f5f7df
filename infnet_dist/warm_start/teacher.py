"""A teacher: an older model whose scores of a run's batches are soft labels, beside the labels.

It is sharded over the same workers under a plan of its own, for the memory that the run's tables
leave, and has neither optimizers nor gradients. Checkpoints don't contain it.

Letters: B rows, K tasks.
"""

from dataclasses import replace

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint.loading import load
from infnet_dist.config.run import CheckpointConfig, Config, TrainingConfig
from infnet_dist.config.teacher import TeacherConfig
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.schema_changes import grown_tables, missing_inputs, summary_of
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, PlanError
from infnet_dist.io.filesystem import Folder
from infnet_dist.model.train_model import TrainModel
from infnet_dist.schema import Schema
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.warm_start.start import Origin, check_ids, read_origin
from infnet_dist.warm_start.teacher_inputs import TeacherInputs

KEY = "training.teacher"


class Teacher:
    """Gives batches the scores of a model.

    Args:
        model: the sharded model.
        here: schema of the run whose batches they are.
        options: in which steps it is asked.
        device: of the batches.
    """

    def __init__(
        self, model: ShardedModel, here: Schema, options: TeacherConfig, device: torch.device
    ) -> None:
        module = model.model.module
        assert isinstance(module, TrainModel)
        trained = model.lookups.schema
        self._model: torch.nn.Module | None = module.model.eval()
        self._inputs = TeacherInputs(trained, here, device)
        self._options = options
        own, tasks = ([task.name for task in schema.tasks] for schema in (trained, here))
        common = common_tasks(trained, here)
        self._own = torch.tensor([own.index(name) for name in common], device=device)
        self._places = torch.tensor([tasks.index(name) for name in common], device=device)

    @torch.no_grad()
    def __call__(self, batch: RankingBatch, step: int) -> RankingBatch:
        """The batch with `teacher_BK`, or as it is in a step without the teacher.

        Every rank calls it; its memory is freed after its last step.
        """
        if self._model is None or not self._options.is_asked(step):
            self._model = None
            return batch
        scores_BK = self._model(*self._inputs(batch)).index_select(1, self._own).sigmoid()
        # NaN means that there is no score: a score that isn't finite makes the loss infinite.
        scores_BK = scores_BK.nan_to_num(nan=torch.inf)
        teacher_BK = torch.full_like(batch.labels_BK, torch.nan)
        return replace(batch, teacher_BK=teacher_BK.index_copy(1, self._places, scores_BK))


def common_tasks(trained: Schema, here: Schema) -> list[str]:
    """Names of the binary tasks that a teacher and a run have; watch times have no soft labels."""
    known = {task.name for task in trained.tasks if task.kind == "binary"}
    return [task.name for task in here.tasks if task.kind == "binary" and task.name in known]


def load_teacher(
    folder: Folder, sharded: ShardedModel, data: Manifest, context: WorkerContext
) -> Teacher:
    """Build the model of a checkpoint beside a run's model; every rank calls it.

    Args:
        folder: the checkpoint.
        sharded: the run's model; its config has the teacher's options.
        data: manifest of the run's training set.
        context: this worker.

    Raises:
        CheckpointError: it is damaged, of another training set, or has a feature that the run
            lacks, or no binary task in common with it; on all ranks.
        PlanError: it doesn't fit into the memory that the run's tables leave; on all ranks.
    """
    config, here = sharded.lookups.config, sharded.lookups.schema
    options = config.training.teacher
    assert options is not None
    origin = context.on_first(lambda: _read(folder, here, data, options))
    trained = origin.lookups.schema
    try:
        teacher = build_sharded_model(
            _config_beside(origin.lookups.config, config),
            trained,
            context,
            for_training=False,
            beside=sharded.plan,
        )
    except PlanError as error:
        raise PlanError(
            f"{KEY}: the teacher doesn't fit beside the run's tables: {error}"
        ) from None
    try:
        load(folder, teacher, context, with_optimizer=False)
    except CheckpointError as error:
        raise CheckpointError(f"{KEY}: {error}") from None
    return Teacher(teacher, here, options, context.device)


def _read(folder: Folder, here: Schema, data: Manifest, options: TeacherConfig) -> Origin:
    """Read what describes the checkpoint, and check that it can score the run's batches."""
    origin = read_origin(folder, KEY)
    if not options.allow_other_data:
        check_ids(folder, origin.manifest, data, KEY)
    trained = origin.lookups.schema
    grown = grown_tables(trained, origin.manifest.order.content_hash, data)
    if lines := missing_inputs(trained, here, grown):
        raise CheckpointError(
            f"{KEY}: {folder} can't score this run's batches: {summary_of(lines)}; add what is "
            "missing to the run (data.features, data.crosses), or name another teacher"
        )
    if not common_tasks(trained, here):
        own, tasks = (
            ", ".join(f"{task.name} ({task.kind})" for task in schema.tasks)
            for schema in (trained, here)
        )
        raise CheckpointError(
            f"{KEY}: {folder} has no binary task of this run: its tasks are {own}, the run's "
            f"{tasks}; name another teacher"
        )
    return origin


def _config_beside(teacher: Config, run: Config) -> Config:
    """The model and the tables of the teacher; batches, workers and precision of the run."""
    own = {"model", "tables", "sparse_optimizer", "dense_optimizer"}
    return run.model_copy(
        update={
            **{section: getattr(teacher, section) for section in own},
            "training": TrainingConfig(precision=run.training.precision),
            "checkpoint": CheckpointConfig(background=False),
            "sharding": run.sharding.model_copy(update={"plan": "auto"}),
        }
    )
