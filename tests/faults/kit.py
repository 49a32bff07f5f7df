"""Starts a real job, injects a fault at a chosen point, and checks what must hold each time.

1. The outcome is the one that docs/faults.md promises (exit code, and facts of the last line).
2. No row of an epoch is lost or read twice, by a ledger that the workers write step by step.
3. Every checkpoint that remains is intact.
4. The error, if there is one, is readable: one last line, and no traceback after it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from infnet_dist import checkpoint
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.run_folder import checkpoint_folder, read_attempts
from tests.conftest import REPOSITORY
from tests.metric_logs import assert_same_log
from tests.runs import make_config

SITE = Path(__file__).parent / "site"
TIMEOUT_S = 900  # no test needs it but on a machine that is many times overcommitted
# The line before each restart: the checkpoint, restarts without a new one, and their limit.
RESTART = re.compile(r"restarting from (step-\d+|the beginning) \((\d+) of (\d+) ")


@dataclass
class Fault:
    """A fault, its place and its time; see site/sitecustomize.py."""

    point: str
    action: str = "kill"
    rank: int = 1
    step: int = 0
    seconds: float = 0.0
    place: str = ""


@dataclass
class Ended:
    """A job that has ended."""

    code: int
    text: str
    seconds: float
    last_line: str = field(init=False)

    def __post_init__(self) -> None:
        self.last_line = next((x for x in reversed(self.text.splitlines()) if x.strip()), "")

    @property
    def restarts(self) -> list[tuple[str, int]]:
        """Of each restart: the checkpoint, and how many there were without a new one."""
        return [(found[1], int(found[2])) for found in RESTART.finditer(self.text)]


class Job:
    """A run of `python -m ray_jobs.train` on this machine.

    Args:
        folder: of this test; data are elsewhere.
        data: a training set.
        changes: sections of the run file.
    """

    def __init__(self, folder: Path, data: Path, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "training": {"log_every_steps": 7},
            "checkpoint": {"every_steps": 10, "keep_last": 99},
            "scaling": {"num_workers": 2, "hang_timeout_s": 60.0},
            "model": {"dropout": 0.2},
        }
        for section, values in changes.items():
            settings[section] = settings.get(section, {}) | values
        self.config = make_config(data, folder / "runs", **settings)
        self.folder = folder
        self.run_folder = folder / "runs" / "test" / "run"
        self.ledger = folder / "ledger"
        self.ledger.mkdir(parents=True, exist_ok=True)
        self.config_file = folder / "config.yaml"
        self.config_file.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        self.damaged: set[str] = set()  # checkpoints that a test has damaged, by name
        self._faults = 0

    def environ(self, *faults: Fault, **more: str) -> dict[str, str]:
        """The environment of a job that meets these faults, each once; and more variables."""
        listed = []
        for fault in faults:
            self._faults += 1
            once = str(self.folder / f"fault-{self._faults}")
            listed.append(vars(fault) | {"once": once})
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([str(SITE), str(REPOSITORY)]),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "INFNET_FAULTS": json.dumps(listed),
            "INFNET_LEDGER": str(self.ledger),
            **more,
        }

    def command(self, launcher: str = "local") -> list[str]:
        """The job's command."""
        return [
            *(sys.executable, "-m", "ray_jobs.train", "--config", str(self.config_file)),
            *("--launcher", launcher, "--run-id", "run"),
        ]

    def start(self, *faults: Fault, **more: str) -> "Running":
        """Start it, without Ray, with more environment variables."""
        return Running(self.command(), self.environ(*faults, **more), self.folder)

    def run(self, *faults: Fault, **more: str) -> Ended:
        """Run it to its end, without Ray."""
        return self.start(*faults, **more).wait()

    def check(self, ended: Ended, *, code: int = 0, says: str | None = None) -> None:
        """Check outcome, checkpoints and error, and the rows once the run is done."""
        assert ended.code == code, ended.text[-3000:]
        if says is not None:
            assert re.search(says, ended.text), ended.text[-3000:]
        if code:
            assert re.match("error: |stopped by ", ended.last_line), ended.text[-3000:]
            assert len(ended.last_line) < 1_000
        self.check_checkpoints()
        if code == 0:
            self.check_rows()
        assert no_processes_left(self.folder), "orphans"

    def check_checkpoints(self) -> None:
        """Check the sums of all that are complete."""
        for folder in checkpoint.complete_checkpoints(self.checkpoints):
            manifest = checkpoint.read_manifest(folder)
            reader = TensorReader(folder, manifest)
            faults = [f for file in manifest.tensor_files for _, f in reader.check(file) if f]
            assert not faults or folder.name in self.damaged, faults

    @property
    def checkpoints(self) -> Folder:
        """The folder of the run's checkpoints."""
        return checkpoint_folder(self.config, self.run_folder)

    def check_rows(self) -> None:
        """Check that the final weights come from each row of each epoch once."""
        rows = 2400
        steps = effective_steps(self.ledger)
        for epoch in range(self.config.training.epochs):
            seen = Counter(
                row
                for line in steps
                if line["epoch"] == epoch
                for start, stop in line["intervals"]
                for row in range(start, stop)
            )
            assert len(seen) == rows, f"{rows - len(seen)} rows lost in epoch {epoch}"
            assert max(seen.values()) == 1, "rows read twice"

    def has_saved(self, step: int) -> bool:
        """Whether the checkpoint of this step is complete."""
        return f"step-{step:08d}" in self.saved()

    def saved(self) -> list[str]:
        """Names of all complete checkpoints, the oldest first."""
        return [folder.name for folder in checkpoint.complete_checkpoints(self.checkpoints)]

    def workers_of_attempts(self) -> list[int]:
        """Numbers of workers of all attempts that began to train."""
        return [attempt["num_workers"] for attempt in read_attempts(self.run_folder)]

    @property
    def resumed_after(self) -> int:
        """The step after which the newest attempt resumed."""
        step: int = read_attempts(self.run_folder)[-1]["after_step"]
        return step

    def steps_of_attempts(self) -> list[tuple[int, int]]:
        """The first and the last step of each attempt that made any."""
        steps: dict[int, list[tuple[float, int]]] = {}
        for line in self.ledger_lines():
            steps.setdefault(line["attempt"][1], []).append((line["time"], line["step"]))
        in_order = sorted(steps.values(), key=min)
        return [(min(made)[1], max(made)[1]) for made in in_order]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the newest checkpoint."""
        folder = checkpoint.newest(self.checkpoints)
        assert folder is not None
        manifest = checkpoint.read_manifest(folder)
        reader = TensorReader(folder, manifest)
        return {
            name: reader.rows(name, 0, saved.shape[0] if saved.shape else 1)
            for name, saved in manifest.tensors.items()
        }

    def workers(self) -> list[psutil.Process]:
        """The workers that train at this moment, by the ledger that they write."""
        found = []
        for path in self.ledger.glob("*.jsonl"):
            try:
                worker = psutil.Process(int(path.stem))
                if worker.environ().get("INFNET_LEDGER") == str(self.ledger):
                    found.append(worker)
            except (psutil.Error, ValueError):
                continue
        return found

    def worker_of(self, rank: int) -> psutil.Process:
        """The worker that trains as this rank at this moment."""
        alive = {worker.pid for worker in self.workers()}
        for path in self.ledger.glob("*.jsonl"):
            first = json.loads(path.read_text().splitlines()[0])
            if int(path.stem) in alive and first["rank"] == rank:
                return psutil.Process(int(path.stem))
        raise LookupError(f"no worker trains as rank {rank}")

    def ledger_lines(self) -> list[dict[str, Any]]:
        """All steps that were made, those that were lost again included."""
        return ledger_lines(self.ledger)

    def log(self) -> list[dict[str, Any]]:
        """The metrics, without what depends on the clock."""
        lines = (self.run_folder / "metrics.jsonl").read_text().splitlines()
        hidden = ("perf/", "memory/")
        return [
            {k: v for k, v in json.loads(line).items() if not k.startswith(hidden)}
            for line in lines
        ]

    def assert_same(self, undisturbed: "Job") -> None:
        """Final weights and optimizer state are those of the undisturbed run, bitwise.

        So is the log, but for a line at each stop.
        """
        mine, theirs = self.tensors(), undisturbed.tensors()
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(mine[name], value), name
        assert_same_log(self.log(), undisturbed.log())


class Running:
    """A job that runs."""

    def __init__(self, command: list[str], environ: dict[str, str], folder: Path) -> None:
        self._log = folder / f"job-{time.monotonic_ns()}.log"
        self._began = time.monotonic()
        with self._log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, pattern: str | re.Pattern[str]) -> None:
        """Wait until the output has a line like this."""
        self.wait_until(lambda: bool(re.search(pattern, self._log.read_text(errors="replace"))))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the job runs."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            output = self._log.read_text(errors="replace")[-3000:]
            assert self.process.poll() is None, output
            if time.monotonic() > deadline:
                self._kill()
                raise AssertionError(output)
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send the job's main process a signal."""
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send all processes of the job a signal, as schedulers do."""
        os.killpg(self.process.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> Ended:
        """Wait for its end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill()
            raise
        text = self._log.read_text(errors="replace")
        return Ended(code, text, time.monotonic() - self._began)

    def _kill(self) -> None:
        """End its processes, so that they disturb no later test."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True)]:
            process.kill()
        self.process.kill()
        self.process.wait()


def effective_steps(ledger: Path) -> list[dict[str, Any]]:
    """The steps that led to the final weights: a later attempt replaces what it made again."""
    lines = ledger_lines(ledger)
    began: dict[int, float] = {}  # by attempt
    for line in lines:
        time_s, port = line["attempt"]
        began[port] = min(began.get(port, time_s), time_s)
    last: dict[int, int] = {}  # the attempt that made a step last
    for line in lines:
        port = line["attempt"][1]
        other = last.setdefault(line["step"], port)
        if began[port] > began[other]:
            last[line["step"]] = port
    return [line for line in lines if last[line["step"]] == line["attempt"][1]]


def ledger_lines(ledger: Path) -> list[dict[str, Any]]:
    """All lines of a ledger but those that were being written when a worker was killed."""
    return [
        json.loads(line)
        for path in ledger.glob("*.jsonl")
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]


def no_processes_left(folder: Path) -> bool:
    """Whether all processes that name the test's folder have ended, within a while."""
    deadline = time.monotonic() + 180  # on a busy machine
    while time.monotonic() < deadline:
        if not any(_names(process, str(folder)) for process in psutil.process_iter()):
            return True
        time.sleep(0.2)
    return False


def _names(process: psutil.Process, text: str) -> bool:
    try:
        environ = process.environ().get("INFNET_LEDGER", "")
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    # Ray keeps worker processes for later jobs.
    idle = ("ray::" in title or "default_worker.py" in title) and "Train" not in title
    return text in environ and not idle and process.pid != os.getpid()
