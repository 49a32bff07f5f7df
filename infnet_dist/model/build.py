"""Builds the model of a run from its config and schema.

The modules themselves take plain arguments: only this file knows both configs and modules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from infnet_dist.config.model import (
    HstuConfig,
    InfnetPaperConfig,
    ModelConfig,
    ModelSection,
    Section,
    StackConfig,
)
from infnet_dist.config.run import Config
from infnet_dist.errors import ConfigError, unknown_name
from infnet_dist.features.numbers import NUM_TIME_GAP_BUCKETS
from infnet_dist.lookups import Lookups
from infnet_dist.model.dense import DenseArch, FirstOrder, Vectors
from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.model.ranking import RankingModel
from infnet_dist.model.settings_check import task_weights
from infnet_dist.model.sparse import SparseArch
from infnet_dist.model.tokens import TokenArch
from infnet_dist.model.towers.esmm import EntireSpace
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.model.towers.infnet_paper import INFNetPaper
from infnet_dist.model.towers.onetrans import OneTrans
from infnet_dist.model.towers.stack import HEADS, INTERACTIONS, SEQUENCES, Stack
from infnet_dist.model.towers.transformer import Transformer
from infnet_dist.model.train_model import TrainModel
from infnet_dist.schema import Schema, SequenceFeature

TASK_AWARE = ("infnet", "infnet_paper", "transformer")  # towers that read task tokens
TOWERS: dict[str, type[nn.Module]] = {
    "infnet": INFNet,
    "infnet_paper": INFNetPaper,
    "onetrans": OneTrans,
    "transformer": Transformer,
}


def build_train_model(
    config: Config, schema: Schema, *, table_device: torch.device | None = None
) -> TrainModel:
    """The unsharded model; everything but the tables is on the CPU and seeded by `run.seed`.

    Args:
        config: the run.
        schema: the selected features and tasks.
        table_device: "meta" where the tables will be sharded; None: the CPU.

    Raises:
        ConfigError: the number of heads doesn't divide the token width, all task weights are 0, or
            model.conditional_on is wrong.
    """
    lookups = Lookups(schema, config)
    sparse = SparseArch(lookups, device=table_device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        dense = build_dense(config, lookups)
    watch_time = [task.kind == "watch_time" for task in schema.tasks]
    teacher = config.training.teacher
    loss = MultiTaskLoss(
        task_weights(config, schema), watch_time, teacher_weight=teacher.weight if teacher else 0.0
    )
    return TrainModel(RankingModel(sparse, dense), loss)


def dense_shapes(config: Config, schema: Schema) -> dict[str, tuple[int, ...]]:
    """Shapes of the dense part's tensors, by name in a `TrainModel`."""
    with torch.random.fork_rng(devices=[]):  # on the CPU: buffers can't be made on "meta"
        dense = build_dense(config, Lookups(schema, config))
    return {f"model.dense.{name}": tuple(t.shape) for name, t in dense.state_dict().items()}


def build_dense(config: Config, lookups: Lookups) -> DenseArch:
    """Tokens, tower and heads; random draws are made in this order."""
    options, schema = config.model, lookups.schema
    num_tasks = len(schema.tasks)
    vector_dims = [vector.dim for vector in schema.vectors]
    field_widths = [field.width for field in lookups.fields] + vector_dims
    sequences = sequences_read(options, schema)
    tokens = _build_tokens(config, lookups, field_widths, sequences)
    tower = build_tower(
        options,
        num_fields=tokens.num_fields,
        sequence_lengths=[sequence.max_length for sequence in sequences],
        num_tasks=num_tasks,
    )
    first_order = None
    if options.first_order:
        first_order = FirstOrder(sum(field_widths) + len(schema.standardised), num_tasks)
    return DenseArch(
        tokens,
        tower,
        vectors=Vectors(vector_dims) if vector_dims else None,
        first_order=first_order,
        entire_space=_entire_space(options.conditional_on, schema),
        bf16=config.training.precision == "bf16",
    )


