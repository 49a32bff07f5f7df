"""RankingModel (servable, knows no labels) and TrainModel -> (loss, StepOutput).

The order of reading: ids -> SparseArch -> TokenArch -> tower -> logits -> loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import RankingBatch
from infnet_dist.config.model import (
    HstuConfig,
    InfnetPaperConfig,
    ModelConfig,
    Section,
    StackConfig,
)
from infnet_dist.config.run import Config
from infnet_dist.data.columns import NUM_TIME_GAP_BUCKETS
from infnet_dist.errors import ConfigError, unknown_name
from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.model.settings_check import task_weights
from infnet_dist.model.sparse import SparseArch, SparseEmbeddings
from infnet_dist.model.tokens import TokenArch
from infnet_dist.model.towers.esmm import EntireSpace
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.model.towers.infnet_paper import INFNetPaper
from infnet_dist.model.towers.onetrans import OneTrans
from infnet_dist.model.towers.stack import HEADS, INTERACTIONS, SEQUENCES, Stack
from infnet_dist.model.towers.transformer import Transformer
from infnet_dist.schema import Schema

TASK_AWARE = ("infnet", "infnet_paper", "transformer")  # they read task tokens
TOWERS: dict[str, type[nn.Module]] = {
    "infnet": INFNet,
    "infnet_paper": INFNetPaper,
    "onetrans": OneTrans,
    "transformer": Transformer,
}


class FirstOrder(nn.Module):
    """What each field says by itself: linear in its embedding, per task; 0 at the start.

    The first-order term of Wide & Deep (arXiv 1606.07792) and DeepFM (arXiv 1703.04247, eq. 2),
    with the rows that the tower reads in place of a table of its own. In the tower a field's own
    effect has to pass a gate that all tokens of its group share (docs/infnet.md, section 4).
    """

    def __init__(self, num_inputs: int, num_tasks: int) -> None:
        """`num_inputs` floats in all fields and numbers together."""
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_tasks)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, fields: Sequence[torch.Tensor], dense_BN: torch.Tensor) -> torch.Tensor:
        """Fields [B, E] and numbers [B, N] -> logits [B, K]."""
        logits_BK: torch.Tensor = self.linear(torch.cat([*fields, dense_BN], dim=1))
        return logits_BK


class DenseArch(nn.Module):
    """Everything that isn't a table: tokens and tower. Replicated on every worker."""

    def __init__(
        self,
        tokens: TokenArch,
        tower: nn.Module,
        first_order: FirstOrder | None = None,
        entire_space: EntireSpace | None = None,
    ) -> None:
        """Put the tower on the tokens."""
        super().__init__()
        self.tokens = tokens
        self.tower = tower
        self.first_order = first_order
        self.entire_space = entire_space

    def forward(
        self, embeddings: SparseEmbeddings, dense_BN: torch.Tensor, time_gap_BL: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, K]."""
        logits_BK: torch.Tensor = self.tower(self.tokens(*embeddings, dense_BN, time_gap_BL))
        if self.first_order is not None:
            logits_BK = logits_BK + self.first_order(embeddings.fields, dense_BN)
        if self.entire_space is not None:
            logits_BK = self.entire_space(logits_BK)
        return logits_BK


class RankingModel(nn.Module):
    """The servable model: ids and numbers -> logits [B, K]."""

    def __init__(self, sparse: SparseArch, dense: DenseArch) -> None:
        """Join the sharded and the replicated part."""
        super().__init__()
        self.sparse = sparse
        self.dense = dense

    def forward(
        self, sparse_features: KeyedJaggedTensor, dense_BN: torch.Tensor, time_gap_BL: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, K]; arguments as in `RankingBatch`."""
        logits_BK: torch.Tensor = self.dense(self.sparse(sparse_features), dense_BN, time_gap_BL)
        return logits_BK


class StepOutput(NamedTuple):
    """What a step leaves for metrics, detached: logits [B, K] and mean loss per task [K]."""

    logits_BK: torch.Tensor
    task_loss_K: torch.Tensor


class TrainModel(nn.Module):
    """The ranking model and its loss, as one module that DistributedModelParallel wraps."""

    def __init__(self, model: RankingModel, loss: MultiTaskLoss) -> None:
        """Keep the servable model free of labels."""
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: RankingBatch) -> tuple[torch.Tensor, StepOutput]:
        """The loss of this worker's batch, and its detached by-products."""
        logits_BK = self.model(batch.sparse_features, batch.dense_BN, batch.time_gap_BL)
        loss, task_loss_K = self.loss(logits_BK, batch.labels_BK, batch.weights_B)
        return loss, StepOutput(logits_BK.detach(), task_loss_K.detach())


