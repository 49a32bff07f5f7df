"""INFNet v2 (hubs) against a loop-by-loop reference of infnet.md section 3, and the tokens."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from infnet_dist.models.infnet import INFNet
from infnet_dist.tokens import TokenArch, Tokens

Vector = np.ndarray
Row = list[Vector]  # tokens of one sample, each a vector of D float64


# ---------------------------------------------------------------- the reference, one sample a time


class Weights:
    """The state dict in float64; remembers what was read, so that nothing is left over."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.arrays = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add(key)
        return self.arrays[key]


def linear(w: Weights, name: str, x: Vector) -> Vector:
    matrix, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    assert matrix.shape == (len(bias), len(x)), name
    return np.array([float(np.dot(matrix[o], x)) + bias[o] for o in range(len(bias))])


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def mlp(w: Weights, name: str, x: Vector) -> Vector:
    hidden = linear(w, f"{name}.0", x)
    return linear(w, f"{name}.2", np.array([h * sigmoid(h) for h in hidden]))


def layer_norm(w: Weights, name: str, x: Vector) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    normal = np.array([(v - mean) / math.sqrt(variance + 1e-5) for v in x])
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(query: Vector, keys: Row, values: Row, heads: int) -> Vector:
    """One query over the valid keys only; zeros without one."""
    size = len(query) // heads
    result = np.zeros(len(query))
    if not keys:
        return result
    for h in range(heads):
        chunk = slice(h * size, (h + 1) * size)
        scores = [float(np.dot(query[chunk], key[chunk])) / math.sqrt(size) for key in keys]
        top = max(scores)
        powers = [math.exp(score - top) for score in scores]
        for power, value in zip(powers, values, strict=True):
            result[chunk] += power / sum(powers) * value[chunk]
    return result


@dataclass(frozen=True)
class Config:
    batch: int
    lengths: tuple[int, ...]
    tasks: int
    heads: int
    blocks: int
    fields: int = 3
    dim: int = 8
    hubs: int = 5
    shared: int = 2
    masks: str = "random"

    def __str__(self) -> str:
        lengths = "+".join(map(str, self.lengths)) or "0"
        return (
            f"B{self.batch}-L{lengths}-K{self.tasks}-h{self.heads}-N{self.blocks}"
            f"-M{self.fields}-n{self.hubs}-s{self.shared}-{self.masks}"
        )


def split_rows(flat: Vector, dim: int) -> Row:
    return [flat[i : i + dim] for i in range(0, len(flat), dim)]


def reference_row(w: Weights, c: Config, fields: Row, items: Row, mask: list[bool], tasks: Row):
    """Logits of one sample; `items` and `mask` run over all behaviours."""
    groups = {"C": list(fields), "S": list(items), "T": list(tasks)}
    valid = {"C": [True] * len(fields), "S": list(mask), "T": [True] * len(tasks)}
    hubs: dict[str, Row] = {
        "C": split_rows(mlp(w, "hubs.categorical", np.concatenate(fields)), c.dim),
        "S": [],
        "T": list(tasks) + list(w["hubs.shared_ND"]),
    }
    assert len(hubs["C"]) == c.hubs
    start = 0
    for a, length in enumerate(c.lengths):
        total, count = np.zeros(c.dim), 0
        for position in range(start, start + length):
            if mask[position]:
                total, count = total + items[position], count + 1
        mean = total / count if count else total
        hubs["S"].append(mlp(w, f"hubs.behaviours.{a}", mean))
        start += length
    names = ["C", "S", "T"] if c.lengths else ["C", "T"]

    for n in range(c.blocks):
        block = f"blocks.{n}"
        keys: dict[str, Row] = {}
        values: dict[str, Row] = {}
        for j in names:
            both = [
                linear(w, f"{block}.key_value.{j}", token)
                for token, is_valid in zip(groups[j], valid[j], strict=True)
                if is_valid
            ]
            keys[j] = [kv[: c.dim] for kv in both]
            values[j] = [kv[c.dim :] for kv in both]
        new_groups, new_hubs = dict(groups), dict(hubs)
        for g in names if n + 1 < c.blocks else ["T"]:
            updated = []
            for hub in hubs[g]:
                query = linear(w, f"{block}.query.{g}", hub)
                z = np.concatenate([attend(query, keys[j], values[j], c.heads) for j in names])
                mixed = linear(w, f"{block}.mix.{g}", z)
                updated.append(layer_norm(w, f"{block}.hub_norm.{g}", hub + mixed))
            gate = mlp(w, f"{block}.gate.{g}", np.concatenate(updated))
            alpha, beta = gate[: c.dim], gate[c.dim :]
            assert len(beta) == c.dim
            factor = np.array([sigmoid(x) for x in alpha])
            new_hubs[g] = updated
            new_groups[g] = [
                layer_norm(w, f"{block}.token_norm.{g}", x + x * factor + beta) for x in groups[g]
            ]
        groups, hubs = new_groups, new_hubs
    return [float(mlp(w, f"heads.heads.{k}", groups["T"][k])[0]) for k in range(c.tasks)]


