"""Evaluation of a model on a split, during training or from a checkpoint."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infnet_dist import checkpoint
from infnet_dist.checkpoint import CheckpointManifest
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.schema_changes import grown_tables
from infnet_dist.data.unknown_ids import OutOfVocabulary
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.evaluation.metrics import MetricState
from infnet_dist.io.console import show_progress
from infnet_dist.io.filesystem import Folder
from infnet_dist.schema import Schema
from infnet_dist.training.setup import TrainingSetup, open_training_set, stream

log = logging.getLogger("infnet_dist")


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
        The metrics by name, and the shares of ids that the model doesn't know by key
        (`out_of_vocabulary`, of a model whose training set has gained ids since); None if it was
        interrupted.
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
    shares = _shares_out_of_vocabulary(setup.context, reader.out_of_vocabulary)
    return {**state.compute(setup.context, split), "out_of_vocabulary": shares}


def _shares_out_of_vocabulary(context: WorkerContext, found: OutOfVocabulary) -> dict[str, float]:
    """By key, the share of ids of all ranks that the model doesn't know."""
    replaced, total = Counter[str](), Counter[str]()
    for here, of_all in context.gather((found.replaced, found.total)):
        replaced, total = replaced + here, total + of_all
    return {key: replaced[key] / count for key, count in total.items()}


def evaluate_checkpoint(
    context: WorkerContext, config: Config, *, path: str | Path | Folder, split: str
) -> dict[str, Any]:
    """Load a checkpoint, with any number of workers, and evaluate it on a split.

    The model's features, their order and their statistics are those of its training.

    Returns:
        split, rows, training_set (its content hash), checkpoint, step, metrics, optimum,
        out_of_vocabulary.

    Raises:
        CheckpointError: its model can't read the training set, or it is damaged; on all ranks.
    """
    foreground = config.checkpoint.model_copy(update={"background": False})
    config = config.model_copy(update={"checkpoint": foreground})  # plans no memory for copies
    trained = context.on_first(lambda: _readable_schema(Folder(path), config))
    open_set = partial(open_training_set, trained=trained)
    setup = TrainingSetup.open(
        config, context, splits=[split], open_set=open_set, for_training=False
    )
    manifest = checkpoint.load(Folder(path), setup.sharded, context, with_optimizer=False)
    setup.begun_rates = manifest.unknown_id_rates
    setup.warn_of_unlearned_ids(split)
    result = evaluate(setup, split)
    assert result is not None
    for key, share in result["out_of_vocabulary"].items() if context.is_first else ():
        if share:
            log.warning(
                "%.2f %% of the ids of %r in %s aren't in the model's vocabulary, which the "
                "training set has extended since: they are looked up as unknown (0)",
                *(100 * share, key, split),
            )
    return {
        "split": split,
        "rows": setup.manifest.split(split).rows,
        "training_set": setup.manifest.content_hash,
        "checkpoint": str(path),
        "step": manifest.progress.step,
        "metrics": result["model"],
        "optimum": result["optimum"],
        "out_of_vocabulary": result["out_of_vocabulary"],
    }


def _readable_schema(folder: Folder, config: Config) -> Schema | None:
    """The schema of a checkpoint's model, which can read the training set."""
    saved = checkpoint.read_manifest(folder)
    trained = checkpoint.read_schema(folder, saved)
    check_readable_set(folder, config, saved, trained, read_manifest(config.data.path))
    return trained


def check_readable_set(
    folder: Folder,
    config: Config,
    saved: CheckpointManifest,
    trained: Schema | None,
    manifest: Manifest,
) -> None:
    """Check that a checkpoint's model can read a training set.

    Its vocabularies may have gained ids by later logs: the model doesn't know them.

    Args:
        folder: the checkpoint.
        config: the run.
        saved: manifest of the checkpoint.
        trained: schema of its model; None in old checkpoints.
        manifest: of the training set.

    Raises:
        CheckpointError: names the features, tables and tasks that are missing or differ.
    """
    here, grown = manifest.schema_, frozenset[str]()
    if trained is None:
        here = here.select(config.data.features, config.data.tasks)
    else:
        grown = grown_tables(trained, saved.order.content_hash, manifest)
    checkpoint.check_readable(folder, saved, trained, here, config.data.path, grown)
