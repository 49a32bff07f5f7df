"""A Ray of a head and two nodes, each in a network namespace of its own, with links to cut.

Nothing is named or left behind: the namespaces live as long as the processes that hold them.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs._auth import token_environ, write_token
from ray_jobs._local_ray import job_environ
from tests.conftest import REPOSITORY

INTERFACE = "e0"  # of the nodes
_HEAD = "10.99.0.1"
_PORT = 6379  # nobody else is in that namespace


class Network:
    """Context manager.

    Attributes:
        address: of the head, in its namespace.
        environ: of Ray and its jobs.
        inside: what a command starts with to run on the head's host.
    """

    def __init__(self, folder: Path) -> None:
        self.address = f"{_HEAD}:{_PORT}"
        self.environ = job_environ(folder) | token_environ(write_token(folder))
        self.environ |= {
            "RAY_health_check_initial_delay_ms": "500",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # 0 would keep to 127.0.0.1
        }
        self._log = (folder / "ray.log").open("w")
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Network":
        self._temp_dir = tempfile.mkdtemp(prefix="inf-", dir="/tmp")
        try:
            self._head = self._namespace()
            self.inside = _inside(self._head)
            self._head_ip("link", "add", "b0", "type", "bridge")
            self._set_up(self._head, "b0", _HEAD)
            head = ["--head", f"--port={_PORT}", "--include-dashboard=false", "--num-cpus=0"]
            self._ray(self._head, _HEAD, *head, f"--temp-dir={self._temp_dir}")
            self._wait_for_ray(1)
            self._nodes = [self._node(number) for number in (1, 2)]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def cut(self, process: psutil.Process) -> None:
        """Cut the link of the node that this process runs on."""
        space = os.readlink(f"/proc/{process.pid}/ns/net")
        spaces = [os.readlink(f"/proc/{node}/ns/net") for node in self._nodes]
        self._head_ip("link", "set", f"v{spaces.index(space) + 1}", "down")

    def _namespace(self) -> int:
        """A new one, by the process that holds it."""
        ours = os.readlink("/proc/self/ns/net")
        holder = self._start(["unshare", "--net", "sleep", "infinity"])
        while os.readlink(f"/proc/{holder.pid}/ns/net") == ours:
            if holder.poll() is not None:
                pytest.skip("no network namespace can be made here (root and Linux are needed)")
            time.sleep(0.02)
        return holder.pid

    def _node(self, number: int) -> int:
        host, link = self._namespace(), f"v{number}"
        peer = ("peer", "name", INTERFACE, "netns", str(host))
        self._head_ip("link", "add", link, "type", "veth", *peer)
        self._head_ip("link", "set", link, "master", "b0", "up")
        address = f"10.99.0.{10 + number}"
        self._set_up(host, INTERFACE, address)
        self._ray(host, address, f"--address={self.address}", "--num-cpus=1")
        self._wait_for_ray(1 + number)  # two that start at once disturb each other's files
        return host

    def _set_up(self, host: int, interface: str, address: str) -> None:
        """Give a host its address, by which processes there find out who they are."""
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", interface),
            ("link", "set", interface, "up"),
            ("route", "add", "default", "dev", interface),
        ):
            subprocess.run([*_inside(host), "ip", *command], check=True)

    def _head_ip(self, *command: str) -> None:
        subprocess.run([*self.inside, "ip", *command], check=True)

    def _ray(self, host: int, address: str, *options: str) -> None:
        command = ["ray", "start", "--block", "--disable-usage-stats", *options]
        memory = f"--object-store-memory={2**27}"
        self._start([*_inside(host), *command, f"--node-ip-address={address}", memory])

    def _wait_for_ray(self, count: int) -> None:
        """Wait until so many parts of it run."""
        deadline = time.monotonic() + 90
        while Path(self._log.name).read_text(errors="replace").count("runtime started") < count:
            assert time.monotonic() < deadline, Path(self._log.name).read_text(errors="replace")
            time.sleep(0.2)

    def _start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        out = self._log
        process = subprocess.Popen(
            command, env=self.environ, cwd=REPOSITORY, stdout=out, stderr=out
        )
        self._processes.append(process)
        return process

    def _end(self) -> None:
        """End Ray's processes, then those that hold the namespaces."""
        for process in reversed(self._processes):
            below = psutil.Process(process.pid).children(recursive=True)
            for each in [*below, process]:
                each.kill()
            process.wait()
        self._log.close()
        shutil.rmtree(self._temp_dir, ignore_errors=True)


def _inside(host: int) -> list[str]:
    return ["nsenter", f"--target={host}", "--net"]