def reference(w: Weights, c: Config, tokens: Tokens) -> np.ndarray:
    fields, items, tasks = (t.detach().double().numpy() for t in (tokens[0], tokens[1], tokens[3]))
    masks = tokens.mask_BL.tolist()
    return np.array(
        [
            reference_row(w, c, list(fields[b]), list(items[b]), masks[b], list(tasks[b]))
            for b in range(c.batch)
        ]
    )


# ------------------------------------------------------------------------------------------ inputs


def make_model(c: Config, seed: int = 0, noise: float = 0.3) -> INFNet:
    torch.manual_seed(seed)
    model = INFNet(
        num_fields=c.fields,
        sequence_lengths=c.lengths,
        num_tasks=c.tasks,
        token_dim=c.dim,
        num_blocks=c.blocks,
        num_heads=c.heads,
        num_shared_tasks=c.shared,
        num_hubs=c.hubs,
    )
    # Norms start at (1, 0) and some biases at 0: move them, or a swap of two would go unseen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model.eval()


def make_mask(c: Config, generator: torch.Generator) -> torch.Tensor:
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


def make_tokens(c: Config, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tokens:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = make_mask(c, generator)
    fields = normal(c.batch, c.fields, c.dim)
    items = normal(c.batch, sum(c.lengths), c.dim).masked_fill(~mask.unsqueeze(-1), 0.0)
    tasks = normal(c.tasks, c.dim).expand(c.batch, -1, -1)
    return Tokens(fields, items, mask, tasks)


def make(**changes: Any) -> Config:
    base = {"batch": 4, "lengths": (4, 2), "tasks": 3, "heads": 2, "blocks": 2}
    return Config(**{**base, **changes})


REFERENCE_CASES = [
    make(),
    make(blocks=3),
    make(heads=1),
    make(heads=4, blocks=3),
    make(tasks=1),
    make(tasks=1, batch=1, blocks=2, heads=1),
    make(lengths=()),
    make(lengths=(), tasks=1, heads=1, blocks=3),
    make(lengths=(), blocks=2, batch=1),
    make(lengths=(5,)),
    make(lengths=(5,), heads=1, blocks=3, batch=1),
    make(lengths=(1,), tasks=1),
    make(lengths=(2, 3, 1), blocks=3),
    make(masks="full"),
    make(masks="empty", blocks=3),
    make(masks="empty", batch=1),
    make(masks="no-first-behaviour"),
    make(fields=1, hubs=1, shared=1, blocks=3),
    make(fields=5, hubs=7, shared=3, dim=4),
]


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_logits_match_the_loops(case: Config) -> None:
    model = make_model(case).double()
    tokens = make_tokens(case)
    weights = Weights(model)
    expected = reference(weights, case, tokens)
    with torch.no_grad():
        logits = model(tokens)
    assert logits.shape == (case.batch, case.tasks)
    assert np.abs(expected).max() > 1e-2, "a degenerate case shows nothing"
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-9, atol=1e-9)
    if case.masks != "empty":  # without items nothing reads the keys of S
        assert weights.read == set(weights.arrays), "a parameter that the equations don't have"


# -------------------------------------------------------------------------------------- properties

PROPERTY_CASES = [make(), make(blocks=3, heads=1), make(lengths=(5,), tasks=1), make(masks="empty")]


