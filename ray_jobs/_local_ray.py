"""A Ray of our own on this machine: a head with a job server, gone without trace afterwards.

    with LocalRay(root=Path(".infnet"), num_cpus=4) as ray:
        done = ray.submit(["python", "-m", "ray_jobs.train", ...], working_dir=Path("."))

Everything listens on loopback, on free ports, in a temporary folder of its own, so other Rays on
the machine are neither used nor disturbed. `ray stop` would end those too. Instead a guard process
(this file, run as a script) starts the head and waits for its standard input to close, which
happens when the context ends and also when this process is killed. Then it ends all processes
below it, no matter how they were orphaned, and removes the folder.
"""

import ctypes
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from infnet_dist.io.ports import free_ports
from infnet_dist.tools.doctor import check_upload

START_TIMEOUT_S = 120.0
END_GRACE_S = 2.0
_PORT_OPTIONS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--object-manager-port",
    "--node-manager-port",
    "--ray-client-server-port",
)
_PORT_VARIABLES = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_PR_SET_CHILD_SUBREAPER = 36
# Lines of the command line that say nothing about the job: a dozen per submission.
_NOISE = re.compile(
    r"(packaging|working_dir)\.py:\d+ -- |cli\.py:\d+ -- (-+$|Next steps|Query |Request |ray job )"
)


class LocalRay:
    """Context manager: starts a Ray head, and ends it with all its processes.

    Args:
        root: folder for data and runs, given to jobs as INFNET_ROOT.
        num_cpus: CPUs that Ray may hand out; they need not exist.
        object_store_memory: bytes of shared memory.

    Attributes:
        address: host and port of the cluster, as in RAY_ADDRESS.
        dashboard_url: where jobs are submitted.
        temp_dir: folder of this Ray's sockets and logs.
    """

    def __init__(
        self, root: Path, num_cpus: int, *, object_store_memory: int = 200 * 2**20
    ) -> None:
        self.environ = job_environ(root.resolve())
        self.num_cpus = num_cpus
        self.object_store_memory = object_store_memory

    def __enter__(self) -> "LocalRay":
        # Short and under /tmp: Ray's socket paths may have 107 characters in all.
        self.temp_dir = Path(tempfile.mkdtemp(prefix="inf-", dir="/tmp"))
        jobs_temp_dir = self.temp_dir / "tmp"  # what jobs leave in it goes as well
        jobs_temp_dir.mkdir()
        self.environ["TMPDIR"] = str(jobs_temp_dir)
        names = (*_PORT_OPTIONS, *_PORT_VARIABLES)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.environ |= {name: str(ports.pop(name)) for name in _PORT_VARIABLES}
        self.address = f"127.0.0.1:{ports['--port']}"
        self.dashboard_url = f"http://127.0.0.1:{ports['--dashboard-port']}"
        self.guard = subprocess.Popen(
            [sys.executable, __file__, str(self.temp_dir), *self._head_command(ports)],
            env=self.environ,
            stdin=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C doesn't reach it
        )
        try:
            self._wait_for_job_server()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def submit(
        self, args: Sequence[str], *, working_dir: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a job through the real command line, showing its output as it comes.

        Args:
            args: the job's command, e.g. `["python", "-m", "ray_jobs.train", ...]`.
            working_dir: the folder that is uploaded, less what .rayignore names.
            env: further environment variables of the job.

        Returns:
            The job's exit code and text. (The command line itself says 1 for every failure.)
        """
        command = [_ray_command(), "job", "submit", "--address", self.dashboard_url]
        command += ["--working-dir", ".", "--log-color", "false"]
        if env:
            command += ["--runtime-env-json", json.dumps({"env_vars": dict(env)})]
        lines = []
        with subprocess.Popen(
            [*command, "--", *args],
            cwd=working_dir,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line)
                    if not _NOISE.search(line):
                        print(line, end="", flush=True)
                code = process.wait()
            finally:
                process.kill()
        text = "".join(lines)
        if code and "status code 413" in text:
            found = check_upload(working_dir.resolve())
            print(f"{working_dir}: {found.detail}; {found.fix}", flush=True)
        told = re.findall(r"failed with exit code (-?\d+)", text)
        return subprocess.CompletedProcess(args, int(told[-1]) if code and told else code, text)

    def _head_command(self, ports: Mapping[str, int]) -> list[str]:
        command = [
            _ray_command(),
            *("start", "--head", "--block", "--disable-usage-stats", "--log-color", "false"),
            *("--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
            *("--include-dashboard", "true", "--temp-dir", str(self.temp_dir)),
            *("--num-cpus", str(self.num_cpus)),
            *("--object-store-memory", str(self.object_store_memory)),
            # 0: each worker asks the kernel for a port, instead of Ray's fixed 10002-19999.
            *("--min-worker-port", "0", "--max-worker-port", "0"),
        ]
        for option, port in ports.items():
            command += [option, str(port)]
        return command

    def _wait_for_job_server(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.guard.poll() is not None:
                raise RuntimeError("Ray's head didn't start; its last words stand above")
            with suppress(urllib.error.URLError, OSError):
                with _OPENER.open(f"{self.dashboard_url}/api/jobs/", timeout=5):
                    return
            time.sleep(0.2)
        raise RuntimeError(f"Ray's job server gave no answer within {START_TIMEOUT_S:.0f} s")

    def _end(self) -> None:
        """Let the guard clean up; should Ctrl-C come again here, it does so all the same."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()
        self.guard.wait()


def job_environ(root: Path) -> dict[str, str]:
    """The environment of Ray and its jobs; jobs inherit the head's, not the submitter's."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = str(Path(sys.executable).parent)
    return environ | {
        "INFNET_ROOT": str(root),
        "OMP_NUM_THREADS": "1",
        # `python` in a job is this very Python.
        "PATH": folder + os.pathsep + os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "disabled",  # it listens on loopback alone
        "RAY_DEDUP_LOGS": "0",
        # Despite its name: with 0, Ray keeps to 127.0.0.1 on any system. Otherwise it replaces
        # --node-ip-address=127.0.0.1 with the machine's outer address and listens on all of them.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise each print appears twice
        "RAY_USAGE_STATS_ENABLED": "0",
        "no_proxy": "127.0.0.1,localhost",
    }


# Loopback needs no proxy, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _ray_command() -> str:
    """The `ray` that belongs to this Python."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise RuntimeError("no `ray` command beside this Python; run `make install`")
    return found


def _guard(temp_dir: Path, command: Sequence[str]) -> int:
    """Run the head until it ends or standard input closes; then leave nothing behind."""
    with suppress(OSError, AttributeError):  # Linux only: orphans below become our children
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    log = temp_dir / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    while head.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    code = head.poll()
    if code is not None:
        words = log.read_text(errors="replace")[-4000:]
        print(f"ray start ended with exit code {code}:\n{words}", file=sys.stderr, flush=True)
    _end_children()
    shutil.rmtree(temp_dir, ignore_errors=True)
    return 0 if code is None else 1


def _end_children() -> None:
    """Ask this process's descendants to end, then end those that didn't."""
    me = psutil.Process()
    deadline = time.monotonic() + END_GRACE_S
    asked = set()
    while children := me.children(recursive=True):
        for child in children:
            with suppress(psutil.Error):
                if time.monotonic() > deadline:
                    child.kill()
                elif child not in asked:
                    child.terminate()
                    asked.add(child)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(_guard(Path(sys.argv[1]), sys.argv[2:]))
