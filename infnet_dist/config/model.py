"""The `model` section of a run file: one class per tower and per part of a stack."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag


class Section(BaseModel):
    """A frozen section of the run file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """Settings that all towers share."""

    token_dim: int = Field(32, ge=1, description="width D of a token")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of token embeddings")
    first_order: bool = Field(False, description="add a linear term of the features to the logits")
    conditional_on: dict[str, str] = Field(
        default_factory=dict,
        description="by task a, the task b that it is conditional on: P(a) = P(b) P(a | b)",
    )


# ---- complete towers


InfnetPart = Literal[
    # ours
    "target_hubs",
    "task_hubs",
    "interaction",
    # the paper's
    "task_tokens",
    "homogeneous_flow",
    "heterogeneous_flow",
]


class InfnetConfig(ModelSection):
    """INFNet v2 ("Aggregate and Broadcast") with three additions."""

    name: Literal["infnet"] = "infnet"
    num_blocks: int = Field(2, ge=2, description="number of blocks, at least 2")
    num_hubs: int = Field(16, ge=1, description="number of categorical hubs n_c")
    num_shared_tasks: int = Field(2, ge=0, description="number of shared task tokens n_s")
    num_heads: int = Field(2, ge=1, description="number of attention heads; must divide token_dim")
    ablate: tuple[InfnetPart, ...] = Field((), description="parts that are left out, for ablations")
    history_reads: Literal["all", "user"] = Field(
        "all",
        description="what updates the history's tokens. all: every hub of the history; user: those "
        "that read the history alone, so that a request computes it once for all candidates",
    )


class InfnetPaperConfig(ModelSection):
    """INFNet v1 ("A Task-aware Information Flow Network")."""

    name: Literal["infnet_paper"]
    num_blocks: int = Field(2, ge=2, description="number of blocks, at least 2")
    num_proxies: int = Field(4, ge=1, description="number of categorical proxies m")
    num_shared_tasks: int = Field(2, ge=1, description="number of shared task tokens N_s")
    num_heads: int = Field(2, ge=1, description="number of attention heads; must divide token_dim")


class OneTransConfig(ModelSection):
    """OneTrans: one transformer over history and feature tokens."""

    name: Literal["onetrans"]
    num_blocks: int = Field(2, ge=1, description="number of blocks")
    num_heads: int = Field(2, ge=1, description="number of attention heads; must divide token_dim")


class TransformerConfig(ModelSection):
    """Full attention between all tokens: an ablation of INFNet's hubs."""

    name: Literal["transformer"]
    num_blocks: int = Field(2, ge=1, description="number of layers")
    num_heads: int = Field(2, ge=1, description="number of attention heads; must divide token_dim")


# ---- parts of a stack


class NoneConfig(Section):
    """No history; for comparisons."""

    name: Literal["none"]


class MeanConfig(Section):
    """Mean of the items of each behaviour."""

    name: Literal["mean"]


class DinConfig(Section):
    """Deep Interest Network: items weighted by their similarity to the candidate."""

    name: Literal["din"] = "din"
    hidden_dim: int = Field(32, ge=1, description="hidden width of the activation unit")


class DienConfig(Section):
    """Deep Interest Evolution Network: interests that evolve over time."""

    name: Literal["dien"]


class HstuConfig(Section):
    """HSTU: pointwise attention over history and candidate."""

    name: Literal["hstu"]
    num_layers: int = Field(2, ge=1, description="number of layers")
    num_heads: int = Field(2, ge=1, description="number of attention heads; must divide token_dim")


class LinearConfig(Section):
    """Logistic regression: no interaction of tokens."""

    name: Literal["linear"]


class FmConfig(Section):
    """Factorization machine."""

    name: Literal["fm"]


class _WithHidden(Section):
    hidden_dims: tuple[PositiveInt, ...] = Field(
        (128, 64), min_length=1, description="widths of the hidden layers of the deep part"
    )


class DeepConfig(_WithHidden):
    """MLP."""

    name: Literal["deep"]


class DeepfmConfig(_WithHidden):
    """DeepFM."""

    name: Literal["deepfm"]


