"""Faults of a run on Ray: workers and nodes lost, the driver killed, jobs stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from ray_jobs._auth import token_environ, write_token
from ray_jobs._local_ray import LocalRay, job_environ
from tests.conftest import REPOSITORY
from tests.faults.kit import TIMEOUT_S, Fault, Job, Running, no_processes_left
from tests.faults.network import INTERFACE, Network

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    with LocalRay(tmp_path_factory.mktemp("root"), num_cpus=4) as running:
        yield running


def start_on_ray(
    job: Job,
    environ: dict[str, str],
    address: str,
    *faults: Fault,
    inside: Sequence[str] = (),
    **more: str,
) -> Running:
    """The driver as a process here; its workers get the faults by the job's runtime environment."""
    own = job.environ(*faults)
    names = ("PYTHONPATH", "INFNET_FAULTS", "INFNET_LEDGER", "OMP_NUM_THREADS")
    runtime = {"env_vars": {name: own[name] for name in names} | more}
    connected = environ | {
        "RAY_ADDRESS": address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime}),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "PYTHONPATH": own["PYTHONPATH"],
    }
    return Running([*inside, *job.command("ray")], connected, job.folder)


def test_a_worker_that_dies(tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay) -> None:
    job = Job(tmp_path, data)
    fault = Fault("backward", rank=1, step=17)
    ended = start_on_ray(job, ray.environ, ray.address, fault).wait()
    job.check(ended)
    assert ended.restarts == [("step-00000010", 1)]
    job.assert_same(undisturbed)


def test_a_worker_that_hangs(tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay) -> None:
    job = Job(tmp_path, data, scaling={"hang_timeout_s": 20.0})
    fault = Fault("step", "sleep", rank=0, step=25)
    ended = start_on_ray(job, ray.environ, ray.address, fault).wait()
    job.check(ended, says=r"rank 0 .*step 25\b.*\b20 s")
    assert len(ended.restarts) == 1
    job.assert_same(undisturbed)


def test_the_driver_is_killed_and_started_again(
    tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay
) -> None:
    job = Job(tmp_path, data)
    running = start_on_ray(job, ray.environ, ray.address)
    running.wait_until(lambda: job.has_saved(10))
    running.send(signal.SIGKILL)
    assert running.wait().code == -9
    ended = start_on_ray(job, ray.environ, ray.address).wait()
    job.check(ended)
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


def test_a_job_that_is_stopped(tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay) -> None:
    """`ray job stop`: SIGTERM to the driver, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S."""
    job = Job(tmp_path, data, training={"log_every_steps": 7, "epochs": 1})
    own = job.environ(*(Fault("step", "nap", rank=-1, step=i, seconds=0.5) for i in range(11, 38)))
    names = ("PYTHONPATH", "INFNET_FAULTS", "INFNET_LEDGER", "OMP_NUM_THREADS")
    env_vars = {name: own[name] for name in names} | {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    runtime = json.dumps({"env_vars": env_vars})
    at = ["--address", ray.dashboard_url]
    submit = ["job", "submit", *at, "--no-wait", "--submission-id", "stopme"]
    command = [*submit, "--runtime-env-json", runtime, "--", *job.command("ray")]
    subprocess.run([ray_command(), *command], env=ray.environ, check=True, capture_output=True)
    wait_until(lambda: list(job.run_folder.glob("checkpoints/step-*10/manifest.json")))
    stopped = subprocess.run(
        [ray_command(), "job", "stop", *at, "stopme"], env=ray.environ, capture_output=True
    )
    assert stopped.returncode == 0, stopped.stderr
    assert no_processes_left(job.folder)
    steps = [int(p.parent.name[5:]) for p in job.run_folder.glob("checkpoints/*/manifest.json")]
    assert max(steps) % 10, "it saved where it was stopped"
    job.check(start_on_ray(job, ray.environ, ray.address).wait())
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


def elastic_job(folder: Path, data: Path, *, hang_timeout_s: float) -> Job:
    """One epoch on two workers, or on one while there is no room for two."""
    return Job(
        folder,
        data,
        scaling={"num_workers": 2, "min_workers": 1, "hang_timeout_s": hang_timeout_s},
        training={"log_every_steps": 7, "epochs": 1},
    )


def test_a_node_is_lost_and_comes_back(tmp_path: Path, data: Path) -> None:
    """Two nodes of one worker each: 2 workers, then 1, then 2 again; no row lost or doubled."""
    job = elastic_job(tmp_path, data, hang_timeout_s=30)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=1.0) for step in range(12, 75, 2)]
    with nodes(tmp_path) as cluster:
        running = start_on_ray(job, cluster.environ, cluster.address, *naps)
        running.wait_until(lambda: job.has_saved(10))
        cluster.kill_a_node()
        running.wait_until(lambda: job.workers_of_attempts()[-1] == 1)
        cluster.add_a_node()
        ended = running.wait()
    job.check(ended)
    assert job.workers_of_attempts() == [2, 1, 2]
    _, fewer, more = job.steps_of_attempts()
    assert more[0] == fewer[1] + 1, "no step is lost for more workers"


