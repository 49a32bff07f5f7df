"""Each baseline against its equations, written as loops, or against TorchRec's module."""

import math

import numpy as np
import pytest
import torch
from torchrec.modules.crossnet import LowRankCrossNet, VectorCrossNet
from torchrec.modules.deepfm import FactorizationMachine

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
from infnet_dist.model.towers.onetrans import OneTrans
from infnet_dist.model.towers.ple import PLE
from infnet_dist.model.towers.rankmixer import RankMixer
from infnet_dist.model.towers.shared_bottom import LinearHead, SharedBottom
from infnet_dist.model.towers.wukong import Wukong
from tests.unit.loops import Row, Vector, Weights, layer_norm, linear, mlp, product, sigmoid, wukong
from tests.unit.towers import Case, make_tokens

B, N, D = 3, 4, 6


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """In float64, with weights off their start, so that no norm or bias goes unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def some_tokens(count: int = N, dim: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, count, dim, generator=generator, dtype=torch.float64)


def relu(x: Vector) -> Vector:
    return np.array([max(v, 0.0) for v in x])


def hidden(w: Weights, name: str, x: Vector, layers: int = 1) -> Vector:
    """Linear and ReLU, so many times."""
    for layer in range(layers):
        x = relu(linear(w, f"{name}.{2 * layer}", x))
    return x


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def check(model: torch.nn.Module, inputs: torch.Tensor, expected: list, w: Weights) -> None:
    """`expected` is one list of numbers a row; every weight must have been read."""
    with torch.no_grad():
        found = model(inputs).numpy()
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-9, atol=1e-9)
    assert w.read == set(w.arrays), "a parameter that the equations don't have"


# ------------------------------------------------------------------------------------ interactions


@pytest.mark.parametrize("count", [1, N])
def test_fm_is_the_sum_over_pairs(count: int) -> None:
    tokens = some_tokens(count)
    found = FM(num_tokens=count, token_dim=D)(tokens).numpy()
    for b, x in enumerate(tokens.numpy()):
        pairs = np.zeros(D)
        for i in range(count):
            for j in range(i + 1, count):
                pairs += x[i] * x[j]
        np.testing.assert_allclose(found[b], [*x.reshape(-1), *pairs], atol=1e-12)


def test_fm_equals_torchrec_s_for_width_one() -> None:
    """Wider, TorchRec's multiplies factor f of one field with factor g of another as well."""
    tokens = some_tokens(5, 1)
    pairs = FM(num_tokens=5, token_dim=1)(tokens)[:, -1:]
    torch.testing.assert_close(pairs, FactorizationMachine()([tokens]))


def test_linear_is_no_more_than_its_tokens() -> None:
    tokens = some_tokens()
    assert torch.equal(Linear(num_tokens=N, token_dim=D)(tokens), tokens.flatten(1))


def test_deep_and_deepfm() -> None:
    tokens = some_tokens()
    sizes = {"num_tokens": N, "token_dim": D}
    deep = moved(Deep(**sizes, hidden_dims=(7, 5)))
    w = Weights(deep)
    check(deep, tokens, [hidden(w, "layers", x.reshape(-1), 2) for x in tokens.numpy()], w)
    both = moved(DeepFM(**sizes, hidden_dims=(7, 5)))
    parts = [FM(**sizes)(tokens), both.deep(tokens)]
    assert torch.equal(both(tokens), torch.cat(parts, dim=1))
    assert both(tokens).shape == (B, both.out_dim)


def test_dcn_equals_torchrec_s_and_its_formula() -> None:
    tokens = some_tokens()
    model = moved(DCN(num_tokens=N, token_dim=D, num_layers=2, hidden_dims=(7,)))
    theirs = VectorCrossNet(N * D, num_layers=2).double()
    for layer in range(2):
        theirs.kernels[layer].data = model.weight[layer].weight.data.T.clone()
        theirs.bias[layer].data = model.bias[layer].data.unsqueeze(1).clone()
    torch.testing.assert_close(model(tokens)[:, : N * D], theirs(tokens.flatten(1)))
    w, expected = Weights(model), []
    for x in tokens.numpy():
        first = cross = x.reshape(-1)
        for layer in range(2):
            dot = float(w[f"weight.{layer}.weight"][0] @ cross)
            cross = first * dot + w[f"bias.{layer}"] + cross
        expected.append([*cross, *hidden(w, "deep.layers", first)])
    check(model, tokens, expected, w)


