"""The history's tokens after INFNet's broadcast to each candidate, read without forming them.

Block b makes S <- LN(S * (1 + g) + beta) with g and beta of the candidate n. So token l of
candidate n is linear in the user's token t_l, with coefficients that are products of a part per
token and one per candidate:

    s_nl = rho_nl (A_n * t_l) + sum_j w_njl v_nj

A LayerNorm needs the mean and the variance over D of that, which are bilinear in (t, t * t) and
(A, A * A, A * v); attention needs its product with a query, and weighted sums of it. All of that is
matrix products with t [L, D], which all candidates share; no tensor is [N, L, D].

Letters: N candidates, Q queries, h heads, L history tokens, J vectors, D width.
"""

from typing import NamedTuple

import torch
from torch import nn

from infnet_dist.model.towers.hub_block import HubBlock


class GatedHistory(NamedTuple):
    """s_nl = rho_nl (A_n * t_l) + sum_j w_njl v_nj.

    Attributes:
        token_LD: t.
        usable_L: float, -inf where attention must not read; all 0 without any item.
        any_1: float, 0 if there is no item, else 1.
        rho_N1L: of the token's part; N may be 1.
        scale_N1D: A; N may be 1.
        weight_NJL: w.
        vector_NJD: v.
    """

    token_LD: torch.Tensor
    usable_L: torch.Tensor
    any_1: torch.Tensor
    rho_N1L: torch.Tensor
    scale_N1D: torch.Tensor
    weight_NJL: torch.Tensor | None = None
    vector_NJD: torch.Tensor | None = None

    @classmethod
    def of(cls, token_1LD: torch.Tensor, mask_1L: torch.Tensor) -> "GatedHistory":
        """The user's tokens and mask, without any candidate."""
        token_LD = token_1LD[0]
        any_1 = mask_1L.any(dim=1)
        readable_L = (mask_1L | ~any_1.unsqueeze(1))[0]
        usable_L = torch.zeros_like(token_LD[:, 0]).masked_fill(~readable_L, -torch.inf)
        one_11L = torch.ones_like(token_LD[:, 0])[None, None]
        return cls(
            token_LD, usable_L, any_1.to(token_LD.dtype), one_11L, torch.ones_like(token_1LD[:, :1])
        )

    def gated(
        self, gate_N1D: torch.Tensor, shift_N1D: torch.Tensor, norm: nn.LayerNorm
    ) -> "GatedHistory":
        """LN(S + S * gate + shift)."""
        factor_N1D = 1 + gate_N1D
        scale_N1D = self.scale_N1D * factor_N1D
        vector_NJD, weight_NJL = (
            shift_N1D,
            torch.ones_like(shift_N1D[:, :, :1] * self.token_LD[:, 0]),
        )
        if self.vector_NJD is not None and self.weight_NJL is not None:
            vector_NJD = torch.cat([self.vector_NJD * factor_N1D, vector_NJD], dim=1)
            weight_NJL = torch.cat([self.weight_NJL, weight_NJL], dim=1)
        # Centred vectors: no large mean that the variance would lose digits to.
        vector_NJD = vector_NJD - vector_NJD.mean(dim=2, keepdim=True)
        mean_N1L = self.rho_N1L * self._times_tokens(scale_N1D) / scale_N1D.shape[2]
        variance_N1L = self._second_moment(scale_N1D, vector_NJD, weight_NJL) - mean_N1L.square()
        inverse_N1L = torch.rsqrt(variance_N1L.clamp(min=0) + norm.eps)
        count = scale_N1D.shape[0]
        gamma_N1D, bias_N1D = (one.expand(count, 1, -1) for one in (norm.weight, norm.bias))
        return self._replace(
            rho_N1L=self.rho_N1L * inverse_N1L,
            scale_N1D=scale_N1D * norm.weight,
            weight_NJL=torch.cat(
                [weight_NJL * inverse_N1L, -mean_N1L * inverse_N1L, torch.ones_like(mean_N1L)], 1
            ),
            vector_NJD=torch.cat([vector_NJD * norm.weight, gamma_N1D, bias_N1D], dim=1),
        )

    def read(self, block: HubBlock, query_NQD: torch.Tensor) -> torch.Tensor:
        """Multi-head attention of projected queries, [N, Q, D]; 0 without any item."""
        assert self.vector_NJD is not None and self.weight_NJL is not None
        project = block.key_value["S"]
        assert isinstance(project, nn.Linear)
        key_hdD, value_hdD = (
            weight.unflatten(0, (block.num_heads, -1)) for weight in project.weight.chunk(2)
        )
        count, num_queries, dim = query_NQD.shape
        query_NQhd = query_NQD.unflatten(2, (block.num_heads, -1))
        # q . (W_K s) = (W_K^T q) . s
        asked_NXD = torch.einsum("nqhd,hdc->nhqc", query_NQhd, key_hdD).flatten(1, 2)
        asked_NXD = asked_NXD * key_hdD.shape[1] ** -0.5
        score_NXL = self.rho_N1L * self._times_tokens(asked_NXD * self.scale_N1D) + self.usable_L
        score_NXL = torch.baddbmm(
            score_NXL, asked_NXD @ self.vector_NJD.transpose(1, 2), self.weight_NJL
        )
        share_NXL = score_NXL.softmax(dim=2)
        mixed_NXD = (share_NXL * self.rho_N1L) @ self.token_LD * self.scale_N1D
        weight_NXJ = share_NXL @ self.weight_NJL.transpose(1, 2)
        mixed_NXD = torch.baddbmm(mixed_NXD, weight_NXJ, self.vector_NJD)
        mixed_NhQD = mixed_NXD.unflatten(1, (block.num_heads, num_queries))
        read_NQhd = torch.einsum("nhqc,hdc->nqhd", mixed_NhQD, value_hdD)
        return read_NQhd.reshape(count, num_queries, dim) * self.any_1

    def _times_tokens(self, left_NXD: torch.Tensor) -> torch.Tensor:
        """[N, X, L]: one product for all candidates, as they share t."""
        return left_NXD @ self.token_LD.T

    def _second_moment(
        self, scale_N1D: torch.Tensor, vector_NJD: torch.Tensor, weight_NJL: torch.Tensor
    ) -> torch.Tensor:
        """The mean over D of (rho A * t + sum_j w_j v_j)^2, [N, 1, L]."""
        squared_N1L = scale_N1D.square() @ self.token_LD.square().T
        crossed_NJL = self._times_tokens(scale_N1D * vector_NJD)
        gram_NJL = (vector_NJD @ vector_NJD.transpose(1, 2)) @ weight_NJL
        vectors_NJL = weight_NJL * (gram_NJL + 2 * self.rho_N1L * crossed_NJL)
        total_N1L = self.rho_N1L.square() * squared_N1L + vectors_NJL.sum(dim=1, keepdim=True)
        return total_N1L / scale_N1D.shape[2]