class DcnConfig(_WithHidden):
    """Deep & Cross Network."""

    name: Literal["dcn"]
    num_layers: int = Field(3, ge=1, description="number of cross layers")


class DcnV2Config(_WithHidden):
    """DCN V2 with low-rank cross layers."""

    name: Literal["dcnv2"] = "dcnv2"
    num_layers: int = Field(3, ge=1, description="number of cross layers")
    rank: int = Field(64, ge=1, description="rank of the cross matrices")


class WukongConfig(Section):
    """Wukong: stacked factorization machines."""

    name: Literal["wukong"]
    num_layers: int = Field(2, ge=1, description="number of layers")
    num_fm: int = Field(8, ge=1, description="number of tokens of the factorization machine block")
    num_compressed: int = Field(
        8, ge=1, description="number of tokens of the linear compression block"
    )
    rank: int = Field(8, ge=1, description="rank of the factorization machine")
    hidden_dims: tuple[PositiveInt, ...] = Field(
        (128,),
        min_length=1,
        description="widths of the hidden layers of the factorization machine block",
    )


class RankMixerConfig(Section):
    """RankMixer: token mixing, then an FFN per token."""

    name: Literal["rankmixer"]
    num_mixed: int = Field(
        8, ge=1, description="number of tokens, and of heads; must divide mixed_dim"
    )
    mixed_dim: int = Field(64, ge=1, description="width of a token")
    num_blocks: int = Field(2, ge=1, description="number of blocks")
    expansion: int = Field(
        2, ge=1, description="hidden width of the per-token FFN, as a multiple of mixed_dim"
    )


class LinearHeadConfig(Section):
    """One linear map for all tasks."""

    name: Literal["linear"]


class SharedBottomConfig(Section):
    """A tower per task on a shared representation."""

    name: Literal["shared_bottom"] = "shared_bottom"
    tower_dim: int = Field(32, ge=1, description="hidden width of the tower of a task")


class MmoeConfig(Section):
    """Multi-gate mixture of experts."""

    name: Literal["mmoe"]
    num_experts: int = Field(4, ge=1, description="number of experts")
    expert_dim: int = Field(64, ge=1, description="width of an expert")
    tower_dim: int = Field(32, ge=1, description="hidden width of the tower of a task")
    expert_dropout: float = Field(
        0.1, ge=0, lt=1, description="probability that an expert is dropped in training"
    )


class PleConfig(Section):
    """Progressive layered extraction."""

    name: Literal["ple"]
    num_levels: int = Field(2, ge=1, description="number of stacked extraction networks")
    num_own: int = Field(2, ge=1, description="number of experts per task and level")
    num_shared: int = Field(2, ge=1, description="number of shared experts per level")
    expert_dim: int = Field(64, ge=1, description="width of an expert")
    tower_dim: int = Field(32, ge=1, description="hidden width of the tower of a task")


SequenceConfig = Annotated[
    NoneConfig | MeanConfig | DinConfig | DienConfig | HstuConfig, Field(discriminator="name")
]
InteractionConfig = Annotated[
    LinearConfig
    | FmConfig
    | DeepConfig
    | DeepfmConfig
    | DcnConfig
    | DcnV2Config
    | WukongConfig
    | RankMixerConfig,
    Field(discriminator="name"),
]
HeadConfig = Annotated[
    LinearHeadConfig | SharedBottomConfig | MmoeConfig | PleConfig, Field(discriminator="name")
]


class StackConfig(ModelSection):
    """A summary of the history, an interaction of all tokens, and a multi-task head."""

    name: Literal["stack"]
    sequence: SequenceConfig = DinConfig()
    interaction: InteractionConfig = DcnV2Config()
    head: HeadConfig = SharedBottomConfig()


def _model_name(value: Any) -> str:
    """Discriminator with a default: a `model:` section without a name is INFNet v2."""
    get = value.get if isinstance(value, dict) else lambda key, other: getattr(value, key, other)
    return str(get("name", "infnet"))


ModelConfig = Annotated[
    Annotated[InfnetConfig, Tag("infnet")]
    | Annotated[InfnetPaperConfig, Tag("infnet_paper")]
    | Annotated[OneTransConfig, Tag("onetrans")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[StackConfig, Tag("stack")],
    Discriminator(_model_name),
]
