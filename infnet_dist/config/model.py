"""The `model` section of a run file: one class per tower, and one per part of a stack."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag


class Section(BaseModel):
    """A frozen section of the run file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """What every tower has."""

    token_dim: int = Field(32, ge=1, description="token width D")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of token embeddings")
    first_order: bool = Field(False, description="add a linear term of the fields to the logits")
    conditional_on: dict[str, str] = Field(
        default_factory=dict,
        description="by task a, the task b that it is conditional on: P(a) = P(b) P(a | b)",
    )


# ---- towers of their own


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
    """INFNet v2, "Aggregate and Broadcast", with three additions."""

    name: Literal["infnet"] = "infnet"
    num_blocks: int = Field(2, ge=2, description="blocks; at least 2")
    num_hubs: int = Field(16, ge=1, description="categorical hubs n_c")
    num_shared_tasks: int = Field(2, ge=0, description="shared task tokens n_s")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide token_dim")
    ablate: tuple[InfnetPart, ...] = Field((), description="parts left out, for comparisons")


class InfnetPaperConfig(ModelSection):
    """INFNet v1, "A Task-aware Information Flow Network"."""

    name: Literal["infnet_paper"]
    num_blocks: int = Field(2, ge=2, description="blocks; at least 2")
    num_proxies: int = Field(4, ge=1, description="categorical proxies m")
    num_shared_tasks: int = Field(2, ge=1, description="shared task tokens N_s")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide token_dim")


class OneTransConfig(ModelSection):
    """OneTrans: one transformer over history and field tokens."""

    name: Literal["onetrans"]
    num_blocks: int = Field(2, ge=1, description="blocks")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide token_dim")


class TransformerConfig(ModelSection):
    """Full attention between all tokens: an ablation of INFNet's hubs."""

    name: Literal["transformer"]
    num_blocks: int = Field(2, ge=1, description="layers")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide token_dim")


# ---- parts of a stack


class NoneConfig(Section):
    """The history isn't read: for comparisons."""

    name: Literal["none"]


class MeanConfig(Section):
    """Mean of each behaviour's items."""

    name: Literal["mean"]


class DinConfig(Section):
    """Deep Interest Network: items weighed by their likeness to the candidate."""

    name: Literal["din"] = "din"
    hidden_dim: int = Field(32, ge=1, description="hidden width of the activation unit")


class DienConfig(Section):
    """Deep Interest Evolution Network: interests over time."""

    name: Literal["dien"]


class HstuConfig(Section):
    """HSTU: pointwise attention over history and candidate."""

    name: Literal["hstu"]
    num_layers: int = Field(2, ge=1, description="layers")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide token_dim")


class LinearConfig(Section):
    """Logistic regression: tokens don't interact."""

    name: Literal["linear"]


class FmConfig(Section):
    """Factorization machine."""

    name: Literal["fm"]


class _WithHidden(Section):
    hidden_dims: tuple[PositiveInt, ...] = Field(
        (128, 64), min_length=1, description="widths of the deep part's hidden layers"
    )


class DeepConfig(_WithHidden):
    """An MLP."""

    name: Literal["deep"]


class DeepfmConfig(_WithHidden):
    """DeepFM."""

    name: Literal["deepfm"]


class DcnConfig(_WithHidden):
    """Deep & Cross Network."""

    name: Literal["dcn"]
    num_layers: int = Field(3, ge=1, description="cross layers")


class DcnV2Config(_WithHidden):
    """DCN V2, of low rank."""

    name: Literal["dcnv2"] = "dcnv2"
    num_layers: int = Field(3, ge=1, description="cross layers")
    rank: int = Field(64, ge=1, description="rank of the cross matrices")


class WukongConfig(Section):
    """Wukong: stacked factorization machines."""

    name: Literal["wukong"]
    num_layers: int = Field(2, ge=1, description="layers")
    num_fm: int = Field(8, ge=1, description="tokens of the factorization machine block")
    num_compressed: int = Field(8, ge=1, description="tokens of the linear compression")
    rank: int = Field(8, ge=1, description="rank of the factorization machine")
    hidden_dims: tuple[PositiveInt, ...] = Field(
        (128,), min_length=1, description="hidden widths of the factorization machine block"
    )


class RankMixerConfig(Section):
    """RankMixer: tokens exchange parts, then work by themselves."""

    name: Literal["rankmixer"]
    num_mixed: int = Field(8, ge=1, description="tokens and heads; must divide mixed_dim")
    mixed_dim: int = Field(64, ge=1, description="width of a token")
    num_blocks: int = Field(2, ge=1, description="blocks")
    expansion: int = Field(2, ge=1, description="hidden width of the per-token FFN over mixed_dim")


class LinearHeadConfig(Section):
    """One linear map for all tasks."""

    name: Literal["linear"]


class SharedBottomConfig(Section):
    """A tower for each task on what all share."""

    name: Literal["shared_bottom"] = "shared_bottom"
    tower_dim: int = Field(32, ge=1, description="hidden width of a task's tower")


class MmoeConfig(Section):
    """Multi-gate mixture of experts."""

    name: Literal["mmoe"]
    num_experts: int = Field(4, ge=1, description="experts")
    expert_dim: int = Field(64, ge=1, description="width of an expert")
    tower_dim: int = Field(32, ge=1, description="hidden width of a task's tower")
    expert_dropout: float = Field(
        0.1, ge=0, lt=1, description="probability of leaving an expert out in training"
    )


class PleConfig(Section):
    """Progressive layered extraction."""

    name: Literal["ple"]
    num_levels: int = Field(2, ge=1, description="extraction networks, one on the other")
    num_own: int = Field(2, ge=1, description="experts of each task and level")
    num_shared: int = Field(2, ge=1, description="shared experts of each level")
    expert_dim: int = Field(64, ge=1, description="width of an expert")
    tower_dim: int = Field(32, ge=1, description="hidden width of a task's tower")


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
