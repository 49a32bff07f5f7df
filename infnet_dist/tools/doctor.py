"""Checks whether this machine can train, and shows a fix for each problem.

    infnet doctor [--workers 2] [--json]

Mismatched builds of torch, fbgemm and torchrec can crash the interpreter, so each import and lookup
runs in a process of its own, with a time limit (doctor_probes). This file imports the standard
library alone, and rich where installed, so that it runs where everything else is broken.

Exit code 1: training can't work. Warnings alone give 0.
"""

import argparse
import json
import netrc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

Status = Literal["ok", "info", "warn", "fail"]

PYTHON = (3, 11)
PINS = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0"}
# torch's minor -> the one minor of fbgemm and torchrec that was built for it.
KNOWN_GOOD = {"2.9": "1.4", "2.13": "1.8", "2.14": "1.9"}
FBGEMM_PACKAGES = ("fbgemm-gpu-cpu", "fbgemm-gpu")

PROBE = ("-m", "infnet_dist.tools.doctor_probes")
TRIPLE_PROBES = ("torch", "fbgemm_gpu", "torchrec", "lookup", "fused_update")
OTHER_PROBES = ("ray", "pyarrow", "matplotlib")

PIP = f"{sys.executable} -m pip"
# By hand, because `make install` runs again only when the pins change.
INSTALL = "rm -f .venv/installed-* && make install"
INSTALL_NO_DEPS = f"{PIP} install --no-deps -r requirements/no-deps.txt"


@dataclass(frozen=True)
class Check:
    """One finding; `fix` is a command that fixes it."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def run_probe(
    name: str,
    command: Sequence[str],
    fix: str,
    *,
    timeout_s: float = 120.0,
    folder: Path | None = None,
) -> Check:
    """Run a command that prints its finding last; a crash or a hang is a finding too."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"no answer within {timeout_s:g} s", fix)
    if done.returncode == 0:
        return Check(name, "ok", _last_line(done.stdout))
    if done.returncode < 0:
        crash = signal.Signals(-done.returncode).name
        return Check(name, "fail", f"the interpreter crashed with {crash}", fix)
    return Check(name, "fail", _last_line(done.stderr), fix)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Check the minor version of Python, for which the pins were verified."""
    text = ".".join(map(str, version[:3]))
    if tuple(version[:2]) == PYTHON:
        return Check("Python", "ok", text)
    return Check("Python", "fail", f"{text}, needed: 3.11", "make clean install PYTHON=python3.11")


def triple_fix() -> str:
    """The command that installs the pinned triple, whatever state it is in."""
    flavour = "fbgemm-gpu" if _version("fbgemm-gpu") else "fbgemm-gpu-cpu"
    packages = [f"torch=={PINS['torch']}", f"{flavour}=={PINS['fbgemm']}"]
    packages.append(f"torchrec=={PINS['torchrec']}")
    return f"{PIP} install --force-reinstall --no-deps {' '.join(packages)}"


def check_triple(torch: str | None, fbgemm: str | None, torchrec: str | None) -> Check:
    """Check that torch, fbgemm and torchrec were built for each other.

    Args:
        torch: its version, such as `2.13.0+cpu`; None where not installed.
        fbgemm: likewise, of whichever build is installed.
        torchrec: likewise.
    """
    got = {"torch": torch, "fbgemm": fbgemm, "torchrec": torchrec}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in got.items())
    fix = triple_fix()
    if torch is None or fbgemm is None or torchrec is None:
        return Check("versions", "fail", text, fix)
    expected = KNOWN_GOOD.get(_minor(torch))
    if expected is None:
        known = ", ".join(KNOWN_GOOD)
        return Check("versions", "fail", f"{text}; torch known to work: {known}", fix)
    if {_minor(fbgemm), _minor(torchrec)} != {expected}:
        detail = f"{text}; torch {_minor(torch)} needs fbgemm and torchrec {expected}"
        return Check("versions", "fail", detail, fix)
    if {name: version.split("+")[0] for name, version in got.items() if version} != PINS:
        pins = ", ".join(f"{name} {version}" for name, version in PINS.items())
        return Check("versions", "warn", f"{text}; a known triple, but tested are: {pins}", fix)
    return Check("versions", "ok", text)


def check_installed_triple() -> Check:
    """`check_triple` of what is installed."""
    fbgemm = {name: _version(name) for name in FBGEMM_PACKAGES if _version(name)}
    if len(fbgemm) > 1:
        fix = f"{PIP} uninstall --yes {' '.join(fbgemm)} && {INSTALL}"
        detail = f"{' and '.join(fbgemm)} are both installed and overwrite each other"
        return Check("versions", "fail", detail, fix)
    return check_triple(_version("torch"), next(iter(fbgemm.values()), None), _version("torchrec"))


def check_upload(folder: Path) -> Check:
    """Check the size of a working folder for a Ray job; local runs need no upload.

    Args:
        folder: the folder for `ray job submit --working-dir`.
    """
    fix = f"$EDITOR {folder / '.rayignore'}  # a line for each large entry: /NAME/ or *.ENDING"
    found = run_probe("job upload", [*PROBE, "upload"], fix, folder=folder)
    return replace(found, status="warn") if found.status == "fail" else found


def check_petastorm() -> Check:
    """Check petastorm, which only its adapter needs: it never stops training."""
    version, pyarrow = _version("petastorm"), _version("pyarrow")
    if version is None:
        return Check("petastorm", "warn", "missing; only its adapter needs it", INSTALL_NO_DEPS)
    detail = version
    if pyarrow and int(pyarrow.split(".")[0]) > 14:
        detail += (
            f"; a plain `import petastorm` fails with pyarrow {pyarrow} by nature: "
            "the Petastorm adapter brings the bridge"
        )
    return Check("petastorm", "info", detail)


def check_wandb(environ: Mapping[str, str] = os.environ) -> Check:
    """Report W&B's version, and whether runs are online or offline."""
    version = _version("wandb")
    if version is None:
        return Check("wandb", "warn", "missing; metrics go to metrics.jsonl alone", INSTALL)
    if environ.get("WANDB_MODE"):
        mode = f"WANDB_MODE={environ['WANDB_MODE']}"
    elif environ.get("WANDB_API_KEY") or _netrc_names_wandb():
        mode = "API key found: online"
    else:
        mode = "no API key: offline (upload later with `infnet sync RUN_FOLDER`)"
    return Check("wandb", "info", f"{version}; {mode}")


