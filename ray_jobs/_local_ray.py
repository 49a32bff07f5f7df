"""A Ray of our own on this machine: a head with a job server, removed without trace afterwards.

    with LocalRay(root=Path(".infnet"), num_cpus=4) as ray:
        done = ray.submit(["python", "-m", "ray_jobs.train", ...], working_dir=Path("."))

It listens on loopback, on free ports, in a temporary folder of its own, and asks for a token, so
other Rays on the machine are neither used nor disturbed. A guard process (`_ray_guard.py`) ends all
of its processes when the context ends, and also when this process is killed.
"""

import json
import os
import re
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

from infnet_dist.io.console import bar_hidden, take_progress
from infnet_dist.io.ports import free_ports
from infnet_dist.tools.doctor import check_upload
from ray_jobs._auth import token_environ, token_header, write_token

START_TIMEOUT_S = 120.0
_CHOSEN_PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--ray-client-server-port",
)
# Nobody outside Ray asks for these: the kernel gives free ones.
_OTHER_PORTS = (
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--object-manager-port",
    "--node-manager-port",
    # Of each worker, instead of Ray's fixed 10002-19999.
    "--min-worker-port",
    "--max-worker-port",
)
_PORT_VARIABLES = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_GUARD = Path(__file__).with_name("_ray_guard.py")
# Lines that the command line prints about itself: a dozen per submission.
_NOISE = re.compile(
    r"(packaging|working_dir)\.py:\d+ -- |cli\.py:\d+ -- (-+$|Next steps|Query |Request |ray job )"
)


class LocalRay:
    """Context manager: starts a Ray head, and ends it with all its processes.

    Args:
        root: folder for data and runs, given to jobs as INFNET_ROOT.
        num_cpus: CPUs that Ray may hand out; they need not exist.
        object_store_memory: bytes of shared memory.
        token_file: holds the token that Ray asks for; by default a new one, removed with the rest.

    Attributes:
        address: host and port of the cluster, as in RAY_ADDRESS.
        dashboard_url: where jobs are submitted.
        environ: of this Ray, and of commands that connect to it.
        temp_dir: folder of this Ray's sockets and logs.
        token_file: see above.
    """

    def __init__(
        self,
        root: Path,
        num_cpus: int,
        *,
        object_store_memory: int = 200 * 2**20,
        token_file: Path | None = None,
    ) -> None:
        self.environ = job_environ(root.resolve())
        self.num_cpus = num_cpus
        self.object_store_memory = object_store_memory
        self._given_token_file = token_file

    def __enter__(self) -> "LocalRay":
        # Short and under /tmp: Ray's socket paths may have 107 characters in all.
        self.temp_dir = Path(tempfile.mkdtemp(prefix="inf-", dir="/tmp"))
        jobs_temp_dir = self.temp_dir / "tmp"  # removed with the files that jobs leave in it
        jobs_temp_dir.mkdir()
        self.token_file = self._given_token_file or write_token(self.temp_dir)
        self.environ |= {"TMPDIR": str(jobs_temp_dir), **token_environ(self.token_file)}
        names = (*_CHOSEN_PORTS, *_PORT_VARIABLES)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.environ |= {name: str(ports.pop(name)) for name in _PORT_VARIABLES}
        self.address = f"127.0.0.1:{ports['--port']}"
        self.dashboard_url = f"http://127.0.0.1:{ports['--dashboard-port']}"
        self.guard = subprocess.Popen(
            [sys.executable, str(_GUARD), str(self.temp_dir), *self._head_command(ports)],
            env=self.environ,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C doesn't reach it
        )
        try:
            self._wait_for("job server", f"{self.dashboard_url}/api/jobs/")
            # The job server hands each job to this node's agent, which starts later. It answers a
            # submission with an error where the agent is missing for 10 s.
            agent = f"http://127.0.0.1:{ports['--dashboard-agent-listen-port']}"
            self._wait_for("agent", f"{agent}/api/local_raylet_healthz")
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
        """Run a job through Ray's command line, and print its output as it arrives.

        Args:
            args: the job's command, e.g. `["python", "-m", "ray_jobs.train", ...]`.
            working_dir: the folder that is uploaded, less what .rayignore names.
            env: further environment variables of the job.

        Returns:
            The job's exit code and text. (The command line's own code is 1 for every failure.)
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
                    if take_progress(line):
                        continue
                    lines.append(line)
                    if not _NOISE.search(line):
                        with bar_hidden():
                            print(line, end="", flush=True)
                code = process.wait()
            finally:
                process.kill()
        text = "".join(lines)
        if code and "status code 413" in text:
            found = check_upload(working_dir.resolve())
            print(f"{working_dir}: {found.detail}; {found.fix}", flush=True)
        codes = re.findall(r"failed with exit code (-?\d+)", text)
        return subprocess.CompletedProcess(args, int(codes[-1]) if code and codes else code, text)

    def _head_command(self, ports: Mapping[str, int]) -> list[str]:
        command = [
            _ray_command(),
            *("start", "--head", "--block", "--disable-usage-stats", "--log-color", "false"),
            *("--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
            *("--include-dashboard", "true", "--temp-dir", str(self.temp_dir)),
            *("--num-cpus", str(self.num_cpus)),
            *("--object-store-memory", str(self.object_store_memory)),
        ]
        for option in _OTHER_PORTS:
            command += [option, "0"]
        for option, port in ports.items():
            command += [option, str(port)]
        return command

    def _wait_for(self, service: str, url: str) -> None:
        request = urllib.request.Request(url, headers=token_header(self.token_file))
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.guard.poll() is not None:
                raise RuntimeError("Ray's head didn't start; the end of its log is above")
            with suppress(urllib.error.URLError, OSError):
                with _OPENER.open(request, timeout=5):
                    return
            time.sleep(0.2)
        raise RuntimeError(f"Ray's {service} didn't answer within {START_TIMEOUT_S:.0f} s")

    def _end(self) -> None:
        """Let the guard clean up, which another Ctrl-C here doesn't interrupt."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()
        self.guard.wait()


def job_environ(root: Path) -> dict[str, str]:
    """The environment of Ray and its jobs, which inherit the head's and not the submitter's."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = str(Path(sys.executable).parent)
    return environ | {
        "INFNET_ROOT": str(root),
        "OMP_NUM_THREADS": "1",
        # `python` in a job is this very Python.
        "PATH": folder + os.pathsep + os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
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
