"""Optimizers of the tables, fused in their backward, and the learning rates of all optimizers.

A table has its own optimizer, learning rate, eps and weight decay (`TableSettings`). TorchRec puts
tables of a collection with equal options into one kernel, with one learning rate.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType as OptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import (
    LAMB,
    SGD,
    Adagrad,
    Adam,
    PartialRowWiseAdam,
    RowWiseAdagrad,
)
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from infnet_dist.config.optimizers import ScheduleConfig
from infnet_dist.config.run import Config
from infnet_dist.config.tables import GPU_OPTIMIZERS, SparseOptimizerName
from infnet_dist.errors import ConfigError
from infnet_dist.lookups import Lookups, TableLookups, table_of
from infnet_dist.planning.plan import Plan
from infnet_dist.sharding import data_parallel

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "sgd": SGD,
    "adam": Adam,
    "partial_rowwise_adam": PartialRowWiseAdam,
    "lamb": LAMB,
}
_ROW_WISE = ("rowwise_adagrad", "partial_rowwise_adam")  # one second moment per row
_COUNTING = (OptimType.ADAM, OptimType.PARTIAL_ROWWISE_ADAM, OptimType.LAMB)


def optimizer_of(table: TableLookups) -> SparseOptimizerName:
    """The optimizer of a table; SGD, whose learning rate is then 0, if it isn't trained."""
    return table.settings.optimizer if table.settings.trainable else "sgd"


def optimizer_options(table: TableLookups) -> dict[str, Any]:
    """The learning rate and other options of a table's optimizer, as its kernel takes them.

    A kernel with one second moment per row averages the squared gradients over its own width, with
    the zeros of columns that only the kernel needs. A learning rate and eps that are smaller by the
    same factor as the root of that mean make the update that of the table's width.
    """
    settings, name = table.settings, optimizer_of(table)
    if not settings.trainable:
        return {"lr": 0.0}
    scale = 1.0
    if name in _ROW_WISE:
        scale = math.sqrt(settings.embedding_dim / table.kernel_width)
    options: dict[str, Any] = {"lr": settings.learning_rate * settings.lr_factor * scale}
    if name != "sgd":
        options["eps"] = settings.eps * scale
    if settings.weight_decay and name == "rowwise_adagrad":
        options |= {
            "weight_decay": settings.weight_decay,
            "weight_decay_mode": WeightDecayMode.L2,
        }
    elif settings.weight_decay and name in GPU_OPTIMIZERS:
        options["weight_decay"] = settings.weight_decay / scale  # is multiplied by the rate
    return options


def ignores_zero_gradients(table: TableLookups) -> bool:
    """Whether a table's optimizer changes no row whose gradient is 0."""
    settings, name = table.settings, optimizer_of(table)
    if settings.is_frozen:
        return True
    if name in GPU_OPTIMIZERS:
        return False  # their momentum still moves rows
    return name == "sgd" or (settings.eps > 0 and not settings.weight_decay)


def apply_sparse_optimizers(sparse: nn.Module, lookups: Lookups) -> None:
    """Attach its optimizer to every table; called before sharding."""
    tables = {table.name: table for table in lookups.tables}
    for parameter_name, parameter in sparse.named_parameters():
        if (name := table_of(parameter_name)) is None:
            continue
        table = tables[name]
        # TorchRec changes the options that it is given: each table needs its own.
        options = optimizer_options(table)
        apply_optimizer_in_backward(_CLASSES[optimizer_of(table)], [parameter], options)


def make_sparse_optimizer(model: DistributedModelParallel, lookups: Lookups) -> CombinedOptimizer:
    """The optimizers of all tables as one; called after sharding.

    The fused ones update rows in the backward pass, those of data-parallel tables in `step`.
    """
    tables = {table.name: table for table in lookups.tables}
    fused = model.fused_optimizer
    names = {id(parameter): name for name, parameter in fused.params.items()}
    for group in fused.param_groups:
        table = tables[table_of(names[id(group["params"][0])]) or ""]
        group["initial_lr"] = optimizer_options(table)["lr"]  # the group's is rounded to float32
    parameters = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if table_of(name)
    }
    if not parameters:
        return CombinedOptimizer([fused])
    groups = [_data_parallel_group(tables[table_of(name) or ""]) for name in parameters]
    return CombinedOptimizer([fused, data_parallel.table_optimizer(parameters, groups)])