@pytest.mark.parametrize("case", [*PROPERTY_CASES], ids=str)
def test_padded_positions_are_never_read(case: Config) -> None:
    model = make_model(case)
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


def test_padded_positions_get_no_gradient() -> None:
    case = make()
    tokens = make_tokens(case)
    items = tokens.sequence_BLD.clone().requires_grad_()
    make_model(case).double()(tokens._replace(sequence_BLD=items)).square().sum().backward()
    assert items.grad is not None
    assert torch.all(items.grad[~tokens.mask_BL] == 0)
    assert torch.all(items.grad[tokens.mask_BL].abs().sum(-1) > 0)


@pytest.mark.parametrize("noise", [0.0, 0.3], ids=["as-initialised", "moved"])
@pytest.mark.parametrize(
    "case", [make(), make(blocks=3), make(lengths=()), make(lengths=(5,))], ids=str
)
def test_gradients_reach_every_parameter(case: Config, noise: float) -> None:
    model = make_model(case, noise=noise).train()
    model(make_tokens(case, dtype=torch.float32)).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing, "parameters outside the graph"
    still = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    assert not still, "parameters with gradient zero"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("batch", [1, 4])
def test_without_any_history_all_is_finite(batch: int) -> None:
    case = make(masks="empty", batch=batch, blocks=3)
    model = make_model(case).train()
    tokens = make_tokens(case, dtype=torch.float32)
    leaves = [t.clone().requires_grad_() for t in (tokens[0], tokens[1], tokens[3])]
    logits = model(Tokens(leaves[0], leaves[1], tokens.mask_BL, leaves[2]))
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for leaf in leaves:
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("case", PROPERTY_CASES, ids=str)
def test_a_batch_of_one_equals_its_row(case: Config) -> None:
    model = make_model(case, noise=0.05)
    tokens = make_tokens(case, dtype=torch.float32)
    with torch.no_grad():
        together = model(tokens)
        for b in range(case.batch):
            alone = model(Tokens(*(part[b : b + 1] for part in tokens)))
            torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [make(), make(tasks=1), make(lengths=())], ids=str)
def test_task_tokens_matter(case: Config) -> None:
    model = make_model(case)
    tokens = make_tokens(case, dtype=torch.float32)
    with torch.no_grad():
        before = model(tokens)
        for k in range(case.tasks):
            task_BKD = tokens.task_BKD.clone()
            task_BKD[:, k] += torch.randn(case.dim, generator=torch.Generator().manual_seed(k))
            after = model(tokens._replace(task_BKD=task_BKD))
            assert ((before - after).abs()[:, k] > 1e-4).all()


def test_each_token_matters() -> None:
    case = make(masks="full")
    tokens = make_tokens(case)
    leaves = [t.clone().requires_grad_() for t in (tokens[0], tokens[1], tokens[3])]
    logits = make_model(case).double()(Tokens(leaves[0], leaves[1], tokens.mask_BL, leaves[2]))
    for k in range(case.tasks):
        grads = torch.autograd.grad(logits[:, k].sum(), leaves, retain_graph=True)
        for grad in grads:
            assert torch.all(grad.abs().sum(-1) > 1e-9)


def test_rows_don_t_read_each_other() -> None:
    case = make(masks="full")
    tokens = make_tokens(case)
    leaves = [t.clone().requires_grad_() for t in (tokens[0], tokens[1], tokens[3])]
    logits = make_model(case).double()(Tokens(leaves[0], leaves[1], tokens.mask_BL, leaves[2]))
    for grad in torch.autograd.grad(logits[2].sum(), leaves):
        assert torch.all(grad[[0, 1, 3]] == 0)


def reordered(tokens: Tokens, order: torch.Tensor) -> Tokens:
    return tokens._replace(
        sequence_BLD=tokens.sequence_BLD[:, order], mask_BL=tokens.mask_BL[:, order]
    )


@pytest.mark.parametrize("case", [make(), make(masks="full", blocks=3)], ids=str)
def test_order_within_a_behaviour_doesn_t_matter(case: Config) -> None:
    model = make_model(case, noise=0.05)
    tokens = make_tokens(case, dtype=torch.float32)
    inside = torch.tensor([2, 0, 3, 1, 5, 4])  # behaviours are [0, 4) and [4, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            model(reordered(tokens, inside)), model(tokens), rtol=1e-6, atol=1e-6
        )


