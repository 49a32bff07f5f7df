"""What a training run writes to a terminal and to a file."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infnet_dist.config.run import dump_config
from tests.runs import make_config, make_tiny_set
from tests.terminal import run_on_terminal, seen

STAMP = re.compile(r"\d\d:\d\d:\d\d ")


def command(tmp_path: Path, run_id: str) -> Sequence[str]:
    make = ("-m", "ray_jobs", "train", "--config", str(tmp_path / "run.yaml"))
    return [sys.executable, *make, "--launcher", "local", "--run-id", run_id]


@pytest.fixture
def short_tmp_path() -> Iterator[Path]:
    """Whose path fits on a line."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_run_on_a_terminal_and_into_a_file(
    tmp_path: Path, short_tmp_path: Path, repository: Path
) -> None:
    """One line per event, and the plan in three."""
    runs = short_tmp_path / "runs"
    config = make_config(
        make_tiny_set(tmp_path / "set"),
        runs,
        scaling={"num_workers": 1},
        training={"log_every_steps": 10, "eval_every_steps": 30},
        checkpoint={"every_steps": 30},
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command(tmp_path, "file"),
        cwd=repository,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        code, written = run_on_terminal(
            command(tmp_path, "terminal"), 80, cwd=repository, env=environ
        )
        text = process.communicate()[0]
    assert (code, process.returncode) == (0, 0), written + text

    lines, widest = seen(written)
    events = [STAMP.sub("", line) for line in lines if STAMP.match(line)]
    assert widest <= 80
    for start in ("plan: ", "step 10/", "valid at step 30 ", "saved step-00000030 ", "trained "):
        assert any(event.startswith(start) for event in events), start
    assert len([event for event in events if event.startswith("plan: ")]) == 3
    assert re.search(r"train: +\d+%\|.*step/s\]", written)

    assert not {"\x1b", "\r"} & {*text}
    assert not re.search(r"(train|valid): +\d+%", text)
    whole = [STAMP.sub("", line) for line in text.splitlines() if STAMP.match(line)]
    folder = runs / "test" / "file"
    assert any(line.startswith(f"saved {folder}/checkpoints/step-00000030 (") for line in whole)
    assert any(re.match(r"step 10/\d+ .* left  input wait \d+%$", line) for line in whole)
    table = (folder / "plan.txt").read_text()
    assert "row_wise" in table and table.splitlines()[1] not in text
