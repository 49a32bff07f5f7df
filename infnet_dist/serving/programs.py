"""The dense part of a checkpoint as programs of torch.export, in the form that scores requests.

Letters: N candidates, E_m width of field m, V floats of all vectors, L history items.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim

from infnet_dist.checkpoint.loading import fill_alone
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.errors import CheckpointError
from infnet_dist.lookups import Lookups
from infnet_dist.model.build import build_dense, sequences_read
from infnet_dist.model.dense import DenseArch
from infnet_dist.model.request import CandidateArch, UserArch
from infnet_dist.serving.manifest import CANDIDATES, USER

_PREFIX = "model.model.dense."  # `TrainModel.model.dense` in a checkpoint


def load_dense(reader: TensorReader, manifest: CheckpointManifest, lookups: Lookups) -> DenseArch:
    """The dense part with the checkpoint's weights (their average, if it has one), to evaluate.

    Raises:
        CheckpointError: the checkpoint is damaged or lacks a tensor.
    """
    with torch.random.fork_rng(devices=[]):
        dense = build_dense(lookups.config, lookups)
    state = dense.state_dict()
    for name, tensor in state.items():
        saved = manifest.tensors.get(_PREFIX + name)
        if saved is None or saved.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"the checkpoint doesn't fit its config: {_PREFIX + name} is "
                f"{'missing' if saved is None else list(saved.shape)}, expected "
                f"{list(tensor.shape)}; export with the version that trained it"
            )
    shards = [
        LocalShard(_PREFIX + name, tuple(t.shape), (0,) * t.ndim, t.detach(), replicated=True)
        for name, t in state.items()
    ]
    fill_alone(reader, shards)
    return dense.eval()


def write_programs(folder: Path, dense: DenseArch, lookups: Lookups) -> None:
    """Write candidates.pt2, for any number of candidates, and user.pt2 if there is a history."""
    user: list[torch.Tensor] = []
    with torch.no_grad(), _without_fast_path():
        if sequences_read(lookups.config.model, lookups.schema):
            module, inputs = UserArch(dense).eval(), _history(lookups)
            torch.export.save(torch.export.export(module, inputs), folder / USER)
            user = module(*inputs)
        count, schema = 7, lookups.schema
        fields = [torch.zeros(count, field.width) for field in lookups.fields]
        vectors_NV = torch.zeros(count, sum(vector.dim for vector in schema.vectors))
        dense_NN = torch.zeros(count, len(schema.standardised))
        any_number = {0: Dim("candidates", min=1)}
        program = torch.export.export(
            CandidateArch(dense).eval(),
            (user, fields, vectors_NV, dense_NN),
            dynamic_shapes=([{}] * len(user), [any_number] * len(fields), any_number, any_number),
        )
        torch.export.save(program, folder / CANDIDATES)


def _history(
    lookups: Lookups,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]:
    """An example of `UserArch`'s arguments."""
    sequences = sequences_read(lookups.config.model, lookups.schema)
    widths = [
        sum(lookups.config.table(attribute.table).embedding_dim for attribute in one.attributes)
        for one in sequences
    ]
    items = [
        torch.zeros(1, one.max_length, width) for one, width in zip(sequences, widths, strict=True)
    ]
    masks = [torch.ones(1, one.max_length, dtype=torch.bool) for one in sequences]
    gaps_1L = None
    if any(one.time_gap_column for one in sequences):
        gaps_1L = torch.zeros(1, sum(one.max_length for one in sequences), dtype=torch.uint8)
    return items, masks, gaps_1L


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """nn.TransformerEncoder's fused kernels have no export."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
