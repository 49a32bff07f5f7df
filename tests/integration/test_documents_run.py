"""Every command of README, docs and configs, run as documented, on run files made small."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from ray_jobs._local_ray import LocalRay
from tests.conftest import REPOSITORY
from tests.documented import PROGRAMS, Block, blocks, documents, spans, words

pytestmark = pytest.mark.exhaustive

COPIED = ("infnet_dist", "ray_jobs", "sharding_plans", "configs")
USERS, ROWS = 400, 3_000  # of the real data
LOCAL = "--launcher local"

# Changes that make a documented run small; the tables are unchanged, so that plan files fit.
SMALLER: dict[str, dict[str, Any]] = {
    "smoke.yaml": {"ingest": {"num_rows": 4_000}},
    "daily.yaml": {"data": {"batch_size": 32}},
    "industrial.yaml": {"ingest": {"num_rows": 4_000}},
    "kuairand_pure.yaml": {"data": {"batch_size": 64}},
    "kuairand_logs.yaml": {"data": {"batch_size": 64}},
}
MODELS = {  # in place of a comparison's
    "linear": {
        "name": "stack",
        "sequence": {"name": "none"},
        "interaction": {"name": "linear"},
        "head": {"name": "linear"},
    },
    "infnet": {"name": "infnet", "token_dim": 8},
}
# What a reader fills in.
STEPS = "runs/test/first/checkpoints/step-000000"
FILLED_IN = {
    "A B": f"{STEPS}24 {STEPS}32",
    "B C": f"{STEPS}32 {STEPS}38",
    "apply A": f"apply {STEPS}24",
    "/data/ranking": ".",
    "TABLES.yaml": "sharding_plans/tables/industrial.yaml",
    "CPU_PLAN": "cpu_plan.json",
    "PLAN": "made_plan.json",
    "NEW": "new_plan.json",
    "configs/x.yaml": "configs/smoke.yaml",
    "ingest.path=FOLDER": "ingest.path={raw}",
    "20261122-111407": "first",
    "RUN_ID": "first",
    "CHECKPOINT": "$(ls -d runs/smoke/first/checkpoints/step-* | tail -1)",
}
FIRST_RUN = (
    "python -m ray_jobs.ingest --config configs/smoke.yaml\n"
    f"python -m ray_jobs.train --config configs/smoke.yaml {LOCAL} --run-id first"
)
# What a command needs: its folder, and the commands that make it.
MADE = {
    "compare_kuairand": (
        "data/kuairand_pure",
        "python -m ray_jobs.ingest --config configs/kuairand_pure.yaml "
        "--set ingest.path=raw/kuairand_pure_slice",
    ),
    "compare_census": (
        "data/census_income",
        "python -m ray_jobs.ingest --config configs/census_income.yaml "
        "--set ingest.path=raw/census_income_kdd",
    ),
    "train --config configs/smoke.yaml": (
        "data/smoke",
        "python -m ray_jobs.ingest --config configs/smoke.yaml",
    ),
    "compare_synthetic": ("data/smoke", "python -m ray_jobs.ingest --config configs/smoke.yaml"),
    "plan widths": (
        "data/smoke",
        "python -m ray_jobs.ingest --config configs/smoke.yaml",
    ),
    "plan to-cpu": (
        "data/industrial",
        "python -m ray_jobs.ingest --config configs/industrial.yaml",
    ),
    "--topology cluster.json": (
        "cluster.json",
        "python -m ray_jobs plan calibrate --output cluster.json",
    ),
    "runs/smoke/first": ("runs/smoke/first", FIRST_RUN),
    "--run-id first": ("runs/smoke/first", FIRST_RUN),
    "compare_conflict": (
        "data/conflict",
        "python -m ray_jobs.ingest --config configs/smoke.yaml "
        "--set ingest.own_favourites=true --set data.path=data/conflict",
    ),
    "runs/test/": (
        "runs/test/columns",
        "python -m ray_jobs.ingest --config tiny.yaml\n"
        f"python -m ray_jobs.train --config tiny.yaml {LOCAL} --run-id first\n"
        f"python -m ray_jobs.train --config tiny.yaml {LOCAL} --run-id columns "
        "--set training.max_steps=3",
    ),
}
TINY = {
    "run": {"name": "test"},
    "ingest": {"source": "synthetic", "num_rows": 4_000, "num_users": 60, "num_items": 80},
    "data": {"path": "data/tiny", "batch_size": 32},
    "model": {"token_dim": 8},
    "checkpoint": {"every_steps": 8, "keep_last": 9},
    "training": {"max_steps": 38},
    "scaling": {"num_workers": 1},
}


def documented() -> list[Block]:
    """Blocks that run something, once each."""
    found: dict[str, Block] = {}
    for path in documents():
        if path.suffix == ".md":
            for block in [*blocks(path), *spans(path)]:
                script = "\n".join(line for line in block.script.splitlines() if runs(line))
                if any(line.split()[0] in PROGRAMS for line in script.splitlines()):
                    found.setdefault(script, Block(block.where, script))
    return list(found.values())


def runs(line: str) -> bool:
    """Whether a line is run here.

    Left out: benchmarks (test_benchmarks.py), make's targets (test_documented_commands.py), the
    mention of a command in prose, what needs W&B's server (test_tracking.py), what never ends, and
    what the fixtures do: a Ray, the environment.
    """
    left_out = (
        r"make |source |ray start|infnet sync|.*(wandb|benchmarks/|COMMAND|--every)|"
        r"(python -m|infnet) \S+$"
    )
    return not re.match(left_out, line)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with small runs, and a part of the real data where there is some."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        shutil.copytree(
            REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(REPOSITORY / ".rayignore", folder)
    for path in (folder / "configs").glob("*.yaml"):
        path.write_text(yaml.safe_dump(small(path), sort_keys=False))
    my_logs = yaml.safe_load((folder / "configs" / "kuairand_logs.yaml").read_text())
    my_logs["data"]["path"] = "data/my"
    (folder / "my.yaml").write_text(yaml.safe_dump(my_logs))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    shared = Path(os.environ.get("INFNET_SHARED", REPOSITORY.parent / "shared")) / "data"
    for path in shared.glob("*/*.parquet"):
        part = folder / "raw" / path.parent.name / path.name
        part.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part_of(path), part)
    return folder


def small(path: Path) -> dict[str, Any]:
    """A run file or a comparison, made small."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text())
    if "models" in raw:
        raw |= {"models": MODELS, "seeds": [0], "finalists": 1}
        for key in ("grid", "ablations", "always_finalists"):
            raw.pop(key, None)
        raw["set"]["data.batch_size"] = 64
    for section, values in SMALLER.get(path.name, {}).items():
        raw[section] |= values
    return raw


