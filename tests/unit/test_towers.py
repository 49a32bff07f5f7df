"""What holds for every tower, whatever its equations."""

import pytest
import torch

from infnet_dist.model.tokens import Tokens
from tests.unit.towers import (
    TASK_AWARE,
    TOWERS,
    UNORDERED,
    Case,
    Constructor,
    each_tower,
    make_model,
    make_tokens,
    reordered,
    with_leaves,
)

PROPERTY_CASES = [
    Case(),
    Case(fields=1),
    Case(blocks=3, heads=1),
    Case(lengths=(5,), tasks=1),
    Case(masks="empty"),
]


# ----------------------------------------------------------------------------------------- padding


@each_tower
@pytest.mark.parametrize("case", PROPERTY_CASES, ids=str)
def test_padded_positions_are_never_read(tower: Constructor, case: Case) -> None:
    model = make_model(tower, case)
    tokens = make_tokens(case, dtype=torch.float32)
    padded = ~tokens.mask_BL.unsqueeze(-1)
    assert padded.any()
    noise = 1e3 * torch.randn(tokens.sequence_BLD.shape, generator=torch.Generator().manual_seed(5))
    changed = tokens._replace(sequence_BLD=torch.where(padded, noise, tokens.sequence_BLD))
    with torch.no_grad():
        assert torch.equal(model(tokens), model(changed))
        if tokens.mask_BL.any():
            moved = torch.where(padded, tokens.sequence_BLD, noise)
            assert not torch.equal(model(tokens), model(tokens._replace(sequence_BLD=moved)))


@each_tower
def test_padded_positions_get_no_gradient(tower: Constructor) -> None:
    case = Case()
    tokens, (_, items, _) = with_leaves(make_tokens(case))
    make_model(tower, case).double()(tokens).square().sum().backward()
    assert items.grad is not None
    assert torch.all(items.grad[~tokens.mask_BL] == 0)
    assert torch.all(items.grad[tokens.mask_BL].abs().sum(-1) > 0)


@each_tower
@pytest.mark.parametrize("batch", [1, 4])
def test_without_any_history_all_is_finite(tower: Constructor, batch: int) -> None:
    case = Case(masks="empty", batch=batch, blocks=3)
    model = make_model(tower, case).train()
    tokens, leaves = with_leaves(make_tokens(case, dtype=torch.float32))
    logits = model(tokens)
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for leaf in leaves:
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()


# --------------------------------------------------------------------------------------- gradients


@each_tower
@pytest.mark.parametrize("noise", [0.0, 0.3], ids=["as-initialised", "moved"])
@pytest.mark.parametrize(
    "case", [Case(), Case(blocks=3), Case(lengths=()), Case(lengths=(5,))], ids=str
)
def test_gradients_reach_every_parameter(tower: Constructor, case: Case, noise: float) -> None:
    model = make_model(tower, case, noise=noise).train()
    model(make_tokens(case, dtype=torch.float32)).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing, "parameters outside the graph"
    still = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    assert not still, "parameters with gradient zero"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# -------------------------------------------------------------------------- which token reads which


@pytest.mark.parametrize("tower", TASK_AWARE.values(), ids=TASK_AWARE)
@pytest.mark.parametrize("case", [Case(), Case(tasks=1), Case(lengths=())], ids=str)
def test_task_tokens_matter(tower: Constructor, case: Case) -> None:
    model = make_model(tower, case)
    tokens = make_tokens(case, dtype=torch.float32)
    with torch.no_grad():
        before = model(tokens)
        for k in range(case.tasks):
            task_BKD = tokens.task_BKD.clone()
            task_BKD[:, k] += torch.randn(case.dim, generator=torch.Generator().manual_seed(k))
            after = model(tokens._replace(task_BKD=task_BKD))
            assert ((before - after).abs()[:, k] > 1e-4).all()


@each_tower
def test_each_token_matters(tower: Constructor) -> None:
    case = Case(masks="full")
    tokens, leaves = with_leaves(make_tokens(case))
    logits = make_model(tower, case).double()(tokens)
    if tower not in TASK_AWARE.values():
        leaves = leaves[:2]
    for k in range(case.tasks):
        grads = torch.autograd.grad(logits[:, k].sum(), leaves, retain_graph=True)
        for grad in grads:
            # In some row: a row whose gates choose an expert without a live ReLU says nothing.
            assert torch.all(grad.abs().sum(-1).amax(0) > 1e-9)


# ------------------------------------------------------------------------------- rows and positions


@each_tower
@pytest.mark.parametrize("case", PROPERTY_CASES, ids=str)
def test_a_batch_of_one_equals_its_row(tower: Constructor, case: Case) -> None:
    model = make_model(tower, case, noise=0.05)
    tokens = make_tokens(case, dtype=torch.float32)
    with torch.no_grad():
        together = model(tokens)
        for b in range(case.batch):
            alone = model(Tokens(*(part[b : b + 1] for part in tokens)))
            torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-6, atol=1e-6)


@each_tower
def test_rows_don_t_read_each_other(tower: Constructor) -> None:
    case = Case(masks="full")
    tokens, leaves = with_leaves(make_tokens(case))
    logits = make_model(tower, case).double()(tokens)
    for grad in torch.autograd.grad(logits[2].sum(), leaves, allow_unused=True):
        assert grad is None or torch.all(grad[[0, 1, 3]] == 0)


@pytest.mark.parametrize("tower", UNORDERED.values(), ids=UNORDERED)
@pytest.mark.parametrize("case", [Case(), Case(masks="full", blocks=3)], ids=str)
def test_order_within_a_behaviour_doesn_t_matter(tower: Constructor, case: Case) -> None:
    model = make_model(tower, case, noise=0.05)
    tokens = make_tokens(case, dtype=torch.float32)
    inside = torch.tensor([2, 0, 3, 1, 5, 4])  # behaviours are [0, 4) and [4, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            model(reordered(tokens, inside)), model(tokens), rtol=1e-6, atol=1e-6
        )


# These know behaviours by their tokens alone, which are mapped by behaviour.
BLIND = ("hstu", "transformer")


@pytest.mark.parametrize("tower", [t for n, t in TOWERS.items() if n not in BLIND])
def test_moving_an_item_to_another_behaviour_matters(tower: Constructor) -> None:
    case = Case(masks="full")
    model = make_model(tower, case).double()
    tokens = make_tokens(case)
    with torch.no_grad():
        before, after = model(tokens), model(reordered(tokens, torch.tensor([4, 1, 2, 3, 0, 5])))
    assert ((before - after).abs().amax(dim=1) > 1e-7).all()
