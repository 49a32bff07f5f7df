"""Parts of the entry points that need no workers."""

import argparse
import os
from pathlib import Path

import pytest

from infnet_dist.config import ScalingConfig
from infnet_dist.errors import CheckpointError, DataError
from infnet_dist.filesystem import Folder
from ray_jobs._cli import newest_checkpoint, run_id
from ray_jobs._launch import _lacking
from ray_jobs._local import root_error
from tests.runs import make_config


def test_root_error_prefers_a_users_error_then_a_real_one() -> None:
    echo = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    bug, user = KeyError("x"), DataError("row 7 is bad")
    assert root_error({0: echo, 1: bug, 2: user}) is user
    assert root_error({0: echo, 1: bug}) is bug
    assert root_error({0: echo}) is echo
    assert root_error({1: echo, 0: bug}) is bug


def test_lacking_resources_are_named() -> None:
    scaling = ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2})
    assert _lacking({"CPU": 6.0}, scaling) is None
    text = _lacking({"CPU": 4.0}, scaling)
    assert text is not None
    assert (
        "3 workers x 2 CPU don't fit this Ray cluster, which has 4 CPU; lower scaling.num" in text
    )
    gpus = _lacking({"CPU": 8.0}, ScalingConfig(num_workers=1, use_gpu=True))
    assert gpus is not None
    assert "1 workers x 1 GPU" in gpus


def test_the_newest_checkpoint_is_by_time_and_complete(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path)

    def add(run: str, step: int, age_s: int, complete: bool = True) -> Path:
        folder = tmp_path / "test" / run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").write_text("{}")
            os.utime(folder / "manifest.json", (1e9 - age_s, 1e9 - age_s))
        return folder

    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*test; train first"):
        newest_checkpoint(config, None)
    old = add("zebra", 900, age_s=500)
    new = add("20261122-111407", 10, age_s=5)
    add("zz-crashed", 3, age_s=0, complete=False)
    assert newest_checkpoint(config, None) == Folder(new)
    assert newest_checkpoint(config, "zebra") == Folder(old)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*zz-crashed"):
        newest_checkpoint(config, "zz-crashed")


@pytest.mark.parametrize("text", ["../../escape", "/tmp/x", "", ".hidden", "a b"])
def test_a_run_id_is_a_plain_name(text: str) -> None:
    assert run_id("20261122-111407") == "20261122-111407"
    with pytest.raises(argparse.ArgumentTypeError, match="is no plain name"):
        run_id(text)
