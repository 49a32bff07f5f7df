"""HSTU (Zhai et al. 2024, arXiv 2402.17152): pointwise attention over history and candidate.

Letters: B batch, L history tokens, F behaviours, N = L + F, Q queries, D width, h heads.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from infnet_dist.model.tokens import Tokens


class HSTU(nn.Module):
    """Tokens -> the candidate's tokens after reading the history, [B, F, D].

    The sequence is the history of all behaviours and then the candidate, once as an item of each.
    History tokens read all history tokens, since all are earlier than the row; the candidate reads
    the history and itself. Position and time gap in the tokens replace the paper's relative
    attention bias.

    Args:
        sequence_lengths: L_f of each behaviour.
        token_dim: D.
        num_layers: layers.
        num_heads: h; divides D.
    """

    def __init__(
        self,
        *,
        sequence_lengths: Sequence[int],
        token_dim: int,
        num_layers: int = 2,
        num_heads: int = 2,
    ) -> None:
        """Without behaviours there are no layers."""
        super().__init__()
        count = num_layers if sequence_lengths else 0
        self.layers = nn.ModuleList(HSTULayer(token_dim, num_heads) for _ in range(count))

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """[B, F, D]."""
        length, targets = tokens.sequence_BLD.shape[1], tokens.target_BFD.shape[1]
        token_BND = torch.cat([tokens.sequence_BLD, tokens.target_BFD], dim=1)
        itself_NN = torch.eye(length + targets, dtype=torch.bool, device=token_BND.device)
        history_BN = functional.pad(tokens.mask_BL, (0, targets))
        reads_BNN = itself_NN | history_BN.unsqueeze(1)
        for number, layer in enumerate(self.layers, start=1):
            first = (
                length if number == len(self.layers) else 0
            )  # nothing reads the history after the last layer
            token_BND = layer(token_BND, reads_BNN, first)
        return token_BND[:, -targets:] if targets else tokens.target_BFD


class HSTULayer(nn.Module):
    """U, V, Q, K = SiLU(f1(X)); A = SiLU(Q K^T) / N; Y = f2(Norm(A V) * U) (equations 1 to 3).

    The division by N is from the authors' code.
    """

    def __init__(self, token_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(token_dim)
        self.project = nn.Linear(token_dim, 4 * token_dim)
        self.read_norm = nn.LayerNorm(token_dim)
        self.out = nn.Linear(token_dim, token_dim)

    def forward(self, token_BND: torch.Tensor, reads_BNN: torch.Tensor, first: int) -> torch.Tensor:
        """The tokens from position `first` on, after reading the tokens that `reads_BNN` allows."""
        count = token_BND.shape[1]
        parts = functional.silu(self.project(self.norm(token_BND))).chunk(4, dim=-1)
        gate_BND, value, query, key = (
            part if i == 0 else part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for i, part in enumerate(parts)
        )
        score_BhQN = functional.silu(query[:, :, first:] @ key.transpose(-1, -2)) / count
        score_BhQN = score_BhQN * reads_BNN[:, first:].unsqueeze(1)
        read_BQD = (score_BhQN @ value).transpose(1, 2).flatten(-2)
        new_BQD = self.out(self.read_norm(read_BQD) * gate_BND[:, first:])
        return token_BND[:, first:] + new_BQD
