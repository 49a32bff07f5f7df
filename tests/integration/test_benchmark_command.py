"""`infnet benchmark` on two local workers: what it prints and writes, and its errors."""

import json
from pathlib import Path

import pytest
import yaml

from infnet_dist.profiling.phases import PHASES
from tests.jobs import run_here
from tests.runs import make_config, make_tiny_set


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file beside its data, and beside the folder of a run that has been trained."""
    root = tmp_path_factory.mktemp("root")
    data = make_tiny_set(root / "tiny")
    scaling = {"num_workers": 2}
    config = make_config(data, root / "runs", scaling=scaling)
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    earlier = root / "runs" / "test" / "20261122-111407"
    earlier.mkdir(parents=True)
    (earlier / "metrics.jsonl").write_text("{}\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_benchmark_writes_only_what_is_asked_for(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_file.parent)
    files = {name: tmp_path / "out" / name for name in ("json", "trace", "picture")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, last = run_here(
        run_file.parent, "benchmark", "--config", str(run_file), "--steps=2", "--warmup=1", *options
    )
    assert code == 0, last
    assert contents(run_file.parent) == before
    printed = capsys.readouterr().out
    assert "rank 0" in printed and "rank 1" in printed
    result = json.loads(files["json"].read_text())
    assert result["world_size"] == 2
    for rank in result["ranks"]:
        assert list(rank["phases"]) == list(PHASES)
    events = json.loads(files["trace"].read_text())["traceEvents"]
    complete = [event for event in events if event.get("ph") == "X"]
    assert complete and all(
        {"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in complete
    )
    assert files["picture"].read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--set", "data.path=nowhere"], "nowhere"),
        (["--set", "training.accumulate_steps=9", "--steps", "8"], "accumulate_steps (9)"),
        (["--json", "/"], "--json /"),
        (["--trace", "/proc/x/trace.json"], "--trace"),
        (["--set", "data.batch_size=2000"], "2000"),
    ],
)
def test_errors_name_their_cause(run_file: Path, options: list[str], named: str) -> None:
    code, last = run_here(run_file.parent, "benchmark", "--config", str(run_file), *options)
    assert code == 1
    assert last.startswith("error: ")
    assert named in last


@pytest.mark.parametrize("steps", ["0", "-1", "x"])
def test_steps_are_positive(run_file: Path, steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_here(run_file.parent, "benchmark", "--config", str(run_file), f"--steps={steps}")
