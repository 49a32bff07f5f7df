"""Parts of the entry points that need no workers."""

import argparse
import errno
import json
import multiprocessing
import multiprocessing.util
import os
import re
import shutil
import socket
import tempfile
from multiprocessing.connection import arbitrary_address
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError, RayActorError

from infnet_dist.config.run import ScalingConfig
from infnet_dist.errors import CheckpointError, ConfigError, DataError, UserError
from infnet_dist.ingest.lock import exclusive
from infnet_dist.ingest.sources import update_training_set
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.paths import make_writable
from infnet_dist.training.run_folder import close_run_folder
from ray_jobs._cli import newest_checkpoint
from ray_jobs._cluster import connect, submission_id
from ray_jobs._forkserver import _use_a_short_temp_folder
from ray_jobs._options import run_id
from ray_jobs._ray_failures import nodes_drained, workers_failed
from ray_jobs._resources import missing_resources
from ray_jobs._supervise import _newest_checkpoint, train_with_restarts
from ray_jobs._worker_errors import WorkerLostError, is_broken_collective, root_error
from tests.runs import make_config


def test_root_error_prefers_a_users_error_then_a_real_one() -> None:
    echo = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:9")
    bug, user = KeyError("x"), DataError("row 7 is bad")
    assert root_error({0: echo, 1: bug, 2: user}) is user
    assert root_error({0: echo, 1: bug}) is bug
    assert root_error({0: echo}) is echo
    assert root_error({1: echo, 0: bug}) is bug


def test_what_names_a_path_is_no_broken_collective() -> None:
    for text in (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Broken pipe",
        "[enforce fail at ../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] . Timed out",
        "NCCL communicator was aborted on rank 1",
        "[Rank 1] WorkNCCL(SeqNum=7, OpType=ALLREDUCE) timed out",
    ):
        assert is_broken_collective(RuntimeError(text)), text
    for error in (
        DataError("/data/gloo/train/part-00000.parquet can't be read"),
        RuntimeError("can't open /data/gloo/transport/table.bin"),
        OSError("[/data/gloo/x.cc:1] no such file"),
    ):
        assert not is_broken_collective(error), error
        assert not isinstance(workers_failed({0: error}), WorkerLostError), error


def test_rays_reason_for_a_lost_worker_is_in_the_error() -> None:
    gone = RayActorError(error_msg="The worker died. Worker exit detail: killed by signal 9")
    echo = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    lost = workers_failed({0: echo, 1: gone})
    assert isinstance(lost, WorkerLostError)
    assert re.fullmatch("worker 1 .*: killed by signal 9", str(lost))
    drained = nodes_drained([2, 1])
    assert isinstance(drained, WorkerLostError) and "worker 1, 2 " in str(drained)


def test_the_submission_id_of_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission_id() is None
    job = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_x", "owner": "me"}}
    for config, found in ((job, "raysubmit_x"), ({}, None), ({"metadata": None}, None)):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
        assert submission_id() == found


