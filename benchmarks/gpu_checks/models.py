"""The dense parts that are checked, and their inputs; needs torch alone.

Letters: B batch, L history items, N dense features, K tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infnet_dist.model.dense import DenseArch, FirstOrder
from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.model.tokens import SparseEmbeddings, TokenArch
from infnet_dist.model.towers.esmm import EntireSpace
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.model.towers.infnet_paper import INFNetPaper
from infnet_dist.model.towers.onetrans import OneTrans
from infnet_dist.model.towers.stack import HEADS, INTERACTIONS, SEQUENCES, Stack
from infnet_dist.model.towers.transformer import Transformer

TASKS = 3
DENSE = 8
ATTRIBUTES = 2
TIME_GAPS = 32


class Sizes(NamedTuple):
    """Sizes of a model and its input.

    Attributes:
        lengths: L_f of each behaviour.
        width: floats per embedding.
    """

    fields: int = 40
    lengths: tuple[int, ...] = (60, 40)
    token_dim: int = 64
    width: int = 16


class Inputs(NamedTuple):
    """A batch after the lookup, and its labels."""

    embeddings: SparseEmbeddings
    vectors_BV: torch.Tensor
    dense_BN: torch.Tensor
    time_gap_BL: torch.Tensor
    labels_BK: torch.Tensor
    weights_B: torch.Tensor

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The embeddings, which take gradients."""
        return [*self.embeddings.fields, *self.embeddings.sequences]

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Inputs":
        """A copy; floats have type `dtype`, embeddings take gradients."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        fields, sequences, masks = ([moved(part) for part in kind] for kind in self.embeddings)
        embeddings = SparseEmbeddings(
            [part.requires_grad_() for part in fields],
            [part.requires_grad_() for part in sequences],
            masks,
        )
        return Inputs(embeddings, *(moved(part) for part in self[1:]))


def make_inputs(sizes: Sizes, batch: int) -> Inputs:
    """Random inputs on the CPU, always the same."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    masks = [uniform(batch, length) < 0.8 for length in sizes.lengths]
    embeddings = SparseEmbeddings(
        [normal(batch, sizes.width) for _ in range(sizes.fields)],
        [
            normal(batch, mask.shape[1], ATTRIBUTES * sizes.width) * mask.unsqueeze(-1)
            for mask in masks
        ],
        masks,
    )
    time_gap_BL = (TIME_GAPS * uniform(batch, sum(sizes.lengths))).to(torch.uint8)
    labels_BK = (uniform(batch, TASKS) < 0.3).float()
    return Inputs(
        embeddings,
        torch.empty(batch, 0),
        normal(batch, DENSE),
        time_gap_BL,
        labels_BK,
        torch.ones(batch),
    )


def _complete(tower: Callable[..., nn.Module]) -> Callable[[Sizes], nn.Module]:
    return lambda sizes: tower(
        num_fields=sizes.fields + 1,
        sequence_lengths=sizes.lengths,
        num_tasks=TASKS,
        token_dim=sizes.token_dim,
    )


def _stack(sequence: str, interaction: str, head: str) -> Callable[[Sizes], nn.Module]:
    def make(sizes: Sizes) -> nn.Module:
        summary = SEQUENCES[sequence](sequence_lengths=sizes.lengths, token_dim=sizes.token_dim)
        mixed = INTERACTIONS[interaction](
            num_tokens=sizes.fields + 1 + len(sizes.lengths), token_dim=sizes.token_dim
        )
        options = {"expert_dropout": 0.0} if head == "mmoe" else {}
        logits = HEADS[head](in_dim=mixed.out_dim, num_tasks=TASKS, **options)
        return Stack(summary, mixed, logits)

    return make