def test_moving_an_item_to_another_behaviour_matters() -> None:
    case = make(masks="full")
    model = make_model(case).double()
    tokens = make_tokens(case)
    with torch.no_grad():
        before, after = model(tokens), model(reordered(tokens, torch.tensor([4, 1, 2, 3, 0, 5])))
    assert ((before - after).abs().amax(dim=1) > 1e-7).all()


# ------------------------------------------------------------------------------------------ tokens


def make_arch(
    field_dims: tuple[int, ...] = (3, 5),
    sequence_dims: tuple[int, ...] = (4, 6),
    lengths: tuple[int, ...] = (3, 2),
    numbers: int = 2,
    **options: Any,
) -> TokenArch:
    torch.manual_seed(0)
    arch = TokenArch(
        field_dims=field_dims,
        sequence_dims=sequence_dims,
        sequence_lengths=lengths,
        num_numbers=numbers,
        num_tasks=3,
        token_dim=8,
        num_time_gap_buckets=7,
        **options,
    )
    return arch.eval()


def make_inputs(
    arch: TokenArch,
    field_dims: tuple[int, ...] = (3, 5),
    sequence_dims: tuple[int, ...] = (4, 6),
    lengths: tuple[int, ...] = (3, 2),
    numbers: int = 2,
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
        [normal(4, dim) for dim in field_dims],
        [normal(4, length, dim) for length, dim in zip(lengths, sequence_dims, strict=True)],
        masks,
        normal(4, numbers),
        gaps,
    )


@pytest.mark.parametrize("positions", [True, False])
def test_tokens_by_hand(positions: bool) -> None:
    arch = make_arch(positions=positions).double()
    fields, sequences, masks, dense, gaps = make_inputs(arch)
    w = Weights(arch)
    tokens = arch(fields, sequences, masks, dense, gaps)
    assert [tuple(t.shape) for t in tokens] == [(4, 3, 8), (4, 5, 8), (4, 5), (4, 3, 8)]
    for b in range(4):
        expected = [linear(w, f"fields.{m}", fields[m][b].numpy()) for m in range(2)]
        expected.append(linear(w, "numbers", dense[b].numpy()))
        for m, token in enumerate(expected):
            np.testing.assert_allclose(tokens.categorical_BMD[b, m].detach(), token, atol=1e-12)
        place = 0
        for f, length in enumerate((3, 2)):
            for i in range(length):
                item = linear(w, f"items.{f}", sequences[f][b, i].numpy())
                if positions:
                    item = item + w["position_LD"][place] + w["time_gap.weight"][gaps[b, place]]
                if not masks[f][b, i]:
                    item = np.zeros(8)
                assert bool(tokens.mask_BL[b, place]) == bool(masks[f][b, i])
                np.testing.assert_allclose(tokens.sequence_BLD[b, place].detach(), item, atol=1e-12)
                place += 1
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
    for numbers in (0, 1, 4):
        arch = make_arch(numbers=numbers)
        tokens = arch(*make_inputs(arch, numbers=numbers))
        assert tokens.categorical_BMD.shape == (4, 2 + (numbers > 0), 8)
        assert arch.num_fields == 2 + (numbers > 0)


def test_tokens_without_behaviours() -> None:
    arch = make_arch(sequence_dims=(), lengths=())
    tokens = arch(*make_inputs(arch, sequence_dims=(), lengths=()))
    assert tokens.sequence_BLD.shape == (4, 0, 8)
    assert tokens.mask_BL.shape == (4, 0)
    assert tokens.mask_BL.dtype == torch.bool
    assert {n.split(".")[0] for n, _ in arch.named_parameters()} == {"fields", "numbers", "task_KD"}


def test_tokens_and_tower_train_together() -> None:
    arch = make_arch().train()
    case = make(lengths=(3, 2))
    model = make_model(case).train()
    model(arch(*make_inputs(arch))).square().sum().backward()
    for name, parameter in [*arch.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
