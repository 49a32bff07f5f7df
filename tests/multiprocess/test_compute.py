"""Runs in bf16, and compiled ones: as good as others, resumed by them, and still exact."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.model.compute import compile_training
from infnet_dist.sharding import build
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.trainer import train
from tests.ranks import run_ranks
from tests.run_files import assert_same, assert_same_but_for_a_line, records, tensors
from tests.runs import make_config, make_tiny_set, spoil, stop_one_rank_at_step

TASKS = ("click", "like", "long_view")
LINEAR = {
    "name": "stack",
    "sequence": {"name": "mean"},
    "interaction": {"name": "linear"},
    "head": {"name": "linear"},
    "first_order": True,
    "token_dim": 8,
}


@pytest.fixture(scope="module")
def spoiled_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of known click probabilities, with a row whose loss isn't finite."""
    folder = make_tiny_set(tmp_path_factory.mktemp("data") / "tiny", num_rows=6_000)
    spoil(folder, 3e38)
    return folder


PATIENT = {"hang_timeout_s": 1_500.0}


def config_of(data: Path, folder: Path, /, **changes: Any) -> Config:
    training = {"max_skipped_steps": 1, "log_every_steps": 7} | changes.pop("training", {})
    linear = changes.pop("linear", False)
    # A first step compiles, which takes minutes on a busy machine.
    config = make_config(data, folder, training=training, scaling=PATIENT, **changes)
    return config.model_validate(config.model_dump() | {"model": LINEAR}) if linear else config


def losses(run: Path) -> list[float]:
    return [r["train/loss/total"] for r in records(run) if "train/loss/total" in r]


def newest(run: Path) -> Folder:
    found = checkpoint.newest(Folder(run / "checkpoints"))
    assert found is not None
    return found


def test_bf16_ranks_as_fp32_does_and_skips_what_is_not_finite(
    spoiled_set: Path, tmp_path: Path
) -> None:
    summaries, found = {}, {}
    for precision in ("fp32", "bf16"):
        config = config_of(spoiled_set, tmp_path, training={"precision": precision})
        run = tmp_path / precision
        summaries[precision] = run_ranks(train, 2, config=config, run_folder=run)[0]
        assert summaries[precision]["skipped_steps"] == 1
        found[precision] = tensors(run)
    exact, rounded = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert exact != rounded
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
    for task in TASKS:
        one, other = (summaries[p]["metrics"][f"valid/auc/{task}"] for p in ("fp32", "bf16"))
        assert one > 0.55, "what is planted is learned"
        assert abs(one - other) < 0.01
    dtypes = {p: {name: value.dtype for name, value in found[p].items()} for p in ("fp32", "bf16")}
    assert dtypes["bf16"] == dtypes["fp32"]
    # Evaluated by itself, whatever the precision of training, as in training.
    for precision in ("fp32", "bf16"):
        config = config_of(spoiled_set, tmp_path, training={"precision": precision})
        path = newest(tmp_path / "bf16")
        result = run_ranks(evaluate_checkpoint, 2, config=config, path=path, split="valid")[0]
        assert result["metrics"] == summaries["bf16"]["metrics"]


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the backend of torch.compile, of the workers too, which are forked."""

    def set_backend(backend: str) -> None:
        torch.compiler.reset()
        monkeypatch.setattr(build, "compile_training", partial(compile_training, backend=backend))

    return set_backend


@pytest.mark.parametrize(
    ("backend", "linear", "precision"),
    [
        ("aot_eager", True, "fp32"),
        pytest.param("inductor", True, "fp32", marks=pytest.mark.exhaustive),
        pytest.param("inductor", False, "fp32", marks=pytest.mark.exhaustive),
        pytest.param("inductor", False, "bf16", marks=pytest.mark.exhaustive),
    ],
    ids=["traced", "linear", "infnet", "infnet in bf16"],
)
def test_compiled_runs_equal_eager_ones_and_resume_them(
    spoiled_set: Path,
    tmp_path: Path,
    compile_by: Callable[[str], None],
    backend: str,
    linear: bool,
    precision: str,
) -> None:
    compile_by(backend)

    def config(compiled: bool) -> Config:
        training = {"compile": compiled, "precision": precision, "max_steps": 16}
        return config_of(spoiled_set, tmp_path, training=training, linear=linear)

    eager, resumed = tmp_path / "eager", tmp_path / "resumed"
    summary = run_ranks(train, 2, config=config(False), run_folder=eager)[0]
    settings = {"config": config(True), "run_folder": resumed}
    run_ranks(stop_one_rank_at_step, 2, step=6, **settings)
    assert tensors(resumed).keys() == tensors(eager).keys()
    settings["config"] = config(False)
    if backend == "inductor":  # back and forth
        run_ranks(stop_one_rank_at_step, 2, step=10, **settings)
        settings["config"] = config(True)
    found = run_ranks(train, 2, **settings)[0]
    assert found["steps"] == summary["steps"] == 16
    rtol = 1e-4 if precision == "fp32" else 1e-2
    for task in TASKS:
        key = f"valid/log_loss/{task}"
        assert found["metrics"][key] == pytest.approx(summary["metrics"][key], rel=rtol)
    one, other = tensors(resumed), tensors(eager)
    assert one.keys() == other.keys()
    if precision == "fp32":
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def train_dropping(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    """Train with dropout in a process that compiled nothing before."""
    torch.compiler.reset()
    return train(context, config, run_folder=run_folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_resumes_bit_identically(
    spoiled_set: Path, tmp_path: Path, precision: str
) -> None:
    training = {"compile": True, "precision": precision, "max_steps": 30}
    config = config_of(spoiled_set, tmp_path, training=training, model={"dropout": 0.2})
    whole, stopped, again = (tmp_path / name for name in ("whole", "stopped", "again"))
    run_ranks(train_dropping, 3, config=config, run_folder=whole)
    run_ranks(train_dropping, 3, config=config, run_folder=again)
    assert_same(again, whole)
    run_ranks(stop_one_rank_at_step, 3, config=config, run_folder=stopped, step=15)
    run_ranks(train_dropping, 3, config=config, run_folder=stopped)
    assert_same_but_for_a_line(stopped, whole, step=17)
