"""A baseline in three parts: history summary, interaction of tokens, multi-task head.

    Tokens -> sequence part [B, F, D] -> interaction of fields and summaries [B, R] -> head [B, K]

DeepFM is (mean, deepfm, linear), DIN is (din, deep, linear), MMoE over DCNv2 and DIN is (din,
dcnv2, mmoe). A new part needs a file, options in `config/model.py`, and a line below.
"""

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import MeanPooling
from infnet_dist.model.towers.dcn import DCN
from infnet_dist.model.towers.dcnv2 import DCNv2
from infnet_dist.model.towers.deep import Deep
from infnet_dist.model.towers.deepfm import DeepFM
from infnet_dist.model.towers.dien import DIEN
from infnet_dist.model.towers.din import DIN
from infnet_dist.model.towers.fm import FM
from infnet_dist.model.towers.hstu import HSTU
from infnet_dist.model.towers.linear import Linear
from infnet_dist.model.towers.mmoe import MMoE
from infnet_dist.model.towers.ple import PLE
from infnet_dist.model.towers.rankmixer import RankMixer
from infnet_dist.model.towers.shared_bottom import LinearHead, SharedBottom
from infnet_dist.model.towers.wukong import Wukong

SEQUENCES: dict[str, type[nn.Module]] = {
    "none": MeanPooling,  # the builder passes no behaviours
    "mean": MeanPooling,
    "din": DIN,
    "dien": DIEN,
    "hstu": HSTU,
}
INTERACTIONS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "deep": Deep,
    "fm": FM,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "wukong": Wukong,
    "rankmixer": RankMixer,
}
HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
}


class Stack(nn.Module):
    """Tokens -> logits [B, K].

    Args:
        sequence: Tokens -> [B, F, D].
        interaction: [B, M + F, D] -> [B, R].
        head: [B, R] -> [B, K].
    """

    def __init__(self, sequence: nn.Module, interaction: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.sequence = sequence
        self.interaction = interaction
        self.head = head

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        return self.logits(tokens.categorical_BMD, self.sequence(tokens))

    def logits(self, categorical_BMD: torch.Tensor, summary_BFD: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of the fields and the summaries of the history."""
        token_BND = torch.cat([categorical_BMD, summary_BFD], dim=1)
        logits_BK: torch.Tensor = self.head(self.interaction(token_BND))
        return logits_BK
