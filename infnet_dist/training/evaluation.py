"""Evaluation of a model on a split, during training or from a checkpoint."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.evaluation.metrics import MetricState
from infnet_dist.io.console import show_progress
from infnet_dist.io.filesystem import Folder
from infnet_dist.schema import Schema
from infnet_dist.training.setup import TrainingSetup, open_training_set, stream


def evaluate(
    setup: TrainingSetup,
    split: str,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, float]] | None:
    """Metrics of the model on a split (`model`) and of the true probabilities (`optimum`).

    Args:
        setup: the model and the data.
        split: the split.
        interrupted: called after each batch, by all ranks alike; True ends the evaluation.

    Returns:
        The metrics by name; None if it was interrupted.
    """
    model = setup.sharded.model
    tasks = setup.schema.tasks
    watch_time_s = {t.name: t.mean_ms / 1000 for t in tasks if t.kind == "watch_time"}
    state = MetricState([task.name for task in tasks], watch_time_s)
    model.eval()
    with torch.no_grad(), setup.sharded.serving_weights():
        reader = setup.reader(split, shuffle=False)
        num_steps = reader.num_steps()
        for step, (batch, _) in enumerate(stream(reader.batches(), setup.context.device), 1):
            _, output = model(batch)
            state.update(
                output.logits_BK,
                batch.labels_BK,
                truth_BK=batch.truth_BK,
                group_B=batch.group_B,
                weights_B=batch.weights_B,
            )
            if setup.context.is_first:
                show_progress(split, "batch", step, num_steps)
            if interrupted():
                model.train()
                return None
    model.train()
    return state.compute(setup.context, split)


def evaluate_checkpoint(
    context: WorkerContext, config: Config, *, path: str | Path | Folder, split: str
) -> dict[str, Any]:
    """Load a checkpoint, with any number of workers, and evaluate it on a split.

    The model's features, their order and their statistics are those of its training.

    Returns:
        split, rows, training_set (its content hash), checkpoint, step, metrics, optimum.
    """
    foreground = config.checkpoint.model_copy(update={"background": False})
    config = config.model_copy(update={"checkpoint": foreground})  # plans no memory for copies
    trained = context.on_first(lambda: _schema_of(Folder(path)))
    open_set = partial(open_training_set, trained=trained)
    setup = TrainingSetup.open(
        config, context, splits=[split], open_set=open_set, for_training=False
    )
    manifest = checkpoint.load(Folder(path), setup.sharded, context, with_optimizer=False)
    setup.begun_rates = manifest.unknown_id_rates
    setup.warn_of_unlearned_ids(split)
    result = evaluate(setup, split)
    assert result is not None
    return {
        "split": split,
        "rows": setup.manifest.split(split).rows,
        "training_set": setup.manifest.content_hash,
        "checkpoint": str(path),
        "step": manifest.progress.step,
        "metrics": result["model"],
        "optimum": result["optimum"],
    }


def _schema_of(folder: Folder) -> Schema | None:
    return checkpoint.read_schema(folder, checkpoint.read_manifest(folder))
