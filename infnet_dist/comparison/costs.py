"""Costs of a model without its tables: parameters, operations, time of a forward pass."""

import statistics
import time
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infnet_dist.config.run import Config
from infnet_dist.lookups import Lookups
from infnet_dist.model.build import build_train_model
from infnet_dist.model.dense import DenseArch
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import Schema, sequence_keys

BATCH_SIZE = 512
_REPEATS = 20


class ModelCosts(NamedTuple):
    """Costs of everything but the tables and their lookups.

    Attributes:
        parameters: number of dense parameters.
        flops: floating-point operations of a forward pass per sample, as torch counts them: those
        of
            matrix products, two per multiply-add.
        forward_ms: median time of a forward pass of 512 rows on this machine's CPU, ms.
    """

    parameters: int
    flops: float
    forward_ms: float


def measure_costs(config: Config, schema: Schema) -> ModelCosts:
    """Build the model without tables and measure it on full histories."""
    dense = _dense(config, schema)
    inputs = _inputs(config, schema, BATCH_SIZE)
    times = []
    with torch.no_grad():
        for _ in range(_REPEATS):
            start = time.perf_counter()
            dense(*inputs)
            times.append(1e3 * (time.perf_counter() - start))
    return ModelCosts(
        parameters=sum(parameter.numel() for parameter in dense.parameters()),
        flops=count_flops(config, schema),
        forward_ms=statistics.median(times),
    )


def count_flops(config: Config, schema: Schema) -> float:
    """Floating-point operations of a forward pass per sample, on full histories."""
    dense = _dense(config, schema)
    # With the math kernel: torch doesn't count the operations of the fused one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        dense(*_inputs(config, schema, 1))
    return float(counter.get_total_flops())


def _dense(config: Config, schema: Schema) -> DenseArch:
    meta = torch.device("meta")
    return build_train_model(config, schema, table_device=meta).model.dense.eval()


def _inputs(
    config: Config, schema: Schema, batch_size: int
) -> tuple[SparseEmbeddings, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random inputs of the right shapes; histories are full."""
    lookups = Lookups(schema, config)
    widths = {lookup.feature: lookup.width for lookup in lookups}
    lengths = [sequence.max_length for sequence in schema.sequences]
    items = [sum(widths[key] for key in sequence_keys(s)) for s in schema.sequences]
    embeddings = SparseEmbeddings(
        fields=[torch.randn(batch_size, field.width) for field in lookups.fields],
        sequences=[
            torch.randn(batch_size, length, width)
            for length, width in zip(lengths, items, strict=True)
        ],
        masks=[torch.ones(batch_size, length, dtype=torch.bool) for length in lengths],
    )
    vectors_BV = torch.randn(batch_size, sum(vector.dim for vector in schema.vectors))
    dense_BN = torch.randn(batch_size, len(schema.standardised))
    time_gap_BL = torch.zeros(batch_size, sum(lengths), dtype=torch.int64)
    return embeddings, vectors_BV, dense_BN, time_gap_BL
