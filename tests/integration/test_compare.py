"""`python -m ray_jobs.compare` on a tiny set: trials, report, and a second run with no work."""

import json
import os
from pathlib import Path

import pytest

from infnet_dist.errors import UserError
from ray_jobs.compare import main
from tests.runs import make_tiny_set

PROTOCOL = """
base: base.yaml
set: {training.eval_every_steps: 10}
seeds: [0, 1]
models:
  fm: {name: stack, sequence: {name: mean}, interaction: {name: fm}, head: {name: linear}}
"""
MODELS = ["fm", "linear_control"]
# Another model, and an ablation of it.
FURTHER = """\
  infnet: {name: infnet, num_hubs: 2}
finalists: 2
always_finalists: [infnet]
ablations: {of: infnet, models: {one_hub: {name: infnet, num_hubs: 1}}}
"""
BASE = """
run: {name: tiny, folder: FOLDER/runs}
data: {path: FOLDER/set, batch_size: 64}
model: {token_dim: 8}
tables: {embedding_dim: 8}
scaling: {num_workers: 1}
tracking: {wandb: disabled}
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_tiny_set(tmp_path / "set", num_rows=1_500)
    (tmp_path / "base.yaml").write_text(BASE.replace("FOLDER", str(tmp_path)))
    path = tmp_path / "compare.yaml"
    path.write_text(PROTOCOL)
    return ["--config", str(path), "--launcher", "local", "--at-once", "2"]


@pytest.mark.parametrize(
    ("further", "names"),
    [
        ("", MODELS),
        pytest.param(FURTHER, [*MODELS, "infnet", "one_hub"], marks=pytest.mark.exhaustive),
    ],
)
def test_trials_report_and_a_second_run(
    command: list[str], tmp_path: Path, further: str, names: list[str]
) -> None:
    (tmp_path / "compare.yaml").write_text(PROTOCOL + further)
    main(command)
    folder = tmp_path / "runs" / "tiny"
    record = json.loads((folder / "results.json").read_text())
    assert sorted(model["name"] for model in record["models"]) == sorted(names)
    assert all(model["seeds"] == [0, 1] for model in record["models"])
    for model in record["models"]:
        runs = [json.loads((Path(f) / "summary.json").read_text()) for f in model["run_folders"]]
        values = [run["metrics"]["valid/auc/click"] for run in runs]
        assert model["metrics"]["auc/click"]["mean"] == pytest.approx(sum(values) / 2)
        assert values[0] != values[1], "seeds differ"
        assert len(model["curves"]["0"]) >= 2
        assert (model["over_control"] is None) == model["is_control"]
        assert model["is_control"] == (model["name"] == "linear_control")
    assert "| fm | 2 |" in (folder / "table.md").read_text()
    summaries = sorted(folder.glob("*/summary.json"))
    assert len(summaries) == 2 * len(names)
    before = [os.stat(path).st_mtime_ns for path in summaries]
    main(command)  # nothing is left to train
    assert [os.stat(path).st_mtime_ns for path in summaries] == before


def test_failing_trials_are_named(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(PROTOCOL + "grid: {dense_optimizer.learning_rate: [1.0e+30]}\n")
    with pytest.raises(UserError) as failed:
        main(command)
    assert all(name in str(failed.value) for name in MODELS)
    assert not list((tmp_path / "runs" / "tiny").glob("*/summary.json"))
