"""Storage that fails, or a disk that is full, for a moment doesn't end a run."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from infnet_dist.checkpoint import loading
from infnet_dist.checkpoint.manifest import UnreadableError
from infnet_dist.checkpoint.writable import check_writable
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext, local_process_group
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.ports import free_ports
from tests.runs import make_config


@pytest.fixture
def context() -> Iterator[WorkerContext]:
    with local_process_group(0, 1, use_gpu=False, port=free_ports(1)[0], timeout_s=60) as context:
        yield context


def failing(method: str, times: int, number: int = errno.ENOSPC) -> mock._patch:
    """The first calls of a folder's method raise an error."""
    real: Callable[..., object] = getattr(Folder, method)
    left = [times]

    def fail(self: Folder, *arguments: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(number, "the storage is away")
        return real(self, *arguments)

    return mock.patch.object(Folder, method, fail)


def config_of(folder: Path, retry_s: float = 30) -> Config:
    return make_config(folder, folder, checkpoint={"retry_s": retry_s})


def test_listing_is_tried_again(tmp_path: Path, context: WorkerContext) -> None:
    sharded: Any = torch.nn.Module()
    with failing("entries", 2, errno.EIO):
        assert loading.load_newest(Folder(tmp_path), sharded, context) == (None, [])
    short = mock.patch.object(loading, "_RETRY_S", 0.1)
    with (
        short,
        failing("entries", 9, errno.EIO),
        pytest.raises(UnreadableError, match=str(tmp_path)),
    ):
        loading.load_newest(Folder(tmp_path), sharded, context)


def test_whether_a_place_can_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with failing("put", 2):
        check_writable(Folder(tmp_path), config_of(tmp_path), resumed=False)
    assert caplog.text.count("can't write") == 2 and list(tmp_path.iterdir()) == []
    with failing("put", 99), pytest.raises(CheckpointError, match="the storage is away"):
        check_writable(Folder(tmp_path), config_of(tmp_path, retry_s=0), resumed=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ENOENT])
def test_a_wrong_place_is_an_error_at_once(tmp_path: Path, number: int) -> None:
    with failing("put", 1, number), pytest.raises(CheckpointError, match=str(tmp_path)):
        check_writable(Folder(tmp_path), config_of(tmp_path), resumed=False)


def test_a_resumed_run_is_only_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with failing("put", 1):
        check_writable(Folder(tmp_path), config_of(tmp_path), resumed=True)
    assert "the storage is away" in caplog.text
    assert "retrying" not in caplog.text


def test_a_probe_that_can_t_be_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with failing("delete", 1):
        check_writable(Folder(tmp_path), config_of(tmp_path), resumed=False)
    assert "can't delete" in caplog.text and (tmp_path / "probe").exists()
