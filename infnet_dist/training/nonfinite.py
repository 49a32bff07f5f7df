"""Diagnosis of a loss that isn't finite: the first input, embedding or logit that isn't."""

from collections.abc import Iterator

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.lookups import Lookups
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.model.train_model import TrainModel
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import StepResult


def diagnose_nonfinite(setup: TrainingSetup, result: StepResult) -> str:
    """Text that names the rank, the input and the rows that made the loss non-finite.

    Every rank calls it: the batch is looked up again, which is a collective.

    Args:
        setup: the model, and the names of features and tasks.
        result: of the step, whose loss isn't finite on one rank at least.
    """
    batch, loss, output = result.batch, result.loss, result.output
    module = setup.sharded.model.module
    assert isinstance(module, TrainModel)
    with torch.no_grad():
        embeddings = module.model.sparse(batch.sparse_features, batch.weighted_features)
    here = None
    if not loss.isfinite():
        faults = _faults(batch, setup.sharded.lookups, embeddings, output.logits_BK)
        here = loss.item(), next(faults, "no input, embedding or logit shows why"), batch.rows
    by_rank = setup.context.gather(here)
    rank, (value, fault, rows) = next((r, found) for r, found in enumerate(by_rank) if found)
    return (
        f"the loss is {value} on rank {rank}: {fault}; its rows are {list(rows.intervals)} of "
        f"epoch {rows.epoch}'s order"
    )


def _faults(
    batch: RankingBatch, lookups: Lookups, embeddings: SparseEmbeddings, logits_BK: torch.Tensor
) -> Iterator[str]:
    schema = lookups.schema
    for place, feature in enumerate(schema.standardised):
        yield from _first(batch.dense_BN[:, place], f"feature {feature.name!r} is")
    for place, task in enumerate(schema.tasks):
        known = batch.labels_BK[:, place].nan_to_num(posinf=torch.inf, neginf=-torch.inf)
        yield from _first(known, f"the label of task {task.name!r} is")
    dims = [vector.dim for vector in schema.vectors]
    for vector, vectors_BV in zip(schema.vectors, batch.vectors_BV.split(dims, 1), strict=True):
        given = vectors_BV.nan_to_num(posinf=torch.inf, neginf=-torch.inf)  # NaN: null
        yield from _first(given.sum(1), f"the vector {vector.name!r} sums to")
    for field, rows_BE in zip(lookups.fields, embeddings.fields, strict=True):
        yield from _first(rows_BE.sum(1), f"the embedding of {field.feature!r} sums to")
    for sequence, items_BLE in zip(schema.sequences, embeddings.sequences, strict=True):
        yield from _first(items_BLE.sum((1, 2)), f"the history {sequence.name!r} sums to")
    for place, task in enumerate(schema.tasks):
        yield from _first(
            logits_BK[:, place], f"all inputs are finite, but the logit of task {task.name!r} is"
        )


def _first(values_B: torch.Tensor, what: str) -> Iterator[str]:
    bad = (~values_B.isfinite()).nonzero()
    if len(bad):
        row = int(bad[0])
        yield f"{what} {values_B[row].item()} in row {row} of the batch"
