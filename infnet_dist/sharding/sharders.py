"""TorchRec's sharders of the collections: how their rows are exchanged."""

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import ModuleSharder, QuantizedCommCodecs

from infnet_dist.config.run import QCommsConfig as QCommsSettings
from infnet_dist.config.run import ShardingConfig
from infnet_dist.distributed.context import WorkerContext

_PRECISIONS = {"fp32": CommType.FP32, "fp16": CommType.FP16, "bf16": CommType.BF16}


def make_sharders(config: ShardingConfig, context: WorkerContext) -> list[ModuleSharder[nn.Module]]:
    """The sharders of both kinds of collection.

    Equal ids of a batch are exchanged and looked up once where fbgemm can find them, on GPUs.
    """
    return [
        EmbeddingCollectionSharder(
            qcomm_codecs_registry=_codecs(config.sequence_qcomms, context),
            use_index_dedup=context.device.type == "cuda",
        ),
        EmbeddingBagCollectionSharder(
            qcomm_codecs_registry=_codecs(config.bag_qcomms, context),
        ),
    ]


def _codecs(
    settings: QCommsSettings, context: WorkerContext
) -> dict[str, QuantizedCommCodecs] | None:
    if context.world_size == 1:
        return None  # nothing is exchanged, but would be rounded
    precisions = QCommsConfig(
        forward_precision=_PRECISIONS[settings.forward_precision],
        backward_precision=_PRECISIONS[settings.backward_precision],
    )
    # Given a CPU, it would replace bf16 by fp16: gloo couldn't send it once. It can now.
    return get_qcomm_codecs_registry(precisions)