@pytest.mark.parametrize("error", [AuthenticationError("wrong"), ConnectionError("wrong\nnext")])
def test_a_cluster_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(**settings: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError) as refused:
        connect()
    for named in ("10.0.0.1:6379", "wrong", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"):
        assert named in str(refused.value)
    assert "next" not in str(refused.value)


def test_a_checkpoint_place_that_is_wrong_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what may pass is waited for."""
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    (tmp_path / "store" / "test").mkdir(parents=True)
    (tmp_path / "store" / "test" / "run").write_text("a file where the folder should be")
    config = make_config(tmp_path, tmp_path, checkpoint={"folder": str(tmp_path / "store")})
    with pytest.raises(CheckpointError, match=r"store/test/run .*Not a directory"):
        _newest_checkpoint(config, tmp_path / "run")
    assert not waited

    def away(folder: Folder) -> None:
        raise OSError(errno.EIO, "the store is away")

    monkeypatch.setattr("ray_jobs._supervise.newest", away)
    config = make_config(tmp_path, tmp_path, checkpoint={"retry_s": 0.1})
    with pytest.raises(CheckpointError, match=r"^worker 1 died; .* the store is away"):
        _newest_checkpoint(config, tmp_path / "run", because="worker 1 died; ")
    assert waited


def test_a_run_whose_folder_can_t_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    config = make_config(tmp_path, tmp_path)
    for place in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ConfigError, match=re.escape(str(place))):
            train_with_restarts(config, place, "local")


@pytest.mark.parametrize("length", [30, 75, 76, 130, 240])
def test_sockets_of_workers_have_paths_that_are_short_enough(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """However long the path of $TMPDIR is; a Unix socket's may have 107 characters."""
    folder = Path("/tmp") / f"{os.getpid()}".ljust(length - len("/tmp/"), "x")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {})
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *_, **__: None)
    _use_a_short_temp_folder()
    address = arbitrary_address("AF_UNIX")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address)
    assert address.startswith(str(folder)) == (length <= 75), "the user's choice where it fits"
    assert tempfile.gettempdir() == str(folder)
    shutil.rmtree(Path(address).parent)
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["/proc/none/below", "file", "file/below"])
def test_a_place_that_can_t_be_written_to_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    with pytest.raises(ConfigError) as refused:
        make_writable(folder, "--root")
    assert str(folder) in str(refused.value) and "--root" in str(refused.value)
    make_writable(tmp_path / "a" / "b", "--root")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_second_ingest_of_a_set_leaves_the_firsts_files(tmp_path: Path) -> None:
    partial = tmp_path / ".set.partial"
    partial.mkdir()
    config = make_config(tmp_path / "set", tmp_path, ingest={"source": "synthetic"})
    assert config.ingest is not None
    with exclusive(tmp_path / "set"), pytest.raises(DataError, match=str(tmp_path / "set")):
        update_training_set(
            config.ingest, tmp_path / "set", lambda tasks: iter(()), lambda *done: None
        )
    assert partial.is_dir()


def test_which_attempt_writes_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    ended = {"run_folder": str(tmp_path), "stopped": False, "steps": 4, "samples_per_s": 1663.0}
    idle = ended | {"samples_per_s": 0.0}
    assert close_run_folder(tmp_path, ended, trained=True) == ended
    assert close_run_folder(tmp_path, idle, trained=False) == ended
    assert json.loads(path.read_text()) == ended
    moved = ended | {"wandb": "/new"}  # the attempt has moved the earlier offline folder away
    assert close_run_folder(tmp_path, idle | {"wandb": "/new"}, trained=False) == moved
    assert json.loads(path.read_text()) == moved
    for other in ({"stopped": True}, {"steps": 3}, {"run_folder": "/moved"}):
        path.write_text(json.dumps(ended | other))
        assert close_run_folder(tmp_path, idle, trained=False) == idle, other
    for content in ("{", "[]", "null", '{"steps": 4}'):
        path.write_text(content)
        close_run_folder(tmp_path, idle, trained=False)
        assert json.loads(path.read_text()) == idle
    newer = ended | {"samples_per_s": 7.0}
    assert close_run_folder(tmp_path, newer, trained=True) == newer
    assert json.loads(path.read_text()) == newer


def test_lacking_resources_are_named() -> None:
    scaling = ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2})
    assert missing_resources({"CPU": 6.0}, scaling, 3) is None
    text = missing_resources({"CPU": 4.0}, scaling, 3)
    assert text is not None
    for named in ("3 workers x 2 CPU", "4 CPU", "scaling.num_workers", "resources_per_worker"):
        assert named in text
    gpus = missing_resources({"CPU": 8.0}, ScalingConfig(num_workers=1, use_gpu=True), 1)
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

    with pytest.raises(CheckpointError, match=f"{tmp_path}/test"):
        newest_checkpoint(config, None)
    old = add("zebra", 900, age_s=500)
    new = add("20261122-111407", 10, age_s=5)
    add("zz-crashed", 3, age_s=0, complete=False)
    assert newest_checkpoint(config, None) == Folder(new)
    assert newest_checkpoint(config, "zebra") == Folder(old)
    with pytest.raises(CheckpointError, match="zz-crashed"):
        newest_checkpoint(config, "zz-crashed")


@pytest.mark.parametrize("text", ["../../escape", "/tmp/x", "", ".hidden", "a b"])
def test_a_run_id_is_a_plain_name(text: str) -> None:
    assert run_id("20261122-111407") == "20261122-111407"
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        run_id(text)
