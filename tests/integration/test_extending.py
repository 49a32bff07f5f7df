"""The examples of docs/extending.md, applied to a copy of the repository and run as printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infnet_dist.data.manifest import read_manifest
from tests.conftest import REPOSITORY
from tests.documented import blocks

PAGE = REPOSITORY / "docs" / "extending.md"
COPIED = ("infnet_dist", "ray_jobs", "sharding_plans", "configs", "pyproject.toml")
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def apply_page(folder: Path) -> list[str]:
    """Apply every block of the page to the files of `folder`; returns the files it touched."""
    touched = []
    for language, text in _FENCED.findall(PAGE.read_text()):
        if language == "diff":
            for patch in re.split(r"^\+\+\+ ", text, flags=re.MULTILINE)[1:]:
                name, _, hunks = patch.partition("\n")
                path = folder / name
                path.write_text(patched(path.read_text(), hunks, name))
                touched.append(name)
        else:
            name, _, content = text.removeprefix("# ").partition("\n")
            path = folder / name
            assert not path.exists(), f"{name} is said to be new"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            touched.append(name)
    return touched


def patched(text: str, hunks: str, name: str) -> str:
    """The text with the hunks of a diff applied; each must have exactly one place."""
    for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert before and text.count(before) == 1, (
            f"{name} has {text.count(before)} times:\n{before}"
        )
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the examples, and a small smoke run."""
    folder = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    smoke = folder / "configs" / "smoke.yaml"
    raw = yaml.safe_load(smoke.read_text())
    raw["ingest"] |= {"num_rows": 4_000}
    smoke.write_text(yaml.safe_dump(raw, sort_keys=False))
    touched = apply_page(folder)
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet"]
    modules = [name for name in touched if name.endswith(".py")]
    subprocess.run([*ruff, *modules], cwd=folder, check=True)
    return folder


def test_the_blocks_have_their_places(checkout: Path) -> None:
    assert (checkout / "infnet_dist/ingest/jsonl.py").exists()


@pytest.mark.exhaustive
def test_the_examples_run(checkout: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(checkout), "WANDB_MODE": "disabled"}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    for block in blocks(PAGE):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", in_the_copy(block.script)],
            cwd=checkout,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{block.where}\n{block.script}\n{done.stdout[-6_000:]}"
    check_model_and_metric(checkout)
    check_feature_kind_and_source(checkout)


def in_the_copy(script: str) -> str:
    """The script with `infnet` as it is in the copy, not as it is installed."""
    return re.sub(r"^infnet ", "python -m ray_jobs ", script, flags=re.MULTILINE)


def check_model_and_metric(checkout: Path) -> None:
    (summary,) = (checkout / "runs" / "smoke").glob("*/summary.json")
    run = summary.parent
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["name"] == "autoint"
    metrics = json.loads(summary.read_text())["metrics"]
    evaluated = json.loads(next(run.glob("evaluation-valid-*.json")).read_text())
    assert 0 < metrics["valid/brier/click"] < 0.3
    assert evaluated["metrics"]["valid/brier/click"] == metrics["valid/brier/click"]


def check_feature_kind_and_source(checkout: Path) -> None:
    (price,) = read_manifest(checkout / "data" / "prices").schema_.dense
    assert price.boundaries == pytest.approx([12.5 * i for i in range(1, 8)], abs=0.1)
    made = read_manifest(checkout / "data" / "clicks")
    assert made.splits["train"].rows == 1_080 and made.splits["valid"].rows == 920
    (summary,) = (checkout / "runs" / "clicks").glob("*/summary.json")
    assert json.loads(summary.read_text())["steps"] == 5


def test_a_hunk_without_its_place_is_seen() -> None:
    assert patched("a\nb\n", "@@\n a\n+c\n", "x.py") == "a\nc\nb\n"
    assert patched("a\nb\n", "@@\n-a\n+c\n", "x.py") == "c\nb\n"
    for text in ("b\n", "a\na\n"):
        with pytest.raises(AssertionError, match=r"x\.py"):
            patched(text, "@@\n a\n+c\n", "x.py")