def check_threads(threads: str | None, cores: int, workers: int) -> Check:
    """Check that worker processes times threads don't exceed the cores.

    Args:
        threads: the value of OMP_NUM_THREADS, or None where unset (torch then takes all cores).
        cores: cores that this process may use.
        workers: worker processes of the run.
    """
    given = threads is not None and threads.isdecimal() and int(threads) > 0
    per_worker = int(threads) if given and threads else cores
    said = f"OMP_NUM_THREADS={threads}" if threads is not None else "OMP_NUM_THREADS unset"
    detail = f"{said}: {workers} workers x {per_worker} threads on {cores} cores"
    if per_worker > 1 and workers * per_worker > cores:
        fix = "export OMP_NUM_THREADS=1"
        return Check("threads", "warn", f"{detail}; a step can be 5-10 times slower", fix)
    return Check("threads", "ok", detail)


def check_memory() -> Check:
    """Check the free memory, as the kernel estimates it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        gib = next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable")) / 2**20
    except (OSError, StopIteration):
        return Check("memory", "info", "unknown on this system")
    if gib < 4:
        fix = "make smoke CONFIG=configs/smoke.yaml  # a small run; close other programs first"
        return Check("memory", "warn", f"{gib:.1f} GiB free; the smoke run wants 4", fix)
    return Check("memory", "ok", f"{gib:.1f} GiB free")


def check_space(name: str, path: Path, least_gib: float, fix: str) -> Check:
    """Check the free space in the file system that holds `path`."""
    if not path.is_dir():
        return Check(name, "info", f"no {path} on this system")
    gib = shutil.disk_usage(path).free / 2**30
    if gib < least_gib:
        return Check(name, "warn", f"{gib:.1f} GiB free, wanted: {least_gib:g}", fix)
    return Check(name, "ok", f"{gib:.1f} GiB free")


def check_gpu() -> Check:
    """Check CUDA and NCCL, and that torch and fbgemm are builds that can use them."""
    probe = run_probe("GPU", [*PROBE, "gpu"], INSTALL)
    if probe.status == "fail":
        return Check("GPU", "info", "unknown, because torch doesn't load")
    has_driver = Path("/proc/driver/nvidia/version").exists()
    usable = "NCCL" in probe.detail
    if not has_driver and not usable:
        return Check("GPU", "info", "none; runs use the CPU and gloo")
    fix = "make install EXTRA=gpu"
    if not usable:
        return Check("GPU", "warn", f"an NVIDIA driver is here, but torch sees {probe.detail}", fix)
    if _version("fbgemm-gpu") is None:
        return Check("GPU", "warn", f"{probe.detail}; but fbgemm is the CPU build", fix)
    return Check("GPU", "ok", probe.detail)


def checks_for(workers: int) -> list[Callable[[], Check]]:
    """All checks, in the order of the report."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    return [
        check_python,
        check_installed_triple,
        *(partial(run_probe, name, [*PROBE, name], triple_fix()) for name in TRIPLE_PROBES),
        *(partial(run_probe, name, [*PROBE, name], INSTALL) for name in OTHER_PROBES),
        partial(check_upload, Path.cwd()),
        check_petastorm,
        check_wandb,
        partial(check_threads, threads, cores or 1, workers),
        check_memory,
        partial(check_space, "disk", Path.cwd(), 5, "make clean  # or make room otherwise"),
        partial(
            check_space,
            "/dev/shm",
            Path("/dev/shm"),
            1,
            "mount -o remount,size=2G /dev/shm  # in Docker: docker run --shm-size=2g",
        ),
        check_gpu,
    ]


def report(checks: Sequence[Check]) -> None:
    """Print a table, then each fix on a line of its own, ready to copy."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for check in checks:
            print(f"{check.status:4}  {check.name:24} {check.detail}")
    else:
        colours = {"ok": "green", "info": "blue", "warn": "yellow", "fail": "red"}
        table = Table("check", "status", "finding")
        for check in checks:
            colour = colours[check.status]
            table.add_row(check.name, f"[{colour}]{check.status}[/]", check.detail)
        Console().print(table)
    fixes: dict[str, list[str]] = {}
    for check in checks:
        if check.fix:
            fixes.setdefault(check.fix, []).append(check.name)
    for fix, names in fixes.items():
        print(f"to fix {', '.join(names)}:\n    {fix}")


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --json."""
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks, print them, and return the exit code."""
    parser = argparse.ArgumentParser(prog="infnet doctor", description=__doc__.splitlines()[0])
    add_doctor_options(parser)
    args = parser.parse_args(argv)
    with ThreadPoolExecutor(max_workers=2) as pool:
        checks = list(pool.map(lambda check: check(), checks_for(args.workers)))
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        report(checks)
    return 1 if any(check.status == "fail" for check in checks) else 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _netrc_names_wandb() -> bool:
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


if __name__ == "__main__":
    sys.exit(main())