def test_dcnv2_equals_torchrec_s_and_its_formula() -> None:
    tokens = some_tokens()
    model = moved(DCNv2(num_tokens=N, token_dim=D, num_layers=2, rank=3, hidden_dims=(7,)))
    theirs = LowRankCrossNet(N * D, num_layers=2, low_rank=3).double()
    for layer in range(2):
        theirs.V_kernels[layer].data = model.down[layer].weight.data.clone()
        theirs.W_kernels[layer].data = model.up[layer].weight.data.clone()
        theirs.bias[layer].data = model.up[layer].bias.data.clone()
    torch.testing.assert_close(model(tokens)[:, : N * D], theirs(tokens.flatten(1)))
    w, expected = Weights(model), []
    for x in tokens.numpy():
        first = cross = x.reshape(-1)
        for layer in range(2):
            matrix = w[f"up.{layer}.weight"] @ w[f"down.{layer}.weight"]
            cross = first * (matrix @ cross + w[f"up.{layer}.bias"]) + cross
        expected.append([*cross, *hidden(w, "deep.layers", first)])
    check(model, tokens, expected, w)


@pytest.mark.parametrize("count", [1, N, 5])
def test_wukong_by_hand(count: int) -> None:
    tokens = some_tokens(count)
    model = moved(
        Wukong(
            num_tokens=count,
            token_dim=D,
            num_layers=2,
            num_fm=2,
            num_compressed=3,
            rank=2,
            hidden_dims=(7,),
        )
    )
    w = Weights(model)
    expected = [wukong(w, "", list(x), num_fm=2) for x in tokens.numpy()]
    check(model, tokens, expected, w)


