"""Scores the rows of an input on all ranks; each publishes its own parts.

Nothing is gathered: a rank holds the predictions of one part at a time.
"""

import time
from functools import partial

import torch

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import MANIFEST, read_manifest
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.prefetch import prefetch
from infnet_dist.data.statistics import TableUsage, sample_usage
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.progress import ProgressLines
from infnet_dist.model.train_model import TrainModel
from infnet_dist.prediction.batches import PartReader, PredictionBatch
from infnet_dist.prediction.job import PredictionJob
from infnet_dist.prediction.layout import num_steps, shares
from infnet_dist.prediction.part_writer import PartWriter
from infnet_dist.prediction.scores import Scores
from infnet_dist.prediction.sources.prepared import without_labels
from infnet_dist.schema import Schema
from infnet_dist.sharding.build import ShardedModel, build_sharded_model


def predict(
    context: WorkerContext, *, config: Config, path: Folder, job: PredictionJob
) -> dict[str, float]:
    """Load a checkpoint, with any number of workers, and write the parts that are left.

    Args:
        context: this worker.
        config: the run, with the settings of the checkpoint's model.
        path: the checkpoint.
        job: what is predicted.

    Returns:
        The rows that were predicted now, and the seconds from the first batch to the last part.

    Raises:
        DataError: the input can't be read, or has a value that the model doesn't allow.
        CheckpointError: the checkpoint is damaged, or a score isn't finite.
    """
    foreground = config.checkpoint.model_copy(update={"background": False})
    config = config.model_copy(update={"checkpoint": foreground})  # plans no memory for copies
    usage = partial(_usage, config, job.schema)
    has_set = context.on_first((config.data.path / MANIFEST).is_file)
    sharded = build_sharded_model(
        config, job.schema, context, usage if has_set else None, for_training=False
    )
    checkpoint.load(path, sharded, context, with_optimizer=False)
    start = time.monotonic()
    rows = _predict_parts(context, config, job, sharded)
    context.barrier()
    return {"rows": rows, "seconds": time.monotonic() - start}


def _usage(config: Config, schema: Schema) -> TableUsage:
    """Use of the tables in the training set, for the plan; as in an evaluation."""
    folder = config.data.path
    open_part = part_opener(config.data.reader, schema)
    return sample_usage(folder, read_manifest(folder), schema, open_part)


@torch.no_grad()
def _predict_parts(
    context: WorkerContext, config: Config, job: PredictionJob, sharded: ShardedModel
) -> int:
    """Predict this rank's share of the parts; the number of rows of all ranks."""
    module = sharded.model.module
    assert isinstance(module, TrainModel)
    model = module.model.eval()
    scores = Scores(job.schema.tasks, job.identity.tasks)
    batch_size = config.data.batch_size
    shared = shares(job.left, context.world_size, batch_size)
    steps, rows = num_steps(shared, batch_size), sum(part.rows for part in job.left)
    progress, finished = ProgressLines(""), job.rows - rows
    reader = PartReader(job.source, without_labels(job.schema), batch_size)
    writer: PartWriter | None = None
    read = prefetch(reader.batches(shared[context.rank], steps), config.data.prefetch_batches)
    for step, found in enumerate(read, 1):
        scores_B2k = _forward(model, scores, found, context.device)
        if found.part is not None and found.rows is not None:
            writer = writer or _writer(job, found)
            writer.add(found.rows, scores_B2k[: len(found.rows)].cpu().numpy(), found.counts)
            if found.is_last:
                writer.publish(job.output)
                writer = None
        if context.is_first:
            progress("predict", "rows", finished + rows * step // steps, job.rows)
    return rows


def _forward(
    model: torch.nn.Module, scores: Scores, found: PredictionBatch, device: torch.device
) -> torch.Tensor:
    """Scores and logits of a batch; a collective."""
    batch = found.batch
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    logits_BK = model(
        batch.sparse_features,
        batch.weighted_features,
        batch.vectors_BV,
        batch.dense_BN,
        batch.time_gap_BL,
    )
    scores_B2k: torch.Tensor = scores(logits_BK)
    return scores_B2k


def _writer(job: PredictionJob, found: PredictionBatch) -> PartWriter:
    assert found.part is not None
    return PartWriter(
        found.part,
        job.identity.digest,
        job.columns,
        keys=job.identity.keys,
        tasks=job.identity.tasks,
        id_keys=[feature.key for feature in job.schema.table_features],
    )