def build_train_model(
    config: Config, schema: Schema, *, table_device: torch.device | None = None
) -> TrainModel:
    """The unsharded model; the dense part is on the CPU and seeded by `run.seed`.

    Args:
        config: the run.
        schema: the selected features and tasks.
        table_device: "meta" where the tables will be sharded; None: the CPU.

    Raises:
        ConfigError: heads that don't divide the token width, or no task that is trained.
    """
    sparse = SparseArch(
        schema,
        config.tables.embedding_dim,
        data_type=config.tables.data_type,
        device=table_device,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        dense = _build_dense(config, schema)
    watch_time = [task.kind == "watch_time" for task in schema.tasks]
    loss = MultiTaskLoss(task_weights(config, schema), watch_time)
    return TrainModel(RankingModel(sparse, dense), loss)


def _build_dense(config: Config, schema: Schema) -> DenseArch:
    options, embedding_dim = config.model, config.tables.embedding_dim
    reads_history = not (isinstance(options, StackConfig) and options.sequence.name == "none")
    sequences = schema.sequences if reads_history else ()
    lengths = [sequence.max_length for sequence in sequences]
    num_tasks = len(schema.tasks)
    tokens = TokenArch(
        num_fields=len(schema.fields),
        embedding_dim=embedding_dim,
        sequence_lengths=lengths,
        target_fields=[schema.target_fields(sequence) for sequence in sequences],
        num_numbers=len(schema.numeric),
        num_tasks=num_tasks if options.name in TASK_AWARE else 0,
        token_dim=options.token_dim,
        num_time_gap_buckets=NUM_TIME_GAP_BUCKETS,
        positions=not isinstance(options, InfnetPaperConfig),
        dropout=options.dropout,
    )
    tower = build_tower(
        options, num_fields=tokens.num_fields, sequence_lengths=lengths, num_tasks=num_tasks
    )
    num_inputs = embedding_dim * len(schema.fields) + len(schema.numeric)
    first_order = FirstOrder(num_inputs, num_tasks) if options.first_order else None
    return DenseArch(tokens, tower, first_order, _entire_space(options.given, schema))


def _entire_space(given: Mapping[str, str], schema: Schema) -> EntireSpace | None:
    """The tasks under others, checked; None where there are none."""
    kinds = {task.name: task.kind for task in schema.tasks}
    for name in (name for pair in given.items() for name in pair):
        if name not in kinds:
            raise ConfigError(f"model.given: {unknown_name('task', name, kinds)}")
        if kinds[name] != "binary":
            raise ConfigError(f"model.given: {name!r} is a {kinds[name]}; name binary tasks alone")
    if not given:
        return None
    names = list(kinds)
    try:
        return EntireSpace([names.index(given[n]) if n in given else None for n in names])
    except ValueError:
        pairs = ", ".join(f"{child}: {parent}" for child, parent in given.items())
        raise ConfigError(f"model.given: tasks stand under one another ({pairs})") from None


def build_tower(
    options: ModelConfig, *, num_fields: int, sequence_lengths: Sequence[int], num_tasks: int
) -> nn.Module:
    """The tower of a `model` section: Tokens -> logits [B, K].

    Raises:
        ConfigError: heads that don't divide the token width, and the like.
    """
    if isinstance(options, StackConfig):
        return _build_stack(options, num_fields, sequence_lengths, num_tasks)
    _check_heads("model", options.num_heads, options.token_dim)
    return TOWERS[options.name](
        num_fields=num_fields,
        sequence_lengths=sequence_lengths,
        num_tasks=num_tasks,
        **options.model_dump(exclude={"name", "dropout", "first_order", "given"}),
    )


def _build_stack(
    options: StackConfig, num_fields: int, sequence_lengths: Sequence[int], num_tasks: int
) -> Stack:
    sizes = {"token_dim": options.token_dim}
    if isinstance(options.sequence, HstuConfig):
        _check_heads("model.sequence", options.sequence.num_heads, options.token_dim)
    sequence = SEQUENCES[options.sequence.name](
        sequence_lengths=sequence_lengths, **sizes, **_own(options.sequence)
    )
    num_tokens = num_fields + len(sequence_lengths)
    try:
        interaction = INTERACTIONS[options.interaction.name](
            num_tokens=num_tokens, **sizes, **_own(options.interaction)
        )
    except ValueError as error:
        raise ConfigError(f"model.interaction.{error}") from None
    head = HEADS[options.head.name](
        in_dim=interaction.out_dim, num_tasks=num_tasks, **_own(options.head)
    )
    return Stack(sequence, interaction, head)


def _check_heads(key: str, num_heads: int, token_dim: int) -> None:
    if token_dim % num_heads:
        raise ConfigError(
            f"{key}.num_heads: {num_heads} doesn't divide model.token_dim {token_dim}; choose a "
            "divisor"
        )


def _own(part: Section) -> dict[str, Any]:
    """What a part takes beside the sizes."""
    return part.model_dump(exclude={"name"})
