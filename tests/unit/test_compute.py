"""Precision and compilation of the dense part: what they change, and what they leave as it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from infnet_dist.errors import ConfigError
from infnet_dist.model.build import build_train_model
from infnet_dist.model.compute import bf16_autocast, compile_training, set_tf32
from infnet_dist.model.train_model import TrainModel
from tests.mixed import SCHEMA, config_of, make_batch
from tests.unit.towers import Case, Constructor, each_tower, make_model, make_tokens, with_leaves

CPU = torch.device("cpu")


def model_of(**training: Any) -> TrainModel:
    return build_train_model(config_of(training=training), SCHEMA)


@each_tower
@pytest.mark.parametrize("masks", ["random", "empty"])
def test_a_tower_in_bf16_is_near_fp32(tower: Constructor, masks: str) -> None:
    case = Case(batch=16, dim=16, masks=masks)
    model = make_model(tower, case, noise=0.0).train()
    found = {}
    for bf16 in (False, True):
        tokens, leaves = with_leaves(make_tokens(case, dtype=torch.float32))
        torch.manual_seed(0)  # experts are dropped
        with bf16_autocast(CPU) if bf16 else torch.enable_grad():
            logits_BK = model(tokens)
        assert logits_BK.dtype == (torch.bfloat16 if bf16 else torch.float32)
        model.zero_grad()
        logits_BK.float().square().sum().backward()
        found[bf16] = [logits_BK.float(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    for place, (exact, rounded) in enumerate(zip(found[False], found[True], strict=True)):
        assert rounded.isfinite().all()
        allowed = 0.25 if place else 0.03  # a ReLU may be on for one alone
        assert (rounded - exact).norm() <= allowed * exact.norm()


def test_bf16_trains_parameters_and_loss_in_fp32() -> None:
    plain, model, batch = model_of(), model_of(precision="bf16"), make_batch(0)
    plain.load_state_dict(model.state_dict())
    loss, output = model(batch)
    assert loss.dtype == output.logits_BK.dtype == torch.float32
    expected, exact = plain(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    assert not torch.equal(output.logits_BK, exact.logits_BK)
    assert torch.equal(output.logits_BK, output.logits_BK.bfloat16().float()), "before first_order"
    loss.backward()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_evaluation_is_always_in_fp32() -> None:
    plain, model, batch = model_of().eval(), model_of(precision="bf16").eval(), make_batch(0)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(batch)[1].logits_BK, plain(batch)[1].logits_BK)


class Backend:
    """A backend of torch.compile that counts the graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.exhaustive), "bf16"])
def test_compiled_is_one_graph_of_the_same_parameters_for_training_alone(precision: str) -> None:
    torch.compiler.reset()
    plain, model, backend = model_of(precision=precision), model_of(precision=precision), Backend()
    compile_training(model.model.dense, backend=backend)
    assert [*model.state_dict()] == [*plain.state_dict()]
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(*(m.eval()(make_batch(0))[0] for m in (plain, model)))
    assert backend.graphs == 0
    for seed in range(3):
        losses = [m.train()(make_batch(seed))[0] for m in (plain, model)]
        torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
        assert backend.graphs == 1, "nothing is compiled again"
        for loss, m in zip(losses, (plain, model), strict=True):
            m.zero_grad()
            loss.backward()
    gradients = [
        {name: p.grad for name, p in m.named_parameters() if p.grad is not None}
        for m in (plain, model)
    ]
    torch.testing.assert_close(*gradients)


def test_without_a_compiler_the_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"training\.compile.*no-such-compiler"):
        compile_training(torch.nn.Linear(1, 1))


@pytest.fixture
def tf32_flags() -> Iterator[None]:
    """Restores the flags."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_flags")
def test_tf32_is_set_and_unset() -> None:
    for allowed in (True, False):
        set_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