def sequences_read(options: ModelConfig, schema: Schema) -> Sequence[SequenceFeature]:
    """The behaviours that the model reads: all, or none."""
    ignores_history = isinstance(options, StackConfig) and options.sequence.name == "none"
    return () if ignores_history else schema.sequences


def _build_tokens(
    config: Config,
    lookups: Lookups,
    field_widths: Sequence[int],
    sequences: Sequence[SequenceFeature],
) -> TokenArch:
    options, schema = config.model, lookups.schema
    return TokenArch(
        field_widths=field_widths,
        sequence_lengths=[sequence.max_length for sequence in sequences],
        item_widths=[
            [config.table(attribute.table).embedding_dim for attribute in sequence.attributes]
            for sequence in sequences
        ],
        target_fields=[schema.target_fields(sequence) for sequence in sequences],
        num_dense=len(schema.standardised),
        num_tasks=len(schema.tasks) if options.name in TASK_AWARE else 0,
        token_dim=options.token_dim,
        num_time_gap_buckets=NUM_TIME_GAP_BUCKETS,
        positions=not isinstance(options, InfnetPaperConfig),
        dropout=options.dropout,
    )


def _entire_space(parents: Mapping[str, str], schema: Schema) -> EntireSpace | None:
    """The chains of tasks in `model.conditional_on`, checked; None if it is empty."""
    kinds = {task.name: task.kind for task in schema.tasks}
    for name in (name for pair in parents.items() for name in pair):
        if name not in kinds:
            raise ConfigError(f"model.conditional_on: {unknown_name('task', name, kinds)}")
        if kinds[name] != "binary":
            raise ConfigError(
                f"model.conditional_on: {name!r} is a {kinds[name]} task; name binary tasks only"
            )
    if not parents:
        return None
    names = list(kinds)
    try:
        return EntireSpace([names.index(parents[n]) if n in parents else None for n in names])
    except ValueError:
        pairs = ", ".join(f"{child}: {parent}" for child, parent in parents.items())
        raise ConfigError(
            f"model.conditional_on has a cycle: {pairs}; take one of them out"
        ) from None


def build_tower(
    options: ModelConfig, *, num_fields: int, sequence_lengths: Sequence[int], num_tasks: int
) -> nn.Module:
    """The tower of a `model` section: Tokens -> logits [B, K].

    Raises:
        ConfigError: sizes that don't divide one another; names the key.
    """
    if isinstance(options, StackConfig):
        return _build_stack(options, num_fields, sequence_lengths, num_tasks)
    if (num_heads := getattr(options, "num_heads", None)) is not None:
        _check_heads("model", num_heads, options.token_dim)
    return TOWERS[options.name](
        num_fields=num_fields,
        sequence_lengths=sequence_lengths,
        num_tasks=num_tasks,
        **options.model_dump(exclude={"name", *ModelSection.model_fields} - {"token_dim"}),
    )


def _build_stack(
    options: StackConfig, num_fields: int, sequence_lengths: Sequence[int], num_tasks: int
) -> Stack:
    sizes = {"token_dim": options.token_dim}
    if isinstance(options.sequence, HstuConfig):
        _check_heads("model.sequence", options.sequence.num_heads, options.token_dim)
    sequence = SEQUENCES[options.sequence.name](
        sequence_lengths=sequence_lengths, **sizes, **_options_of(options.sequence)
    )
    num_tokens = num_fields + len(sequence_lengths)
    try:
        interaction = INTERACTIONS[options.interaction.name](
            num_tokens=num_tokens, **sizes, **_options_of(options.interaction)
        )
    except ValueError as error:
        raise ConfigError(f"model.interaction.{error}") from None
    head = HEADS[options.head.name](
        in_dim=interaction.out_dim, num_tasks=num_tasks, **_options_of(options.head)
    )
    return Stack(sequence, interaction, head)


def _check_heads(key: str, num_heads: int, token_dim: int) -> None:
    if token_dim % num_heads:
        raise ConfigError(
            f"{key}.num_heads: {num_heads} doesn't divide model.token_dim {token_dim}; choose a "
            "divisor"
        )


def _options_of(part: Section) -> dict[str, Any]:
    """The options of a part of a stack, without its name."""
    return part.model_dump(exclude={"name"})