# Every part of every tower at least once.
TOWERS: dict[str, Callable[[Sizes], nn.Module]] = {
    "infnet": _complete(INFNet),
    "infnet_paper": _complete(INFNetPaper),
    "onetrans": _complete(OneTrans),
    "transformer": _complete(Transformer),
    "din+dcnv2+mmoe": _stack("din", "dcnv2", "mmoe"),
    "dien+deepfm+ple": _stack("dien", "deepfm", "ple"),
    "hstu+rankmixer+shared_bottom": _stack("hstu", "rankmixer", "shared_bottom"),
    "mean+wukong+linear": _stack("mean", "wukong", "linear"),
    "mean+dcn+linear": _stack("mean", "dcn", "linear"),
}
# Whole models of papers, for comparisons of cost.
PLAIN: dict[str, Callable[[Sizes], nn.Module]] = {
    "din+deep+linear": _stack("din", "deep", "linear"),
    "hstu+deep+linear": _stack("hstu", "deep", "linear"),
}


def make_dense(tower: str, sizes: Sizes, *, bf16: bool = False) -> DenseArch:
    """The dense part of a model on the CPU, always the same, in training mode."""
    torch.manual_seed(0)
    behaviours = len(sizes.lengths)
    tokens = TokenArch(
        field_widths=[sizes.width] * sizes.fields,
        sequence_lengths=sizes.lengths,
        item_widths=[[sizes.width] * ATTRIBUTES] * behaviours,
        target_fields=[[0, 1]] * behaviours,
        num_dense=DENSE,
        num_tasks=TASKS if tower in ("infnet", "infnet_paper", "transformer") else 0,
        token_dim=sizes.token_dim,
        num_time_gap_buckets=TIME_GAPS,
    )
    return DenseArch(
        tokens,
        (TOWERS | PLAIN)[tower](sizes),
        first_order=FirstOrder(sizes.fields * sizes.width + DENSE, TASKS),
        entire_space=EntireSpace([None, 0, None]),
        bf16=bf16,
    )


class Trained(NamedTuple):
    """The outcome of a forward and backward pass.

    Attributes:
        gradients: by name, of the parameters and of the embeddings.
    """

    loss: torch.Tensor
    logits_BK: torch.Tensor
    gradients: dict[str, torch.Tensor]


def forward_backward(dense: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The logits [B, K]; gradients are in the parameters and embeddings."""
    logits_BK: torch.Tensor = dense(*inputs[:4])
    loss = MultiTaskLoss([1.0] * TASKS).to(logits_BK)
    loss(logits_BK, inputs.labels_BK, inputs.weights_B)[0].backward()
    return logits_BK


def train(dense: nn.Module, inputs: Inputs) -> Trained:
    """Forward and backward, from gradients of None."""
    for tensor in (*dense.parameters(), *inputs.leaves):
        tensor.grad = None
    logits_BK = forward_backward(dense, inputs).detach()
    loss = MultiTaskLoss([1.0] * TASKS).to(logits_BK)
    gradients = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
    gradients |= {
        f"embedding {i}": leaf.grad for i, leaf in enumerate(inputs.leaves) if leaf.grad is not None
    }
    return Trained(loss(logits_BK, inputs.labels_BK, inputs.weights_B)[0], logits_BK, gradients)


def relative_errors(found: Trained, expected: Trained) -> dict[str, float]:
    """|found - expected| / |expected| of the logits, and the largest of all gradients.

    Gradients whose norm is below 1e-3 of the largest are compared with that.
    """
    floor = 1e-3 * max(float(part.norm()) for part in expected.gradients.values())
    gradients = [
        _distance(found.gradients[name], part) / max(float(part.norm()), floor)
        for name, part in expected.gradients.items()
    ]
    logits = _distance(found.logits_BK, expected.logits_BK) / float(expected.logits_BK.norm())
    return {"logits": logits, "gradients": max(gradients)}


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.to(expected) - expected).norm())


def flops_per_sample(tower: str, sizes: Sizes, *, backward: bool = True) -> float:
    """Floating-point operations of matrix products, two per multiply-add."""
    dense, inputs = make_dense(tower, sizes), make_inputs(sizes, 2).to(torch.device("cpu"))
    # With the math kernel: torch doesn't count the operations of the fused one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if backward:
            forward_backward(dense, inputs)
        else:
            dense(*inputs[:4])
    return counter.get_total_flops() / 2