def _data_parallel_group(table: TableLookups) -> dict[str, Any]:
    options = optimizer_options(table)
    return {
        "table": table.name,
        "kind": optimizer_of(table),
        "is_frozen": table.settings.is_frozen,
        "lr": options["lr"],
        "initial_lr": options["lr"],
        "eps": options.get("eps", 0.0),
        "weight_decay": options.get("weight_decay", 0.0),
    }


def check_plan_optimizers(plan: Plan, lookups: Lookups) -> None:
    """Check that the tables' optimizers can train them under their sharding types.

    Raises:
        ConfigError: names table, optimizer and sharding type.
    """
    for table in lookups.tables:
        entry, optimizer = plan.tables[table.name], optimizer_of(table)
        if entry.sharding_type == "data_parallel" and optimizer not in data_parallel.KINDS:
            raise ConfigError(
                f"table {table.name!r}: {optimizer} can't train a data_parallel table, expected "
                f"one of: {', '.join(data_parallel.KINDS)}; or set another sharding type in "
                f"tables.overrides.{table.name}.sharding_types"
            )
        width, padded = table.settings.embedding_dim, table.kernel_width
        if entry.columns < padded and width < padded and optimizer in _ROW_WISE:
            raise ConfigError(
                f"table {table.name!r}: {optimizer} can't train rows of {width} floats under "
                f"{entry.sharding_type}, which cuts them; set embedding_dim {padded}, another "
                "optimizer, or another sharding type"
            )


class LearningRateFactors(NamedTuple):
    """Factors on the learning rates of a step, by part of the model."""

    sparse: float = 1.0
    dense: float = 1.0


def learning_rate_factors(config: Config, step: int, total_steps: int) -> LearningRateFactors:
    """The factors of step `step` (the first is 0) out of `total_steps`."""

    def factor(part: Literal["sparse", "dense"]) -> float:
        return learning_rate_factor(config.schedule.of(part), step, total_steps)

    return LearningRateFactors(sparse=factor("sparse"), dense=factor("dense"))


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor of a schedule at step `step` (the first is 0) out of `total_steps`."""
    warmup = (step + 1) / (schedule.warmup_steps + 1)
    decay_steps = schedule.decay_share * total_steps
    decay = (total_steps - step) / decay_steps if decay_steps else 1.0
    return min(warmup, 1.0, max(decay, 0.0))


def set_learning_rates(optimizer: KeyedOptimizer, factor: float) -> None:
    """Set the learning rate of each group to its initial one times `factor`.

    A fused optimizer applies it in its next `zero_grad` or `step`. Groups without a learning rate,
    those of FTRL-proximal, are left unchanged.
    """
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            group["lr"] = factor * group["initial_lr"]


def set_step(optimizer: KeyedOptimizer, step: int) -> None:
    """Set the number of steps that the tables' optimizers have made, if they count them.

    Adam and its kin do, for their bias correction; but every forward pass counts, those of
    evaluations too, and the count isn't part of their state. Set in each step, it makes a resumed
    run equal to an undisturbed one.
    """
    for kernel in kernels_of(optimizer):
        if kernel.optimizer in _COUNTING:
            kernel.iter.fill_(step)  # is copied to iter_cpu where that is 0
            kernel.iter_cpu.fill_(step)


def kernels_of(optimizer: KeyedOptimizer) -> Iterator[Any]:
    """The fbgemm kernels of fused optimizers: each holds the rows and states of some tables."""
    for kernel, _ in kernels_with_tables(optimizer):
        yield kernel


def kernels_with_tables(optimizer: KeyedOptimizer) -> Iterator[tuple[Any, set[str]]]:
    """The fbgemm kernels of fused optimizers, and the names of their tables."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from kernels_with_tables(part)
    elif (kernel := getattr(optimizer, "_emb_module", None)) is not None:
        yield kernel, {table for name in optimizer.params if (table := table_of(name))}
