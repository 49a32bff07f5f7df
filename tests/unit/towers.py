"""The towers under test, and the cases and inputs that all of them are tried on.

A new tower takes a line in TOWERS, which puts it through test_towers.py, and a file of its own with
its reference and whatever holds for it alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from infnet_dist.config.model import StackConfig
from infnet_dist.model.build import build_tower
from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.model.towers.infnet_paper import INFNetPaper
from infnet_dist.model.towers.onetrans import OneTrans
from infnet_dist.model.towers.transformer import Transformer
from tests.unit.loops import Row, Weights


@dataclass(frozen=True)
class Case:
    """Sizes of a tower and its inputs; a tower takes those that it has."""

    batch: int = 4
    lengths: tuple[int, ...] = (4, 2)
    tasks: int = 3
    heads: int = 2
    blocks: int = 2
    fields: int = 3
    dim: int = 8
    hubs: int = 5  # categorical hubs or proxies
    shared: int = 2
    masks: str = "random"
    ablate: tuple[str, ...] = ()
    history_reads: str = "all"

    def __str__(self) -> str:
        lengths = "+".join(map(str, self.lengths)) or "0"
        return (
            f"B{self.batch}-L{lengths}-K{self.tasks}-h{self.heads}-N{self.blocks}"
            f"-M{self.fields}-D{self.dim}-n{self.hubs}-s{self.shared}-{self.masks}"
            + "".join(f"-no_{part}" for part in self.ablate)
            + ("" if self.history_reads == "all" else f"-reads_{self.history_reads}")
        )


# ------------------------------------------------------------------------------------------ towers


def infnet(c: Case) -> INFNet:
    return INFNet(
        num_fields=c.fields,
        sequence_lengths=c.lengths,
        num_tasks=c.tasks,
        token_dim=c.dim,
        num_blocks=c.blocks,
        num_heads=c.heads,
        num_shared_tasks=c.shared,
        num_hubs=c.hubs,
        ablate=c.ablate,
        history_reads=c.history_reads,
    )


def user_infnet(c: Case) -> INFNet:
    """Whose history tokens don't depend on the candidate."""
    return infnet(replace(c, history_reads="user"))


def printed_infnet(c: Case) -> INFNet:
    """As in the paper."""
    return infnet(replace(c, ablate=("target_hubs", "task_hubs", "interaction")))


def infnet_paper(c: Case) -> INFNetPaper:
    return INFNetPaper(
        num_fields=c.fields,
        sequence_lengths=c.lengths,
        num_tasks=c.tasks,
        token_dim=c.dim,
        num_blocks=c.blocks,
        num_heads=c.heads,
        num_shared_tasks=c.shared,
        num_proxies=c.hubs,
    )


def onetrans(c: Case) -> OneTrans:
    return OneTrans(
        num_fields=c.fields,
        sequence_lengths=c.lengths,
        num_tasks=c.tasks,
        token_dim=c.dim,
        num_blocks=c.blocks,
        num_heads=c.heads,
    )


def transformer(c: Case) -> Transformer:
    return Transformer(
        num_fields=c.fields,
        sequence_lengths=c.lengths,
        num_tasks=c.tasks,
        token_dim=c.dim,
        num_blocks=c.blocks,
        num_heads=c.heads,
    )


def stack(sequence: str, interaction: str, head: str) -> "Constructor":
    """A stack of three parts, with small sizes, through the builder that runs use."""
    small = {
        "hstu": {"num_layers": 2},
        "deep": {"hidden_dims": (24, 16)},
        "deepfm": {"hidden_dims": (24, 16)},
        "dcn": {"hidden_dims": (24, 16)},
        "dcnv2": {"hidden_dims": (24, 16), "rank": 5},
        "wukong": {"num_fm": 2, "num_compressed": 3, "rank": 3, "hidden_dims": (6,)},
        "rankmixer": {"num_mixed": 4, "mixed_dim": 8},
        "mmoe": {"num_experts": 3, "expert_dim": 6, "expert_dropout": 0.0},
        "ple": {"expert_dim": 6},
    }

    def make(c: Case) -> torch.nn.Module:
        parts = {"sequence": sequence, "interaction": interaction, "head": head}
        options = {kind: {"name": name, **small.get(name, {})} for kind, name in parts.items()}
        return build_tower(
            StackConfig.model_validate({"name": "stack", "token_dim": c.dim, **options}),
            num_fields=c.fields,
            sequence_lengths=c.lengths,
            num_tasks=c.tasks,
        )

    return make


Constructor = Callable[[Case], torch.nn.Module]
TASK_AWARE: dict[str, Constructor] = {
    "infnet": infnet,
    "user_infnet": user_infnet,
    "printed_infnet": printed_infnet,
    "infnet_paper": infnet_paper,
    "transformer": transformer,
}
ORDERED: dict[str, Constructor] = {  # the order of a behaviour's items matters
    "dien": stack("dien", "deep", "linear"),
    "onetrans": onetrans,
}
UNORDERED: dict[str, Constructor] = TASK_AWARE | {
    "fm": stack("mean", "fm", "linear"),
    "deepfm": stack("mean", "deepfm", "linear"),
    "dcn": stack("mean", "dcn", "linear"),
    "dcnv2": stack("mean", "dcnv2", "linear"),
    "wukong": stack("mean", "wukong", "shared_bottom"),
    "rankmixer": stack("mean", "rankmixer", "shared_bottom"),
    "din": stack("din", "deep", "linear"),
    "hstu": stack("hstu", "deep", "linear"),
    "shared_bottom": stack("din", "dcnv2", "shared_bottom"),
    "mmoe": stack("din", "dcnv2", "mmoe"),
    "ple": stack("din", "dcnv2", "ple"),
}
TOWERS = UNORDERED | ORDERED

