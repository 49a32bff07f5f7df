"""TokenArch by hand, and together with every tower."""

from typing import Any

import numpy as np
import pytest
import torch

from infnet_dist.model.tokens import TokenArch
from tests.unit.loops import Weights, layer_norm, linear, product
from tests.unit.towers import TASK_AWARE, Case, Constructor, each_tower, make_model

# The first behaviour's items are like field 1; the second's have a part that no field has.
TARGET_FIELDS: list[tuple[int | None, ...]] = [(1,), (0, None)]


def make_arch(
    lengths: tuple[int, ...] = (3, 2),
    num_dense: int = 2,
    num_tasks: int = 3,
    field_widths: tuple[int, int] = (4, 4),
    **options: Any,
) -> TokenArch:
    torch.manual_seed(0)
    arch = TokenArch(
        field_widths=field_widths,
        sequence_lengths=lengths,
        item_widths=[[field_widths[1]], [field_widths[0], 4]][: len(lengths)],
        target_fields=TARGET_FIELDS[: len(lengths)],
        num_dense=num_dense,
        num_tasks=num_tasks,
        token_dim=8,
        num_time_gap_buckets=7,
        **options,
    )
    return arch.eval()


def make_inputs(
    arch: TokenArch,
    lengths: tuple[int, ...] = (3, 2),
    num_dense: int = 2,
    field_widths: tuple[int, int] = (4, 4),
) -> tuple[list, list, list, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    dtype = next(arch.parameters()).dtype

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    masks = [torch.rand(4, length, generator=generator) < 0.5 for length in lengths]
    if masks:
        masks[0][0] = True
        masks[-1][1] = False
    gaps = torch.randint(0, 7, (4, sum(lengths)), generator=generator)
    return (
        [normal(4, width) for width in field_widths],
        [
            normal(4, length, width)
            for length, width in zip(lengths, (field_widths[1], field_widths[0] + 4), strict=False)
        ],
        masks,
        normal(4, num_dense),
        gaps,
    )


@pytest.mark.parametrize(
    ("positions", "field_widths"), [(True, (4, 4)), (False, (4, 4)), (True, (6, 1))]
)
def test_tokens_by_hand(positions: bool, field_widths: tuple[int, int]) -> None:
    arch = make_arch(positions=positions, field_widths=field_widths).double()
    fields, sequences, masks, dense, gaps = make_inputs(arch, field_widths=field_widths)
    w = Weights(arch)
    tokens = arch(fields, sequences, masks, dense, gaps)
    assert [tuple(t.shape) for t in tokens] == [(4, 3, 8), (4, 5, 8), (4, 5), (4, 2, 8), (4, 3, 8)]
    for b in range(4):
        places = [(0, 0), (0, 1)] if field_widths == (4, 4) else [(0, 0), (1, 0)]
        expected = []
        for (group, place), field in zip(places, fields, strict=True):
            weight, bias = (w[f"fields.by_width.{group}.{n}"] for n in ("weight_MED", "bias_M1D"))
            expected.append(product(weight[place].T, field[b].numpy()) + bias[place, 0])
        expected.append(linear(w, "numbers", dense[b].numpy()))
        for m, projected in enumerate(expected):
            token = layer_norm(w, "field_norm", projected)
            np.testing.assert_allclose(tokens.categorical_BMD[b, m].detach(), token, atol=1e-12)
        place = 0
        for f, length in enumerate((3, 2)):
            for i in range(length):
                item = linear(w, f"items.{f}", sequences[f][b, i].numpy())
                if positions:
                    item = item + w["position_LD"][place] + w["time_gap.weight"][gaps[b, place]]
                item = layer_norm(w, "item_norm", item)
                if not masks[f][b, i]:
                    item = np.zeros(8)
                assert bool(tokens.mask_BL[b, place]) == bool(masks[f][b, i])
                np.testing.assert_allclose(tokens.sequence_BLD[b, place].detach(), item, atol=1e-12)
                place += 1
        for f, parts in enumerate(([fields[1][b]], [fields[0][b], torch.zeros(4)])):
            target = linear(w, f"items.{f}", torch.cat(parts).numpy())
            target = layer_norm(w, "item_norm", target)
            np.testing.assert_allclose(tokens.target_BFD[b, f].detach(), target, atol=1e-12)
        np.testing.assert_array_equal(tokens.task_BKD[b].detach(), w["task_KD"])
    assert w.read == set(w.arrays)


def test_padded_items_are_zero_whatever_they_hold() -> None:
    arch = make_arch()
    fields, sequences, masks, dense, gaps = make_inputs(arch)
    before = arch(fields, sequences, masks, dense, gaps)
    assert torch.all(before.sequence_BLD[~before.mask_BL] == 0)
    assert torch.all(before.sequence_BLD[before.mask_BL].abs().sum(-1) > 0)
    noisy = [
        torch.where(m.unsqueeze(-1), x, torch.full_like(x, 1e3))
        for x, m in zip(sequences, masks, strict=True)
    ]
    after = arch(fields, noisy, masks, dense, torch.where(before.mask_BL, gaps, 6))
    assert torch.equal(before.sequence_BLD, after.sequence_BLD)


def test_numbers_are_one_more_token() -> None:
    for num_dense in (0, 1, 4):
        arch = make_arch(num_dense=num_dense)
        tokens = arch(*make_inputs(arch, num_dense=num_dense))
        assert tokens.categorical_BMD.shape == (4, 2 + (num_dense > 0), 8)
        assert arch.num_fields == 2 + (num_dense > 0)


def test_tokens_without_behaviours() -> None:
    arch = make_arch(lengths=())
    tokens = arch(*make_inputs(arch, lengths=()))
    assert tokens.sequence_BLD.shape == (4, 0, 8)
    assert tokens.mask_BL.shape == (4, 0)
    assert tokens.target_BFD.shape == (4, 0, 8)
    assert tokens.mask_BL.dtype == torch.bool
    parts = {n.split(".")[0] for n, _ in arch.named_parameters()}
    assert parts == {"fields", "numbers", "task_KD", "field_norm"}


@each_tower
def test_tokens_and_tower_train_together(tower: Constructor) -> None:
    arch = make_arch(num_tasks=3 if tower in TASK_AWARE.values() else 0).train()
    model = make_model(tower, Case(lengths=(3, 2))).train()
    model(arch(*make_inputs(arch))).square().sum().backward()
    for name, parameter in [*arch.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_without_time_gaps_every_item_has_bucket_0() -> None:
    """The same tokens and gradients as with a tensor of zeros."""
    arch = make_arch().double()
    *inputs, gaps_BL = make_inputs(arch)
    found = []
    for time_gap_BL in (torch.zeros_like(gaps_BL), None):
        arch.zero_grad()
        sequence_BLD = arch(*inputs, time_gap_BL).sequence_BLD
        (
            sequence_BLD * torch.linspace(-1, 1, sequence_BLD.numel()).view_as(sequence_BLD)
        ).sum().backward()
        found.append([sequence_BLD.detach(), arch.time_gap.weight.grad, arch.position_LD.grad])
    for zeros, none in zip(*found, strict=True):
        torch.testing.assert_close(zeros, none)
        assert zeros.any()
