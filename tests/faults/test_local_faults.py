"""Faults of a run without Ray; docs/faults.md lists the promises."""

import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

from tests.faults.kit import RESTART, Fault, Job
from tests.faults.wandb_server import WandbServer
from tests.wandb_file import read_history

MATRIX = pytest.mark.matrix
KILLS = [
    pytest.param(Fault("backward", rank=1, step=17), id="rank 1 in backward"),
    pytest.param(Fault("save", rank=0, step=20), id="rank 0 in a save", marks=MATRIX),
    pytest.param(Fault("manifest", rank=0, step=10), id="rank 0 before the manifest", marks=MATRIX),
    pytest.param(Fault("step", rank=0, step=1), id="rank 0 in the first step", marks=MATRIX),
    pytest.param(Fault("prune", rank=0, step=30), id="rank 0 after the manifest", marks=MATRIX),
    pytest.param(Fault("evaluate", rank=1), id="rank 1 in the evaluation", marks=MATRIX),
    pytest.param(Fault("step", "exit", rank=1, step=33), id="rank 1 exits", marks=MATRIX),
]


@pytest.mark.parametrize("fault", KILLS)
def test_a_worker_that_dies(tmp_path: Path, data: Path, undisturbed: Job, fault: Fault) -> None:
    job = Job(tmp_path, data)
    ended = job.run(fault)
    code = 17 if fault.action == "exit" else -9
    job.check(ended, says=rf"worker {fault.rank} .*{code}\b")
    assert len(ended.restarts) == 1
    job.assert_same(undisturbed)


@MATRIX
@pytest.mark.parametrize("workers", [3, 4])
def test_more_than_two_workers(tmp_path: Path, data: Path, workers: int) -> None:
    """Sums over two workers are the same in any order; over more it must be the same order."""
    scaling = {"num_workers": workers}
    whole, job = (Job(tmp_path / name, data, scaling=scaling) for name in ("whole", "run"))
    whole.check(whole.run())
    ended = job.run(Fault("backward", rank=1, step=5), Fault("step", "sigterm", rank=2, step=13))
    job.check(ended, code=143, says="SIGTERM .*step-00000014")
    job.check(job.run())
    assert job.resumed_after == 14
    job.assert_same(whole)


@MATRIX
def test_two_deaths_and_one_while_loading(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data)
    ended = job.run(Fault("step", step=19), Fault("load", rank=-1), Fault("step", step=29, rank=0))
    job.check(ended)
    assert ("step-00000020", 1) in ended.restarts
    job.assert_same(undisturbed)


@MATRIX
def test_too_many_deaths_without_a_new_checkpoint(tmp_path: Path, data: Path) -> None:
    job = Job(tmp_path, data, scaling={"max_failures": 1})
    ended = job.run(Fault("step", step=5), Fault("step", step=7))
    job.check(ended, code=1, says=r"error: .*worker 1 .*\b2\b.*scaling\.max_failures")
    assert ended.restarts == [("the beginning", 1)]


@MATRIX
@pytest.mark.parametrize("action", ["sleep", "stop"])
def test_a_worker_that_hangs(tmp_path: Path, data: Path, undisturbed: Job, action: str) -> None:
    job = Job(tmp_path, data, scaling={"hang_timeout_s": 12.0})
    ended = job.run(Fault("step", action, rank=1, step=25))
    job.check(ended, says=r"rank 1 .*step 2[45]\b.*\b12 s")
    assert len(ended.restarts) == 1
    job.assert_same(undisturbed)


@MATRIX
@pytest.mark.parametrize(
    "action, says",
    [("raise", "KeyError: 'a bug'"), ("memory", "MemoryError: can't allocate 8 TiB")],
)
def test_a_bug_is_not_tried_again(tmp_path: Path, data: Path, action: str, says: str) -> None:
    job = Job(tmp_path, data)
    ended = job.run(Fault("step", action, step=12))
    job.check(ended, code=1, says=f"error: RuntimeError: worker 1: {says}")
    assert not ended.restarts


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group of 64 MiB of memory."""
    folder = Path(f"/sys/fs/cgroup/memory/infnet-{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(64 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group of memory (v1) can be made here ({error})")
    yield folder
    folder.rmdir()


@MATRIX
def test_the_kernel_takes_a_worker_for_its_memory(
    tmp_path: Path, data: Path, undisturbed: Job, small_cgroup: Path
) -> None:
    """By the kernel's own memory killer, in a control group that has less than the worker takes."""
    job = Job(tmp_path, data)
    ended = job.run(Fault("backward", "oom", rank=1, step=17, place=str(small_cgroup)))
    job.check(ended, says=r"worker 1 .*-9\b")
    assert ended.restarts == [("step-00000010", 1)]
    job.assert_same(undisturbed)