each_tower = pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)


def make_model(tower: Constructor, c: Case, seed: int = 0, noise: float = 0.3) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = tower(c)
    # Norms start at (1, 0) and some biases at 0: move them, or a swap of two would go unseen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model.eval()


# ------------------------------------------------------------------------------------------ inputs


def make_mask(c: Case, generator: torch.Generator) -> torch.Tensor:
    length = sum(c.lengths)
    if c.masks == "full":
        return torch.ones(c.batch, length, dtype=torch.bool)
    if c.masks == "empty":
        return torch.zeros(c.batch, length, dtype=torch.bool)
    mask = torch.rand(c.batch, length, generator=generator) < 0.6
    if c.masks == "no-first-behaviour":
        mask[:, : c.lengths[0]] = False
        mask[:, -1] = True
    elif length:
        mask[0, -1] = True
        mask[1:2] = False  # the second row, if there is one, has no history
        if len(c.lengths) > 1:
            mask[2:3, : c.lengths[0]] = False  # the third lacks one behaviour
            mask[2:3, -1] = True
    return mask


def make_tokens(c: Case, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tokens:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = make_mask(c, generator)
    fields = normal(c.batch, c.fields, c.dim)
    items = normal(c.batch, sum(c.lengths), c.dim).masked_fill(~mask.unsqueeze(-1), 0.0)
    tasks = normal(c.tasks, c.dim).expand(c.batch, -1, -1)
    return Tokens(fields, items, mask, normal(c.batch, len(c.lengths), c.dim), tasks)


def with_leaves(tokens: Tokens) -> tuple[Tokens, list[torch.Tensor]]:
    """The same tokens, and those of fields, items and tasks, which take gradients."""
    fields, items, tasks = (
        part.clone().requires_grad_()
        for part in (tokens.categorical_BMD, tokens.sequence_BLD, tokens.task_BKD)
    )
    return tokens._replace(categorical_BMD=fields, sequence_BLD=items, task_BKD=tasks), [
        fields,
        items,
        tasks,
    ]


def reordered(tokens: Tokens, order: torch.Tensor) -> Tokens:
    """The same items at other positions."""
    return tokens._replace(
        sequence_BLD=tokens.sequence_BLD[:, order], mask_BL=tokens.mask_BL[:, order]
    )


# --------------------------------------------------------------------------------- the references

REFERENCE_CASES = [
    Case(),
    Case(blocks=3),
    Case(heads=1),
    Case(heads=4, blocks=3),
    Case(tasks=1),
    Case(tasks=1, batch=1, heads=1),
    Case(lengths=()),
    Case(lengths=(), tasks=1, heads=1, blocks=3),
    Case(lengths=(), batch=1),
    Case(lengths=(5,)),
    Case(lengths=(5,), heads=1, blocks=3, batch=1),
    Case(lengths=(1,), tasks=1),
    Case(lengths=(2, 3, 1), blocks=3),
    Case(masks="full"),
    Case(masks="empty", blocks=3),
    Case(masks="empty", batch=1),
    Case(masks="no-first-behaviour"),
    Case(fields=1, hubs=1, shared=1, blocks=3),
    Case(fields=5, hubs=7, shared=3, dim=4),
]


class Sample(NamedTuple):
    """The tokens of one sample; items and mask run over all behaviours, masked items included."""

    fields: Row
    items: Row
    mask: list[bool]
    targets: Row
    tasks: Row


Reference = Callable[[Weights, Case, Sample], list[float]]  # -> K logits


def check_logits(tower: Constructor, c: Case, reference: Reference) -> None:
    """The tower's logits against its reference, which must have read every parameter."""
    model = make_model(tower, c).double()
    tokens = make_tokens(c)
    weights = Weights(model)
    fields, items, targets, tasks = (
        [list(rows) for rows in part.detach().double().numpy()]
        for part in (
            tokens.categorical_BMD,
            tokens.sequence_BLD,
            tokens.target_BFD,
            tokens.task_BKD,
        )
    )
    samples = zip(fields, items, tokens.mask_BL.tolist(), targets, tasks, strict=True)
    expected = np.array([reference(weights, c, Sample(*sample)) for sample in samples])
    with torch.no_grad():
        logits = model(tokens)
    assert logits.shape == expected.shape == (c.batch, c.tasks)
    assert np.abs(expected).max() > 1e-2, "a degenerate case shows nothing"
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-9, atol=1e-9)
    if c.masks != "empty":  # without items nothing reads what is made from them
        assert weights.read == set(weights.arrays), "a parameter that the equations don't have"
