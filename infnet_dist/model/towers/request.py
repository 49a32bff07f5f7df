"""Towers in the form that scores a request: one user with a history, and N candidates.

What depends on the user alone is computed once (`user`), then read by the candidates in chunks of
any size (`candidates`). The logits are those of the tower for N rows with the same history.

Letters: N candidates, M fields, L history tokens, F behaviours, K tasks, D width.
"""

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.din import DIN
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.model.towers.infnet_request import InfnetRequest
from infnet_dist.model.towers.stack import MeanPooling, Stack


class AnyRequest(nn.Module):
    """Any tower: the tokens of the history are made once; each candidate then has its own copy."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def user(
        self, sequence_1LD: torch.Tensor, mask_1L: torch.Tensor, task_1KD: torch.Tensor
    ) -> list[torch.Tensor]:
        """What `candidates` needs of a user with a history."""
        return [sequence_1LD, mask_1L]

    def candidates(
        self,
        user: list[torch.Tensor],
        categorical_NMD: torch.Tensor,
        target_NFD: torch.Tensor,
        task_NKD: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [N, K]; `user` is empty for models without history."""
        sequence_NLD, mask_NL = _copies(user, categorical_NMD)
        logits_NK: torch.Tensor = self.tower(
            Tokens(categorical_NMD, sequence_NLD, mask_NL, target_NFD, task_NKD)
        )
        return logits_NK


class StackRequest(AnyRequest):
    """A stack: means are made once, DIN reads one history for all candidates."""

    tower: Stack

    def user(
        self, sequence_1LD: torch.Tensor, mask_1L: torch.Tensor, task_1KD: torch.Tensor
    ) -> list[torch.Tensor]:
        """The means [1, F, D], or the tokens and the mask."""
        if isinstance(self.tower.sequence, MeanPooling):
            return [self.tower.sequence.mean(sequence_1LD, mask_1L)]
        return [sequence_1LD, mask_1L]

    def candidates(
        self,
        user: list[torch.Tensor],
        categorical_NMD: torch.Tensor,
        target_NFD: torch.Tensor,
        task_NKD: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [N, K]."""
        if isinstance(self.tower.sequence, MeanPooling) and user:
            summary_NFD = user[0].expand(categorical_NMD.shape[0], -1, -1)
            return self.tower.logits(categorical_NMD, summary_NFD)
        one_history = isinstance(self.tower.sequence, DIN) and user
        sequence_BLD, mask_BL = user if one_history else _copies(user, categorical_NMD)
        summary_NFD = self.tower.sequence(
            Tokens(categorical_NMD, sequence_BLD, mask_BL, target_NFD, task_NKD)
        )
        return self.tower.logits(categorical_NMD, summary_NFD)


def request_form(tower: nn.Module) -> AnyRequest | InfnetRequest:
    """The form of a tower that scores requests; it shares the tower's parameters."""
    if isinstance(tower, INFNet):
        return InfnetRequest(tower)
    return StackRequest(tower) if isinstance(tower, Stack) else AnyRequest(tower)


def _copies(user: list[torch.Tensor], like_NMD: torch.Tensor) -> list[torch.Tensor]:
    """History tokens [N, L, D] and mask [N, L], the same for all candidates."""
    if not user:
        nothing_N0D = like_NMD[:, :0]
        return [nothing_N0D, torch.zeros(nothing_N0D.shape[:2], dtype=torch.bool)]
    sequence_1LD, mask_1L = user
    count = like_NMD.shape[0]
    return [sequence_1LD.expand(count, -1, -1), mask_1L.expand(count, -1)]
