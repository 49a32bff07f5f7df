"""A run deletes checkpoints that it no longer needs, once a newer one is complete."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from infnet_dist.checkpoint.cli.command import main
from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.retention import prune
from infnet_dist.config.run import CheckpointConfig
from infnet_dist.io.filesystem import Folder
from tests.checkpoints import whole, write_checkpoint

BEST = CheckpointConfig(keep_last=1, keep_best="valid/auc/click")


def run_of(folder: Path, scores: dict[int, float]) -> Folder:
    """A run's checkpoints by step with their AUC; the newest one."""
    for step, auc in scores.items():
        newest = write_checkpoint(
            Folder(folder),
            {"model.x": whole(torch.zeros(4))},
            step=step,
            metrics={"valid/auc/click": auc},
        )
    return newest


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def failing(method: str, step: int) -> mock._patch:
    """Storage that fails for one checkpoint."""
    real: Callable[..., object] = getattr(Folder, method)

    def fail(self: Folder, *arguments: object) -> object:
        if self.name == f"step-{step:08d}":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments)

    return mock.patch.object(Folder, method, fail)


def test_nothing_is_deleted_while_the_best_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run_of(tmp_path, {10: 0.6, 20: 0.9, 30: 0.7, 40: 0.5})
    left_over = Path(newest.url) / "left-over"
    left_over.write_text("of an attempt before")
    manifest = read_manifest(newest)
    with failing("read", 20):
        assert prune(Folder(tmp_path), BEST, newest=newest, manifest=manifest) == []
    assert steps(tmp_path) == [10, 20, 30, 40] and left_over.exists()
    assert "can't delete old checkpoints" in caplog.text and "Input/output" in caplog.text
    prune(Folder(tmp_path), BEST, newest=newest, manifest=manifest)
    assert steps(tmp_path) == [20, 40] and not left_over.exists()


def test_the_damaged_do_not_count(tmp_path: Path) -> None:
    run_of(tmp_path, {20: 0.5, 27: 0.9})
    newest = run_of(tmp_path, {30: 0.6})
    config = CheckpointConfig(keep_last=2, keep_best="valid/auc/click")
    manifest = read_manifest(newest)
    prune(Folder(tmp_path), config, newest=newest, manifest=manifest, damaged=["step-00000027"])
    assert steps(tmp_path) == [20, 30], "if the newest gets lost the run resumes from 20"


def test_what_can_t_be_deleted_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run_of(tmp_path, {10: 0.6, 20: 0.9, 30: 0.7})
    real = os.unlink

    def fail(path: str, **more: Any) -> None:
        folder = os.readlink(f"/proc/self/fd/{more['dir_fd']}") if more else ""
        if undeletable in folder:
            raise OSError(errno.EACCES, "Permission denied", path)
        real(path, **more)

    undeletable = "step-00000010"
    config, manifest = CheckpointConfig(keep_last=1), read_manifest(newest)
    with mock.patch.object(os, "unlink", fail):
        gone = prune(Folder(tmp_path), config, newest=newest, manifest=manifest)
    assert [folder.name for folder in gone] == ["step-00000020"]
    assert steps(tmp_path) == [10, 30], "one that can't be deleted doesn't keep the others"
    assert "can't delete the old checkpoint" in caplog.text and "Permission denied" in caplog.text

    undeletable = "step-00000030"
    run_of(tmp_path, {40: 0.7})
    with mock.patch.object(os, "unlink", fail):
        assert main(["prune", str(tmp_path), "--keep-last", "1", "--yes"]) == 1
    output = capsys.readouterr()
    assert "Permission denied" in output.err and f"{undeletable}/" in output.err
    assert "\ndeleted" not in output.out
