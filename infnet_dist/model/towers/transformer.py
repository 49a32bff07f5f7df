"""Full attention instead of INFNet's hubs: an ablation, and the reference for its cost.

Letters: B batch, M fields, L history tokens, K tasks, N = M + L + K, D width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import TaskHeads


class Transformer(nn.Module):
    """Tokens -> logits [B, K].

    Every field, history and task token reads every other (Vaswani et al. 2017, pre-norm), with
    PyTorch's own encoder; each task's head reads its token. The cost grows with N^2.

    Args:
        num_fields: M.
        sequence_lengths: L_f of each behaviour; empty for none.
        num_tasks: K.
        token_dim: D.
        num_blocks: layers.
        num_heads: attention heads; divides D.
    """

    def __init__(
        self,
        *,
        num_fields: int,
        sequence_lengths: Sequence[int],
        num_tasks: int,
        token_dim: int = 32,
        num_blocks: int = 2,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        self.kind_D = nn.ParameterList(
            torch.randn(token_dim) * 0.02 for _ in range(3 if sequence_lengths else 2)
        )
        layer = nn.TransformerEncoderLayer(
            token_dim,
            num_heads,
            dim_feedforward=2 * token_dim,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, num_blocks, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(token_dim)
        self.heads = TaskHeads(num_tasks, token_dim, token_dim)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        groups = [tokens.categorical_BMD, tokens.task_BKD]
        if tokens.sequence_BLD.shape[1]:
            groups.append(tokens.sequence_BLD)
        token_BND = torch.cat([x + kind for x, kind in zip(groups, self.kind_D, strict=True)], 1)
        num_fields, num_tasks = tokens.categorical_BMD.shape[1], tokens.task_BKD.shape[1]
        always_BX = tokens.mask_BL.new_ones(token_BND.shape[0], num_fields + num_tasks)
        padded_BN = ~torch.cat([always_BX, tokens.mask_BL], dim=1)
        out_BND = self.encoder(token_BND, src_key_padding_mask=padded_BN)
        logits_BK: torch.Tensor = self.heads(
            self.norm(out_BND[:, num_fields : num_fields + num_tasks])
        )
        return logits_BK