@MATRIX
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(
    tmp_path: Path, data: Path, undisturbed: Job, kind: signal.Signals
) -> None:
    job = Job(tmp_path, data)
    running = job.start()
    running.wait_until(lambda: job.has_saved(10))
    running.send(kind)
    job.check(running.wait(), code=128 + kind, says=rf"{kind.name} .*step-\d+")
    job.check(job.run())
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


@MATRIX
def test_all_processes_of_a_job_are_told_to_stop(
    tmp_path: Path, data: Path, undisturbed: Job
) -> None:
    """As by schedulers and service managers: SIGTERM to the whole process group."""
    job = Job(tmp_path, data)
    running = job.start()
    running.wait_until(lambda: job.has_saved(10))
    running.send_to_all(signal.SIGTERM)
    job.check(running.wait(), code=143, says=r"SIGTERM .*step-\d+")
    job.check(job.run())
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


@MATRIX
def test_a_second_signal_stops_at_once(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data, scaling={"num_workers": 2, "hang_timeout_s": 550.0})
    running = job.start(Fault("save", "sleep", rank=1, step=20))
    running.wait_for(r"saved .*step-00000010")  # logged when the save of step 20 begins
    running.send(signal.SIGINT)
    running.wait_for("SIGINT")
    time.sleep(3)
    running.send(signal.SIGTERM)
    ended = running.wait(timeout_s=300)  # the save sleeps for longer, and so does the watchdog
    job.check(ended, code=143, says="SIGTERM .*--run-id run ")
    job.check(job.run())
    assert job.resumed_after == 10
    job.assert_same(undisturbed)


@MATRIX
def test_a_worker_dies_while_the_others_stop(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data)
    faults = [Fault("step", "nap", rank=0, step=step, seconds=1) for step in (12, 13, 14, 15)]
    running = job.start(*faults, Fault("save", rank=1, step=0), Fault("save", rank=0, step=10))
    running.wait_for(RESTART)
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 143, ended.text
    job.check(job.run())
    job.assert_same(undisturbed)


@MATRIX
def test_a_second_driver_is_refused(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    """It was started by mistake: it takes no worker's place, and the first one isn't disturbed."""
    job = Job(tmp_path, data)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=1) for step in range(12, 38)]
    first = job.start(*naps)
    first.wait_until(lambda: job.has_saved(10))
    second = job.start().wait()
    assert second.code == 1
    for word in (str(job.run_folder), str(first.process.pid), socket.gethostname()):
        assert word in second.last_line
    assert first.process.poll() is None
    job.check(first.wait())
    job.assert_same(undisturbed)


@MATRIX
@pytest.mark.parametrize("when", ["they start", "they train"])
def test_the_forkserver_is_killed(tmp_path: Path, data: Path, undisturbed: Job, when: str) -> None:
    """The process that workers are forked from."""
    job = Job(tmp_path, data)
    running = job.start()
    if when == "they train":
        running.wait_until(lambda: job.has_saved(10))
    forkservers: list[psutil.Process] = []
    while not forkservers:
        family = psutil.Process(running.process.pid).children()
        forkservers = [p for p in family if "forkserver" in " ".join(p.cmdline()) and p.children()]
    forkservers[0].kill()
    ended = running.wait()
    job.check(ended)
    assert "EOFError" not in ended.text
    # Workers that have hardly begun may outlive it, and train.
    assert len(ended.restarts) == 1 or (when == "they start" and not ended.restarts)
    job.assert_same(undisturbed)