@pytest.mark.parametrize("count", [1, N, 5])
def test_rankmixer_by_hand(count: int) -> None:
    tokens = some_tokens(count)
    heads, dim = 2, 8
    model = moved(
        RankMixer(num_tokens=count, token_dim=D, num_mixed=heads, mixed_dim=dim, num_blocks=2)
    )
    w, expected = Weights(model), []

    def own(name: str, t: int, x: Vector) -> Vector:
        return x @ w[f"{name}.weight_TIO"][t] + w[f"{name}.bias_TO"][t]

    def gelu(x: Vector) -> Vector:
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])

    for x in tokens.numpy():
        flat = x.reshape(-1)
        size = -(-len(flat) // heads)
        flat = np.concatenate([flat, np.zeros(size * heads - len(flat))])
        mixed = [own("project", t, flat[t * size : (t + 1) * size]) for t in range(heads)]
        for block in (f"blocks.{i}" for i in range(2)):
            part = dim // heads
            swapped = [
                np.concatenate([token[h * part : (h + 1) * part] for token in mixed])
                for h in range(heads)
            ]
            middle = [
                layer_norm(w, f"{block}.mix_norm", s + t)
                for s, t in zip(swapped, mixed, strict=True)
            ]
            mixed = [
                layer_norm(
                    w,
                    f"{block}.norm",
                    own(f"{block}.down", t, gelu(own(f"{block}.up", t, s))) + s,
                )
                for t, s in enumerate(middle)
            ]
        expected.append(sum(mixed) / heads)
    check(model, tokens, expected, w)


# ------------------------------------------------------------------------------- multi-task heads


@pytest.mark.parametrize("tasks", [1, 3])
def test_linear_and_shared_bottom(tasks: int) -> None:
    shared = some_tokens()[:, 0]
    model = moved(SharedBottom(in_dim=D, num_tasks=tasks, tower_dim=5))
    w = Weights(model)
    expected = [[tower(w, k, x) for k in range(tasks)] for x in shared.numpy()]
    check(model, shared, expected, w)
    head = moved(LinearHead(in_dim=D, num_tasks=tasks))
    w = Weights(head)
    expected = [w["weight"] @ x + w["bias"] for x in shared.numpy()]
    check(head, shared, expected, w)


def tower(w: Weights, k: int, x: Vector) -> float:
    return float(linear(w, f"towers.{k}.1", hidden(w, f"towers.{k}.0", x))[0])


@pytest.mark.parametrize("tasks", [1, 3])
def test_mmoe_by_hand(tasks: int) -> None:
    shared = some_tokens()[:, 0]
    model = moved(MMoE(in_dim=D, num_tasks=tasks, num_experts=3, expert_dim=5, tower_dim=4))
    w, expected = Weights(model), []
    for x in shared.numpy():
        experts = hidden(w, "experts", x).reshape(3, 5)  # one after the other
        gates = product(w["gates.weight"], x).reshape(tasks, 3)
        row = []
        for k in range(tasks):
            gate = softmax(list(gates[k]))
            row.append(tower(w, k, sum(g * e for g, e in zip(gate, experts, strict=True))))
        expected.append(row)
    check(model, shared, expected, w)


def test_expert_dropout_leaves_out_its_share_and_keeps_the_sum() -> None:
    torch.manual_seed(0)
    model = MMoE(in_dim=D, num_tasks=1, num_experts=4, expert_dropout=0.3).train()
    gate = torch.rand(20_000, 4).softmax(dim=1)
    dropped = model._drop(gate)
    torch.testing.assert_close(dropped.sum(dim=1), torch.ones(20_000))
    # All four at once would leave nothing: such a row keeps all.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3 - 0.3**4, abs=0.01)
    kept = dropped > 0
    torch.testing.assert_close(
        dropped, torch.where(kept, gate, 0) / torch.where(kept, gate, 0).sum(1, keepdim=True)
    )
    assert torch.equal(model.eval()._drop(gate), gate)


@pytest.mark.parametrize(("tasks", "levels"), [(1, 1), (1, 2), (2, 3)])
def test_ple_by_hand(tasks: int, levels: int) -> None:
    shared = some_tokens()[:, 0]
    model = moved(
        PLE(
            in_dim=D,
            num_tasks=tasks,
            num_levels=levels,
            num_own=2,
            num_shared=1,
            expert_dim=5,
            tower_dim=4,
        )
    )
    w, expected = Weights(model), []
    for x in shared.numpy():
        parts = [x] * (tasks + 1)
        for level in range(levels):
            name = f"levels.{level}"
            own = [
                [hidden(w, f"{name}.experts.{2 * k + i}", parts[k]) for i in range(2)]
                for k in range(tasks)
            ]
            common = [hidden(w, f"{name}.experts.{2 * tasks}", parts[tasks])]
            seen = [own[k] + common for k in range(tasks)]
            if level < levels - 1:
                seen.append([e for group in own for e in group] + common)
            parts = [
                mix(product(w[f"{name}.gates.{k}.weight"], parts[k]), outputs)
                for k, outputs in enumerate(seen)
            ]
        expected.append([tower(w, k, parts[k]) for k in range(tasks)])
    check(model, shared, expected, w)


def mix(scores: Vector, outputs: Row) -> Vector:
    weights = softmax(list(scores))
    return np.array(sum(g * e for g, e in zip(weights, outputs, strict=True)))


# ---------------------------------------------------------------------------------- sequence parts

CASES = [
    Case(dim=D),
    Case(dim=D, lengths=(5,)),
    Case(dim=D, lengths=(2, 3, 1)),
    Case(dim=D, masks="empty"),
    Case(dim=D, masks="full"),
]


def behaviours(c: Case, tokens: dict[str, np.ndarray], b: int) -> list[tuple[Row, Vector]]:
    """Valid items, newest first, and the candidate, of each behaviour of row b."""
    found, start = [], 0
    for f, length in enumerate(c.lengths):
        places = [i for i in range(start, start + length) if tokens["mask_BL"][b, i]]
        found.append(([tokens["sequence_BLD"][b, i] for i in places], tokens["target_BFD"][b, f]))
        start += length
    return found


def arrays(case: Case) -> tuple:
    tokens = make_tokens(case)
    return tokens, {name: part.numpy() for name, part in tokens._asdict().items()}


def check_summaries(model: torch.nn.Module, tokens, expected: list, w: Weights, c: Case) -> None:
    with torch.no_grad():
        found = model(tokens).numpy()
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-9, atol=1e-9)
    if c.masks != "empty":
        assert w.read == set(w.arrays)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_din_by_hand(case: Case) -> None:
    model = moved(DIN(sequence_lengths=case.lengths, token_dim=D, hidden_dim=5))
    tokens, plain = arrays(case)
    w, expected = Weights(model), []
    for b in range(case.batch):
        row = []
        for f, (items, target) in enumerate(behaviours(case, plain, b)):
            total = np.zeros(D)
            for item in items:
                pair = np.concatenate([item, target, item - target, item * target])
                total = total + mlp(w, f"activation.{f}", pair)[0] * item
            row.append(total)
        expected.append(row)
    check_summaries(model, tokens, expected, w, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dien_by_hand(case: Case) -> None:
    model = moved(DIEN(sequence_lengths=case.lengths, token_dim=D))
    tokens, plain = arrays(case)
    w, expected = Weights(model), []
    cell = torch.nn.GRUCell(D, D).double()
    cell.load_state_dict(
        {k.removesuffix("_l0"): v for k, v in model.extractor.state_dict().items()}
    )
    w.read |= {name for name in w.arrays if name.startswith("extractor.")}
    for b in range(case.batch):
        row = []
        for items, target in behaviours(case, plain, b):
            states, state = [], torch.zeros(1, D, dtype=torch.float64)
            for item in reversed(items):  # the oldest first
                state = cell(torch.from_numpy(item).unsqueeze(0), state)
                states.append(state[0].detach().numpy())
            compared = product(w["compare.weight"], target)
            weights = softmax([float(s @ compared) for s in states]) if states else []
            h = np.zeros(D)
            for a, x in zip(weights, states, strict=True):
                given = linear(w, "evolution.input", x)
                kept = product(w["evolution.state.weight"], h)
                update = np.array([a * sigmoid(v) for v in (given + kept)[:D]])
                reset = np.array([sigmoid(v) for v in (given + kept)[D : 2 * D]])
                new = np.tanh(given[2 * D :] + reset * kept[2 * D :])
                h = (1 - update) * h + update * new
            row.append(h)
        expected.append(row)
    check_summaries(model, tokens, expected, w, case)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hstu_by_hand(case: Case, heads: int) -> None:
    model = moved(HSTU(sequence_lengths=case.lengths, token_dim=D, num_layers=2, num_heads=heads))
    tokens, plain = arrays(case)
    w, expected = Weights(model), []
    length, size = sum(case.lengths), D // heads
    for b in range(case.batch):
        x = [*plain["sequence_BLD"][b], *plain["target_BFD"][b]]
        valid = [*plain["mask_BL"][b], *[False] * len(case.lengths)]
        for layer in (f"layers.{i}" for i in range(2)):
            parts = []
            for token in x:
                z = linear(w, f"{layer}.project", layer_norm(w, f"{layer}.norm", token))
                parts.append(np.split(np.array([v * sigmoid(v) for v in z]), 4))
            new = []
            for i, token in enumerate(x):
                gate, _, query, _ = parts[i]
                read = np.zeros(D)
                for j in range(len(x)):
                    if not (valid[j] or i == j):
                        continue
                    for h in range(heads):
                        s = slice(h * size, (h + 1) * size)
                        score = float(query[s] @ parts[j][3][s])
                        read[s] += score * sigmoid(score) / len(x) * parts[j][1][s]
                gated = layer_norm(w, f"{layer}.read_norm", read) * gate
                new.append(token + linear(w, f"{layer}.out", gated))
            x = new
        expected.append(x[length:])
    check_summaries(model, tokens, expected, w, case)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("case", [*CASES, Case(dim=D, lengths=(), tasks=1, fields=1)], ids=str)
def test_onetrans_by_hand(case: Case, blocks: int) -> None:
    model = moved(
        OneTrans(
            num_fields=case.fields,
            sequence_lengths=case.lengths,
            num_tasks=case.tasks,
            token_dim=D,
            num_blocks=blocks,
            num_heads=2,
        )
    )
    tokens, plain = arrays(case)
    w, expected = Weights(model), []
    total = sum(case.lengths) + len(case.lengths)

    def mixed(name: str, field: int | None, x: Vector) -> Vector:
        if field is None:
            return linear(w, f"{name}.history", x)
        return x @ w[f"{name}.fields.weight_TIO"][field] + w[f"{name}.fields.bias_TO"][field]

    def rms_norm(name: str, x: Vector) -> Vector:
        return x / math.sqrt(float(np.mean(x * x)) + np.finfo(np.float64).eps) * w[f"{name}.weight"]

    for b in range(case.batch):
        # (token, valid, field number or None for history)
        x: list[tuple[Vector, bool, int | None]] = []
        start = 0
        for f, length in enumerate(case.lengths):
            for i in reversed(range(start, start + length)):
                x.append((plain["sequence_BLD"][b, i], bool(plain["mask_BL"][b, i]), None))
            x.append((w["separator_FD"][f], True, None))
            start += length
        x += [(token, True, m) for m, token in enumerate(plain["categorical_BMD"][b])]
        for n in range(blocks):
            block = f"blocks.{n}"
            left = total * (blocks - n - 1) // blocks + case.fields
            normed = [rms_norm(f"{block}.norm", token) for token, _, _ in x]
            both = [
                mixed(f"{block}.key_value", field, z)
                for z, (_, _, field) in zip(normed, x, strict=True)
            ]
            new = []
            for i in range(len(x) - left, len(x)):
                token, valid, field = x[i]
                query, read = mixed(f"{block}.query", field, normed[i]), np.zeros(D)
                seen = [j for j in range(i + 1) if x[j][1] or j == i]
                for h in range(2):
                    s = slice(h * D // 2, (h + 1) * D // 2)
                    scores = [float(query[s] @ both[j][:D][s]) / math.sqrt(D / 2) for j in seen]
                    weights = softmax(scores)
                    for a, j in zip(weights, seen, strict=True):
                        read[s] += a * both[j][D:][s]
                token = token + linear(w, f"{block}.out", read)
                up = mixed(f"{block}.up", field, rms_norm(f"{block}.ffn_norm", token))
                up = np.array([v * sigmoid(v) for v in up])
                new.append((token + mixed(f"{block}.down", field, up), valid, field))
            x = new
        mean = sum(rms_norm("norm", token) for token, _, _ in x) / case.fields
        expected.append(linear(w, "head", mean))
    check_summaries(model, tokens, expected, w, case)