def part_of(path: Path) -> Any:
    """Some users' rows of a table that has users; of others, the first rows."""
    table = pq.read_table(path)
    if "interactions" in path.name:
        return table.filter(pc.less(table["user_id"], USERS))
    return table if "kuairand" in path.parent.name else table.slice(0, ROWS)


@pytest.fixture(scope="module")
def environ(checkout: Path) -> Iterator[dict[str, str]]:
    """Of a user of a cluster of ours."""
    with LocalRay(checkout, num_cpus=4) as ray:
        yield ray.environ | {
            "RAY_ADDRESS": ray.address,
            "RAY_API_SERVER_ADDRESS": ray.dashboard_url,
            "WANDB_MODE": "offline",
            "ROOT": json.dumps({"env_vars": {"INFNET_ROOT": str(checkout)}}),
        }


BLOCKS = documented()


def test_commands_are_found() -> None:
    commands = [line for block in BLOCKS for line in block.commands]
    assert len(commands) >= 30
    verbs = {words(command)[1] for command in commands if command.startswith("infnet")}
    assert verbs >= {"ingest", "plan", "train", "evaluate", "compare", "checkpoint", "smoke"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_documented_block_runs(block: Block, checkout: Path, environ: dict[str, str]) -> None:
    script = re.sub(r"export (ROOT|RAY_AUTH_MODE)=.*", "", block.script)
    script = re.sub(r"^infnet ", "python -m ray_jobs ", script, flags=re.MULTILINE)
    real = "census_income_kdd" if "census" in script else "kuairand_pure_slice"
    needs_real = re.search(r"census|kuairand|my\.yaml", script)
    if needs_real and not (checkout / "raw" / real).exists():
        pytest.skip(f"needs {real} in the data folder of INFNET_SHARED")
    if "check PLAN" in script:  # of the run at hand, not of the tables that were planned
        script = script.replace("PLAN", "sharding_plans/smoke-2xcpu.json")
    for blank, filled in FILLED_IN.items():
        script = re.sub(rf"\b{blank}\b" if blank.isupper() else re.escape(blank), filled, script)
    script = script.replace("{raw}", str(checkout / "raw" / real))
    # Its exit code says that there are differences.
    script = re.sub(r"(checkpoint diff .*)", r"\1 || [ $? = 1 ]", script)
    for name, (folder, make) in MADE.items():
        if name in script and not (checkout / folder).exists():
            run(make, checkout, environ)
    run(script, checkout, environ)


def run(script: str, folder: Path, environ: dict[str, str]) -> None:
    """Run the lines of a script; the first that fails fails the test."""
    done = subprocess.run(
        ["bash", "-exuo", "pipefail", "-c", script],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-6_000:]}"