@MATRIX
def test_the_main_process_is_killed(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data)
    running = job.start()
    running.wait_until(lambda: job.has_saved(10))
    running.send(signal.SIGKILL)
    assert running.wait().code == -9
    job.check_checkpoints()
    job.check(job.run())
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


@MATRIX
def test_preempted_by_sigterm_to_a_worker(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data)
    ended = job.run(Fault("step", "sigterm", rank=1, step=13))
    job.check(ended, code=143, says="SIGTERM .*step-00000014; --run-id run ")
    job.check(job.run())
    assert job.resumed_after == 14
    job.assert_same(undisturbed)


@MATRIX
def test_no_room_while_saving(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    job = Job(tmp_path, data, checkpoint={"retry_s": 20})
    ended = job.run(Fault("save", "full", rank=1, step=0, seconds=3))
    job.check(ended, says="No space left on device")
    job.assert_same(undisturbed)


@MATRIX
def test_no_room_at_all(tmp_path: Path, data: Path) -> None:
    job = Job(tmp_path, data, checkpoint={"retry_s": 0.5})
    ended = job.run(Fault("save", "full", rank=1, step=0, seconds=600))
    job.check(ended, code=1, says="No space left on device")
    assert str(job.run_folder) in ended.last_line


@MATRIX
def test_the_disk_of_a_run_is_full_for_a_while(
    tmp_path: Path, data: Path, undisturbed: Job
) -> None:
    """A real file system without a free byte: for checkpoints, the log and W&B's files."""
    folder = tmp_path / "runs"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        job = Job(tmp_path, data, checkpoint={"retry_s": 60}, tracking={"wandb": "offline"})
        naps = [Fault("step", "nap", rank=0, step=step, seconds=1) for step in range(14, 40)]
        running = job.start(*naps)
        running.wait_until(lambda: job.has_saved(10))
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        running.wait_for("checkpoint.*No space left on device")
        filler.unlink()
        job.check(running.wait())
        job.assert_same(undisturbed)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@MATRIX
@pytest.mark.parametrize("when", ["from the start", "in mid-run"])
def test_the_wandb_server_is_away(tmp_path: Path, data: Path, undisturbed: Job, when: str) -> None:
    job = Job(tmp_path, data, tracking={"wandb": "online"})
    server = WandbServer()
    environ = {
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.port}",
        "NO_PROXY": "127.0.0.1",
    }
    if when == "from the start":
        server.close()
        job.check(job.run(**environ), says=r"W&B.*infnet sync")
    else:
        naps = [Fault("step", "nap", rank=0, step=step, seconds=0.3) for step in range(12, 30)]
        running = job.start(*naps, **environ)
        running.wait_until(lambda: job.has_saved(10))
        assert "mutation UpsertBucket" in server.text, "W&B was told of the run"
        server.close()
        job.check(running.wait(), says=r"W&B.*infnet sync")
    job.assert_same(undisturbed)
    kind = "offline-run-*" if when == "from the start" else "run-*"
    (folder,) = (job.run_folder / "wandb").glob(kind)
    key = "train/loss/total"
    logs = (read_history(folder), job.log())
    sent, logged = ([x[key] for x in log if key in x] for log in logs)
    assert sent == logged, "W&B's files have it all"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A free port for an S3 server, and what clients need."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        free = sock.getsockname()[1]
    yield free


def serve_s3(port: int) -> ThreadedMotoServer:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


@MATRIX
def test_the_store_is_away_for_a_while(
    tmp_path: Path, data: Path, undisturbed: Job, port: int
) -> None:
    """Checkpoints in S3, whose server ends in mid-run and is back after the first retry."""
    server = serve_s3(port)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="checkpoints")
    url = f"s3://checkpoints/runs?endpoint_override=127.0.0.1:{port}&scheme=http"
    job = Job(tmp_path, data, checkpoint={"folder": url})
    running = job.start(Fault("step", "nap", rank=0, step=18, seconds=3))
    running.wait_until(lambda: job.has_saved(10))
    server.stop()
    running.wait_for(r"retrying in \d+\.\d s")
    server = serve_s3(port)
    job.check(running.wait())
    job.assert_same(undisturbed)
    server.stop()