def test_a_node_is_drained(tmp_path: Path, data: Path) -> None:
    """All workers save before the deadline; no step is lost, and no failure is counted."""
    job = elastic_job(tmp_path, data, hang_timeout_s=60)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=1.0) for step in range(12, 75, 2)]
    with nodes(tmp_path) as cluster:
        running = start_on_ray(job, cluster.environ, cluster.address, *naps)
        running.wait_until(lambda: job.has_saved(10))
        cluster.drain_a_node(deadline_s=30)
        ended = running.wait()
    job.check(ended, says=r"drained")
    assert not ended.restarts
    assert job.workers_of_attempts() == [2, 1]
    first, second = job.steps_of_attempts()
    assert second[0] == first[1] + 1, "no step is lost"


def test_a_node_is_drained_while_a_worker_can_t_save(tmp_path: Path, data: Path) -> None:
    """As a lost node: the supervisor counts it and says so; Ray Train restarts nothing itself."""
    job = elastic_job(tmp_path, data, hang_timeout_s=60)
    nap = Fault("step", "nap", rank=0, step=14, seconds=40.0)
    with nodes(tmp_path) as cluster:
        running = start_on_ray(job, cluster.environ, cluster.address, nap)
        running.wait_until(lambda: job.has_saved(10))
        cluster.drain_a_node(deadline_s=8)
        ended = running.wait()
    job.check(ended)
    assert ended.restarts == [("step-00000010", 1)]
    assert len(job.workers_of_attempts()) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_a_worker(
    tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay, rank: int
) -> None:
    """All workers save and start again, with no step lost and no failure counted."""
    job = Job(tmp_path, data)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=1.0) for step in range(12, 38, 2)]
    running = start_on_ray(job, ray.environ, ray.address, *naps)
    running.wait_until(lambda: job.has_saved(10))
    job.worker_of(rank).send_signal(signal.SIGTERM)
    ended = running.wait()
    job.check(ended, says=f"worker {rank} received SIGTERM")
    assert not ended.restarts
    first, second = job.steps_of_attempts()
    assert second[0] == first[1] + 1, "no step is lost"
    job.assert_same(undisturbed)


def test_another_job_takes_room_and_leaves_it(tmp_path: Path, data: Path) -> None:
    """The CPUs that it holds aren't ours, though they are the cluster's."""
    job = elastic_job(tmp_path, data, hang_timeout_s=30)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=1.0) for step in range(3, 75, 2)]
    with nodes(tmp_path) as cluster:
        cluster.take_a_cpu()
        running = start_on_ray(job, cluster.environ, cluster.address, *naps)
        running.wait_until(lambda: job.has_saved(10))
        assert job.workers_of_attempts() == [1]
        cluster.leave_the_cpu()
        ended = running.wait()
    job.check(ended)
    assert job.workers_of_attempts() == [1, 2]
    assert not ended.restarts


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_is_cut_off_the_network(tmp_path: Path, data: Path, rank: int) -> None:
    """Its worker lives on, with the lock of the run if it is rank 0, until its watchdog ends it."""
    job = elastic_job(tmp_path, data, hang_timeout_s=40)
    naps = [Fault("step", "nap", rank=0, step=step, seconds=0.5) for step in range(12, 40)]
    with Network(tmp_path) as network:
        running = start_on_ray(
            job,
            network.environ,
            network.address,
            *naps,
            inside=network.inside,
            GLOO_SOCKET_IFNAME=INTERFACE,
        )
        running.wait_until(lambda: job.has_saved(10))
        network.cut(job.worker_of(rank))
        running.wait_until(lambda: job.workers_of_attempts()[-1] == 1)
        job.check(running.wait())
    assert job.resumed_after in (10, 20, 30)


def test_a_worker_that_takes_too_much_memory(tmp_path: Path, data: Path, undisturbed: Job) -> None:
    """Ray's own memory killer, which strikes before the kernel's."""
    memory = psutil.virtual_memory()
    if memory.available < 6 * 2**30:
        pytest.skip("less than 6 GiB of memory are free")
    most = (memory.total - memory.available + 3 * 2**30) / memory.total
    job = Job(tmp_path, data)
    ray = LocalRay(tmp_path, num_cpus=4)
    ray.environ |= {"RAY_memory_usage_threshold": f"{most:.3f}"}
    with ray:
        fault = Fault("backward", "eat", rank=1, step=17)
        ended = start_on_ray(job, ray.environ, ray.address, fault).wait()
    job.check(ended, says="low on memory")
    assert ended.restarts == [("step-00000010", 1)]
    job.assert_same(undisturbed)


@pytest.mark.parametrize("place", ["a cluster", "a Ray of its own"])
def test_rays_controller_dies(
    tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay, place: str
) -> None:
    """The actor with which Ray Train looks after the workers, which take all CPUs.

    Another Ray runs on this machine, which the job's actors mustn't mistake for theirs.
    """
    cpus = 4 if place == "a cluster" else cpus_of_an_own_ray()
    job = Job(
        tmp_path,
        data,
        scaling={"hang_timeout_s": 60.0, "resources_per_worker": {"CPU": cpus / 2}},
    )
    nap = Fault("step", "nap", rank=0, step=14, seconds=20)
    with LocalRay(tmp_path, num_cpus=1):
        if place == "a cluster":
            running = start_on_ray(job, ray.environ, ray.address, nap)
        else:
            running = Running(job.command("ray"), job.environ(nap), job.folder)
        running.wait_until(lambda: job.has_saved(10))
        (controller,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "TrainController" in " ".join(process.info["cmdline"] or [])
            and process.environ().get("INFNET_LEDGER") == str(job.ledger)
        ]
        controller.kill()
        ended = running.wait()
    job.check(ended, says="controller")
    assert [name[:5] for name, _ in ended.restarts] == ["step-"]
    job.assert_same(undisturbed)


def test_a_second_signal_stops_at_once(
    tmp_path: Path, data: Path, undisturbed: Job, ray: LocalRay
) -> None:
    job = Job(tmp_path, data, scaling={"num_workers": 2, "hang_timeout_s": 550.0})
    running = start_on_ray(job, ray.environ, ray.address, Fault("save", "sleep", rank=1, step=20))
    running.wait_until(lambda: job.has_saved(10))
    running.send(signal.SIGINT)
    running.wait_for("SIGINT")
    running.send(signal.SIGTERM)
    ended = running.wait(timeout_s=300)  # the save sleeps for longer, and so does the watchdog
    job.check(ended, code=143, says="SIGTERM .*--run-id run ")
    job.check(start_on_ray(job, ray.environ, ray.address).wait())
    assert job.resumed_after >= 10
    job.assert_same(undisturbed)


def cpus_of_an_own_ray() -> int:
    """By Ray's own rules, which aren't public."""
    from ray._private.utils import get_num_cpus

    return get_num_cpus()


class Nodes:
    """A Ray of a head without CPUs and nodes with one each, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "Nodes":
        environ = job_environ(self._folder) | token_environ(write_token(self._folder))
        environ |= {
            "RAY_health_check_initial_delay_ms": "500",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nodes.py"))],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self.address = self._answer()
        self.environ = environ
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def kill_a_node(self) -> None:
        """SIGKILL to all of its processes."""
        self._say("kill")

    def drain_a_node(self, *, deadline_s: int) -> None:
        """It is reclaimed in so many seconds."""
        self._say(f"drain {deadline_s}")

    def add_a_node(self) -> None:
        """One like the others."""
        self._say("add")

    def take_a_cpu(self) -> None:
        """Another job's actor gets one."""
        self._say("take")

    def leave_the_cpu(self) -> None:
        """That job ends."""
        self._say("leave")

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("answer: "):
                return line.removeprefix("answer: ").strip()
        raise AssertionError("the nodes' process ended")


nodes = Nodes


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))


def wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
