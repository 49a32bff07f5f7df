"""`python -m infnet_dist.checkpoint`, on checkpoints made by hand."""

import contextlib
import errno
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet_dist.checkpoint import export, files, inspection
from infnet_dist.checkpoint.cli.command import main
from infnet_dist.checkpoint.manifest import CheckpointManifest, read_manifest
from infnet_dist.checkpoint.retention import delete, prune
from infnet_dist.config.run import CheckpointConfig
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from tests.checkpoints import (
    OLD_STATE,
    OLD_TABLE,
    STATE,
    TABLE,
    Cut,
    by_columns,
    by_rows,
    whole,
    write_checkpoint,
)

PLAN = json.dumps(
    {
        "made_for": {"topology": {"name": "cpu", "num_nodes": 1, "workers_per_node": 3}},
        "tables": {"user": {"sharding_type": "row_wise"}, "item": {"sharding_type": "column_wise"}},
    }
)
CONFIG = "run: {name: test}\nmodel: {name: infnet, token_dim: 8}\n"
BLOCK = 256


def planted(seed: int = 0) -> dict[str, Cut]:
    """A table of each way of sharding, with states; and a dense part."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    user_state, item_state = values(101).abs(), values(2 * 37).abs()
    user_state[[3, 50]] = 0
    item_state[[5, 9, 37 + 9]] = 0  # row 9 alone is 0 in both column shards
    return {
        TABLE.format("user"): by_rows(values(101, 8), 3),
        STATE.format("user"): by_rows(user_state, 3),
        TABLE.format("item"): by_columns(values(37, 12).half(), 2),
        STATE.format("item"): by_rows(item_state, 2),
        TABLE.format("author"): whole(values(11, 4), 1),
        STATE.format("author"): whole(torch.zeros(11), 1),
        TABLE.format("frozen"): whole(values(3, 4), 2),
        "model.model.dense.head.weight": whole(values(5, 3), 0),
        "model.model.dense.head.bias": whole(values(5), 1),
        "optimizer.dense.model.dense.head.weight.step": whole(torch.tensor(7.0), 2),
    }


def old_name(name: str) -> str:
    """The name that an earlier version gave a tensor of a table."""
    part, kind, *rest = name.split(".")
    if kind != "tables":
        return name
    return (OLD_TABLE if part == "model" else OLD_STATE).format(rest[0])


def make(
    place: Path | str, step: int = 1, tensors: dict[str, Cut] | None = None, **more: Any
) -> Folder:
    more = {"files": {"plan.json": PLAN, "config.yaml": CONFIG}} | more
    with mock.patch.object(files, "BLOCK_BYTES", BLOCK):
        return write_checkpoint(
            Folder(place), tensors or planted(), step=step, block_bytes=BLOCK, **more
        )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


Run = Callable[..., tuple[int, str, str]]


def read_json(result: tuple[int, str, str], code: int = 0) -> Any:
    assert result[0] == code, result
    return json.loads(result[1])


def flip(folder: Folder, file: str, place: int) -> None:
    path = Path(folder.url) / file
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def age(folder: Folder, seconds: float) -> None:
    for path in Path(folder.url).iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_list(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for step, auc in ((5, 0.6), (10, 0.75), (15, None)):
        make(folder, step, metrics={"valid/auc/click": auc, "valid/log_loss/click": 0.5})
    make(folder, 20, metrics={"valid/auc/click": 0.7})
    (folder / "step-00000020" / "manifest.json").unlink()
    make(folder, 12)
    (folder / "step-00000012" / "config.yaml").write_text("short")
    (folder / "notes.txt").write_text("not a checkpoint")

    code, out, err = run("list", tmp_path / "run")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == ["5", "10", "12", "15", "20"]
    assert [" ".join(row[1:5]) for row in rows if "*" in row] == ["15 * │ complete"]
    assert "0.75000" in out and "valid/auc/click" in out and "log_loss" not in out
    assert "step-00000012: " in out and "config.yaml has 5 bytes" in out

    found = read_json(run("list", folder, "--json"))
    assert [one["state"] for one in found] == [
        "complete",
        "complete",
        "damaged",
        "complete",
        "incomplete",
    ]
    assert [one["step"] for one in found if one["newest"]] == [15]
    sizes = sum(path.stat().st_size for path in (folder / "step-00000010").iterdir())
    assert found[1]["bytes"] == sizes
    assert found[1]["metrics"] == {"valid/auc/click": 0.75, "valid/log_loss/click": 0.5}
    assert "log_loss" in run("list", folder, "--metric", "valid/log_loss/click")[1]


def states(result: tuple[int, str, str]) -> dict[str, str]:
    return {Path(one["folder"]).name: one["state"] for one in read_json(result)}


def test_a_renamed_checkpoint_is_not_the_newest_and_is_not_deleted(
    tmp_path: Path, run: Run
) -> None:
    """The step of the manifest counts, not the folder's name."""
    for step in (5, 10, 15):
        make(tmp_path, step)
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000099")
    found = read_json(run("list", tmp_path, "--json"))
    assert [(one["step"], one["state"], one["newest"]) for one in found] == [
        (10, "complete", False),
        (15, "complete", True),
        (99, "renamed", False),
    ]
    assert "step 5" in found[2]["fault"] and "step-00000005" in found[2]["fault"]
    assert read_json(run("verify", tmp_path, "--json"), code=1)[2]["state"] == "renamed"
    code, _, err = run("inspect", tmp_path / "step-00000099")
    assert code == 1 and "step-00000099" in err and "step-00000005" in err
    code, _, _ = run("prune", tmp_path, "--keep-last", 1, "--damaged", "--yes")
    assert code == 0 and sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000015",
        "step-00000099",
    ]
    config = CheckpointConfig(keep_last=1)
    newest = make(tmp_path, 20)
    prune(Folder(tmp_path), config, newest=newest, manifest=read_manifest(newest))
    assert (tmp_path / "step-00000099" / "manifest.json").exists(), "nor by a run's own save"


def test_nothing_is_deleted_through_a_link(tmp_path: Path, run: Run) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for step in (5, 10, 15):
        make(folder, step)
    shutil.move(folder / "step-00000005", elsewhere)
    (folder / "step-00000005").symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    found = read_json(run("prune", folder, "--keep-last", 1, "--yes", "--json"))
    kept = {Path(one["folder"]).name: one["reason"] for one in found["kept"]}
    assert kept == {"step-00000005": "a link", "step-00000015": "newest"}
    newest = make(folder, 20)
    keep = CheckpointConfig(keep_last=1)
    prune(Folder(folder), keep, newest=newest, manifest=read_manifest(newest))
    with pytest.raises(CheckpointError, match=r"step-00000005 is a link"):
        delete(Folder(folder / "step-00000005"))
    assert sorted(os.listdir(folder)) == ["step-00000005", "step-00000020"]
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize(
    "name", ["manifest.json", "config.yaml", "rank-00000-00-0123abcd.safetensors"]
)
def test_only_regular_files_are_opened(tmp_path: Path, run: Run, what: str, name: str) -> None:
    """Opening a pipe would block forever."""
    make(tmp_path, 5)
    place = Path(make(tmp_path, 10).url) / name
    put_in_place_of(place, what)
    found = states(run("list", tmp_path, "--json"))
    assert found == {"step-00000005": "complete", "step-00000010": "damaged"}
    assert run("verify", tmp_path)[0] == 1
    with pytest.raises(OSError, match=name), Folder(tmp_path / "step-00000010").open(name):
        pass


def put_in_place_of(path: Path, what: str) -> None:
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
            server.bind(path.name)  # a path of its own may have 107 bytes


@pytest.mark.parametrize("place", ["folder", "folder/", "pipe", "file/below.parquet", ""])
def test_a_place_that_cannot_be_exported_to_is_refused(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    checkpoint = make(tmp_path / "run", 5)
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    (out / "file").write_text("mine")
    os.mkfifo(out / "pipe")
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.chdir(out)
    code, _, err = run("export", checkpoint.url, "user", "--output", place, "--force")
    assert code == 1 and "Errno" not in err, err
    assert (place.rstrip("/").split("/")[0] or "out") in err
    assert sorted(path for path in tmp_path.rglob("*")) == before, "no partial file anywhere"


def test_a_failed_export_leaves_nothing(tmp_path: Path, run: Run) -> None:
    """The file can't take its place at the end: that was tried outside of any cleaning up."""
    checkpoint, out = make(tmp_path / "run", 5), tmp_path / "out"
    out.mkdir()
    failure = OSError(errno.EIO, "Input/output error")
    with mock.patch.object(os, "replace", side_effect=failure):
        assert run("export", checkpoint.url, "user", "--output", out / "a.parquet")[0] == 1
    assert list(out.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, run: Run) -> None:
    """Ctrl-C, and SIGTERM, which `python -m infnet_dist.checkpoint` takes alike."""
    checkpoint, out = make(tmp_path / "run", 5), tmp_path / "out"
    out.mkdir()
    with mock.patch.object(export.TableExport, "_flush", side_effect=KeyboardInterrupt):
        assert run("export", checkpoint.url, "user", "--output", out / "a.parquet")[0] == 130
    assert list(out.iterdir()) == []


def test_verify_says_what_is_wrong(tmp_path: Path, run: Run) -> None:
    good, bad = make(tmp_path, 1), make(tmp_path, 2)
    left_over = make(tmp_path, 3)
    (Path(left_over.url) / "manifest.json").unlink()
    code, out, _ = run("verify", tmp_path)
    assert code == 0 and out.count(": intact") == 2 and "step-00000003" not in out

    manifest = read_manifest(bad)
    chunk = manifest.tensors[TABLE.format("user")].chunks[1]  # rows 34 to 67, in blocks of 8
    flip(bad, chunk.file, chunk.begin + 9 * 32)
    columns = manifest.tensors[TABLE.format("item")].chunks[0]
    flip(bad, columns.file, columns.begin)
    flip(bad, "config.yaml", 3)
    flip(bad, "rank-00002-00-0123abcd.safetensors", 40)
    code, out, err = run("verify", tmp_path)
    assert code == 1 and f"{good}: intact" in out and f"{bad}: damaged" in out
    faults = read_json(run("verify", bad.url, "--json"), code=1)[0]["faults"]
    assert len(faults) == 4
    assert "checksum of config.yaml" in faults[0]
    assert any(f"{chunk.file} ({TABLE.format('user')}, rows 42 to 49)" in x for x in faults)
    assert any("rows 0 to 20, columns" in fault for fault in faults)
    assert any("header of rank-00002-00-0123abcd.safetensors" in fault for fault in faults)
    assert err.splitlines()[-1].startswith("error: damaged: 1 of 2")


def test_verify_of_truncated_and_missing_files(tmp_path: Path, run: Run) -> None:
    folder = make(tmp_path)
    path = next(Path(folder.url).glob("rank-00001*"))
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = run("verify", folder.url)
    assert code == 1 and f"{path.name} has" in out and "bytes, expected" in out
    path.unlink()
    code, out, _ = run("verify", folder.url)
    assert code == 1 and f"{path.name} is missing" in out


def test_inspect(tmp_path: Path, run: Run) -> None:
    cuts = planted()
    folder = make(tmp_path, 7, cuts, metrics={"valid/auc/click": 0.7})
    said = read_json(run("inspect", folder.url, "--json"))
    tables = {table.pop("name"): table for table in said["tables"]}
    assert list(tables) == ["user", "item", "author", "frozen"], "largest first"
    for name, untrained in (("user", 2), ("item", 1), ("author", 11), ("frozen", None)):
        weights = cuts[TABLE.format(name)].tensor.double()
        norms = weights.norm(dim=1)
        state = cuts.get(STATE.format(name))
        assert tables[name] == {
            "num_embeddings": len(weights),
            "embedding_dim": weights.shape[1],
            "data_type": "F16" if name == "item" else "F32",
            "num_bytes": cuts[TABLE.format(name)].tensor.nbytes,
            "optimizer_bytes": state.tensor.nbytes if state else 0,
            "chunks": len(cuts[TABLE.format(name)].parts),
            "norm": pytest.approx(float(weights.norm())),
            "mean_row_norm": pytest.approx(float(norms.mean())),
            "max_row_norm": pytest.approx(float(norms.max())),
            "untrained": untrained,
            "not_finite": 0,
        }
    dense = [cut.tensor for name, cut in cuts.items() if name.startswith("model.model.dense")]
    assert said["dense"]["values"] == 20 and said["dense"]["optimizer_bytes"] == 4
    assert said["dense"]["norm"] == pytest.approx(
        math.sqrt(sum(float((t**2).sum()) for t in dense))
    )
    assert said["progress"]["step"] == 7 and said["world_size"] == 3
    kinds = {"row_wise": 1, "column_wise": 1}
    assert said["plan"] == {"topology": "cpu", "world_size": 3, "sharding_types": kinds}
    out = run("inspect", folder.url)[1]
    assert "101 x 8" in out and "saved by 3 workers" in out and "3 workers of cpu" in out


def test_diff(tmp_path: Path, run: Run) -> None:
    cuts = planted()
    one = make(tmp_path / "a", 1, cuts)
    recut = cuts | {TABLE.format("user"): by_columns(cuts[TABLE.format("user")].tensor, 3)}
    same = make(tmp_path / "b", 2, recut)
    code, out, _ = run("diff", one.url, same.url)
    assert code == 0 and "equal bit for bit: 10 tensors" in out

    users = cuts[TABLE.format("user")].tensor.clone()
    users[[2, 90]] += torch.tensor([[0.5], [0.25]])
    users[3, 0] = -0.0
    changed = cuts | {
        TABLE.format("user"): by_rows(users, 2),
        STATE.format("item"): by_rows(torch.ones(37), 2),
        "model.new": whole(torch.ones(())),
    }
    del changed["model.model.dense.head.bias"]
    plain = {"config.yaml": CONFIG.replace("token_dim: 8", "token_dim: 16, num_blocks: 2")}
    other = make(tmp_path / "c", 1, changed, files=plain)
    found = read_json(run("diff", one.url, other.url, "--json"), code=1)
    assert not found["equal"] and found["num_equal"] == 7
    assert found["only_first"] == ["model.model.dense.head.bias"]
    assert found["only_second"] == ["model.new"]
    assert found["kinds"] == {STATE.format("item"): ["74 F32", "37 F32"]}
    (difference,) = found["changed"]
    apart = (users.double() - cuts[TABLE.format("user")].tensor.double()).abs()
    assert difference == {
        "name": TABLE.format("user"),
        "rows": 101,
        "rows_changed": 3,
        "max_abs": pytest.approx(float(apart.max())),
        "mean_abs": pytest.approx(float(apart.mean())),
    }
    assert found["config"] == {"model.token_dim": [8, 16], "model.num_blocks": [None, 2]}
    code, out, _ = run("diff", one.url, other.url)
    assert code == 1 and "config model.token_dim: 8 in A, 16 in B" in out


def test_diff_sees_the_sign_of_zero(tmp_path: Path, run: Run) -> None:
    for name, value in (("a", 0.0), ("b", -0.0)):
        make(tmp_path / name, 1, {"model.x": whole(torch.full((4,), value))})
    step = "step-00000001"
    found = read_json(run("diff", tmp_path / "a" / step, tmp_path / "b" / step, "--json"), code=1)
    assert found["changed"][0]["rows_changed"] == 4 and found["changed"][0]["max_abs"] == 0


@pytest.mark.parametrize("table", ["user", "item", "author"])
@pytest.mark.parametrize(("first", "end"), [(0, None), (5, 36), (0, 0), (1, 11)])
def test_export(tmp_path: Path, run: Run, table: str, first: int, end: int | None) -> None:
    cuts = planted()
    folder, output = make(tmp_path, 3, cuts), tmp_path / "out.parquet"
    weights = cuts[TABLE.format(table)].tensor
    rows = ["--rows", f"{first}:{'' if end is None else end}"]
    if end is not None and end > len(weights):
        code, _, err = run("export", folder.url, table, "--output", output, *rows)
        assert code == 1 and f"0:{len(weights)}" in err and f"{first}:{end}" in err
        return
    small = mock.patch.multiple(export, _STATE_VALUES=14, _GROUP_BYTES=400)
    with small, mock.patch("infnet_dist.checkpoint.reading.TensorReader.ranges", small_ranges):
        result = run("export", folder.url, table, "--output", output, "--with-optimizer", *rows)
    assert result[0] == 0, result
    exported = pq.read_table(output)
    wanted = weights[first:end]
    half = weights.dtype == torch.float16
    of_one = pa.float16() if half else pa.float32()
    assert exported.schema.field("embedding").type.equals(pa.list_(of_one, weights.shape[1]))
    assert exported["row"].to_pylist() == list(range(len(weights)))[first:end]
    flat = exported["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert torch.equal(torch.from_numpy(flat.copy()).reshape(wanted.shape), wanted)
    state = cuts[STATE.format(table)].tensor.reshape(-1, len(weights)).T[first:end]
    expected = state.tolist() if table == "item" else state[:, 0].tolist()
    assert exported["optimizer_state"].to_pylist() == expected
    assert exported.schema.metadata[b"table"] == table.encode()
    assert list(tmp_path.glob(".*")) == []


def small_ranges(self: Any, name: str, first: int = 0, end: int | None = None) -> Any:
    """Some rows at a time, so that a small table takes several parts."""
    end = self._manifest.tensors[name].shape[0] if end is None else end
    yield from ((start, min(start + 4, end)) for start in range(first, end, 4))


def test_row_groups_hold_many_chunks(tmp_path: Path, run: Run) -> None:
    table = torch.randn(4_000, 8)
    folder = make(tmp_path, 1, {TABLE.format("user"): by_rows(table, 100)})
    assert run("export", folder.url, "user", "--output", tmp_path / "x.parquet")[0] == 0
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 1


def test_export_refuses(tmp_path: Path, run: Run) -> None:
    folder, output = make(tmp_path), tmp_path / "x.parquet"
    code, _, err = run("export", folder.url, "usr", "--output", output)
    assert code == 1
    assert err == (
        "error: unknown table 'usr'; did you mean 'user'? (known: author, frozen, item, user)\n"
    )
    code, _, err = run("export", folder.url, "frozen", "--output", output, "--with-optimizer")
    assert code == 1 and "'frozen'" in err
    output.write_text("mine")
    code, _, err = run("export", folder.url, "user", "--output", output)
    assert code == 1 and "--force" in err
    assert output.read_text() == "mine"

    chunk = read_manifest(folder).tensors[TABLE.format("user")].chunks[2]
    flip(folder, chunk.file, chunk.begin)
    code, _, err = run("export", folder.url, "user", "--output", output, "--force")
    assert code == 1 and "checksum is wrong" in err
    assert output.read_text() == "mine" and not list(tmp_path.glob(".*"))
    assert run("export", folder.url, "item", "--output", output, "--force")[0] == 0
    assert pq.read_table(output).num_rows == 37
    with pytest.raises(SystemExit, match="2"):
        run("export", folder.url, "user", "--output", output, "--rows", "5-7")


def checkpoints_of_a_run(folder: Path) -> None:
    for step, auc in ((5, 0.6), (10, 0.75), (15, 0.7), (20, 0.65), (25, 0.6)):
        make(folder, step, metrics={"valid/auc/click": auc, "valid/calibration/click": 1.0})


def names(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def test_prune(tmp_path: Path, run: Run) -> None:
    checkpoints_of_a_run(tmp_path)
    rules = ("--keep-last", 1, "--keep-best", "valid/auc/click", "--keep-every-steps", 20)
    before = names(tmp_path)
    code, out, _ = run("prune", tmp_path, *rules, "--dry-run")
    assert code == 0 and names(tmp_path) == before and "would delete 2 " in out
    assert "best valid/auc/click" in out and "multiple of 20 steps" in out and "newest" in out
    code, _, err = run("prune", tmp_path, *rules)
    assert code == 1 and "--yes" in err and names(tmp_path) == before

    with mock.patch.object(sys, "stdin", Terminal("n\n")):
        assert run("prune", tmp_path, *rules)[0] == 1
    assert names(tmp_path) == before
    with mock.patch.object(sys, "stdin", Terminal("y\n")):
        assert run("prune", tmp_path, *rules)[0] == 0
    assert names(tmp_path) == [10, 20, 25]
    said = read_json(run("prune", tmp_path, "--keep-last", 1, "--yes", "--json"))
    assert [one["reason"] for one in said["kept"]] == ["newest"] and len(said["deleted"]) == 2
    assert names(tmp_path) == [25]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prune_keeps_the_newest_that_is_complete(tmp_path: Path, run: Run) -> None:
    checkpoints_of_a_run(tmp_path)
    (tmp_path / "step-00000025" / "plan.json").unlink()  # damaged
    (tmp_path / "step-00000020" / "manifest.json").unlink()  # incomplete, just written
    (tmp_path / "step-00000005" / "manifest.json").unlink()  # incomplete, of yesterday
    age(Folder(tmp_path / "step-00000005"), 86_400)
    code, out, _ = run("prune", tmp_path, "--keep-last", 1, "--yes")
    assert code == 0 and names(tmp_path) == [15, 20, 25]
    assert "incomplete; " in out
    age(Folder(tmp_path / "step-00000020"), 7_200)
    assert run("prune", tmp_path, "--keep-last", 1, "--yes", "--damaged")[0] == 0
    assert names(tmp_path) == [15]
    (tmp_path / "step-00000015" / "manifest.json").unlink()
    code, _, err = run("prune", tmp_path, "--keep-last", 1, "--yes", "--damaged")
    assert code == 1 and "complete" in err


def test_prune_can_look_into_the_files(tmp_path: Path, run: Run) -> None:
    checkpoints_of_a_run(tmp_path)
    flip(Folder(tmp_path / "step-00000025"), "rank-00001-00-0123abcd.safetensors", 3_000)
    rules = ("--keep-last", 1, "--yes")
    said = read_json(run("prune", tmp_path, *rules, "--dry-run", "--verify", "--json"))
    assert [(one["folder"][-2:], one["reason"]) for one in said["kept"]] == [
        ("20", "newest"),
        ("25", "damaged"),
    ]
    broken = mock.patch.object(Folder, "open", side_effect=OSError("gone"))
    with broken, mock.patch("infnet_dist.checkpoint.discovery.read_manifest", read_by_path):
        code, _, err = run("prune", tmp_path, *rules, "--verify", "--damaged")
    assert code == 1 and "complete" in err, "the storage's fault, not theirs"
    assert run("prune", tmp_path, *rules, "--verify", "--damaged")[0] == 0
    assert names(tmp_path) == [20]


def test_what_the_storage_can_t_read_is_not_damaged(tmp_path: Path, run: Run) -> None:
    checkpoints_of_a_run(tmp_path)
    real = Folder.read

    def fail(folder: Folder, name: str) -> bytes:
        if folder.name == "step-00000015":
            raise OSError(errno.EIO, "Input/output error\x1b[2J")  # as a server put it
        return real(folder, name)

    flip(Folder(tmp_path / "step-00000010"), "manifest.json", 40)
    with mock.patch.object(Folder, "read", fail):
        listed = read_json(run("list", tmp_path, "--json"))
        states = ["complete", "damaged", "unreadable", "complete", "complete"]
        assert [one["state"] for one in listed] == states
        said = read_json(run("verify", tmp_path, "--json"), code=1)
        words = ["intact", "damaged", "unreadable", "intact", "intact"]
        assert [one["state"] for one in said] == words
        code, out, err = run("verify", tmp_path)
        assert code == 1 and "step-00000015: unreadable\n" in out and "Input/output error" in out
        assert "\x1b" not in out + run("list", tmp_path)[1]
        assert "damaged: 1 of 5" in err and "unreadable: 1 of 5" in err
        code, out, _ = run("prune", tmp_path, "--keep-last", 1, "--damaged", "--yes")
        assert code == 0 and "unreadable" in out
    assert names(tmp_path) == [15, 25]
    assert run("verify", tmp_path)[0] == 0


def read_by_path(folder: Folder) -> CheckpointManifest:
    raw = json.loads((Path(folder.url) / "manifest.json").read_bytes())
    del raw["crc32"]
    return CheckpointManifest.model_validate(raw)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("valid/auc/clik", "unknown metric 'valid/auc/clik'; did you mean 'valid/auc/click'"),
        ("valid/calibration/click", "valid/auc/click"),
        ("nonsense", "'nonsense'"),
    ],
)
def test_prune_by_a_metric_that_is_none(
    tmp_path: Path, run: Run, metric: str, message: str
) -> None:
    checkpoints_of_a_run(tmp_path)
    code, _, err = run("prune", tmp_path, "--keep-last", 1, "--keep-best", metric, "--yes")
    assert code == 1 and message in err and len(names(tmp_path)) == 5


def test_urls(run: Run) -> None:
    url = "memory://bucket/run/1"
    memory = fsspec.filesystem("memory")
    try:
        for step in (1, 2, 3):
            make(f"{url}/checkpoints", step)
        assert len(read_json(run("list", url, "--json"))) == 3
        assert run("verify", url)[0] == 0
        one, two = (f"{url}/checkpoints/step-0000000{step}" for step in (1, 2))
        assert run("diff", one, two)[0] == 0
        assert read_json(run("inspect", one, "--json"))["tables"][0]["untrained"] == 2
        output = "memory://bucket/out/user.parquet"
        assert run("export", one, "user", "--output", output)[0] == 0
        error = run("export", one, "user", "--output", output)[2]
        assert output in error and "--force" in error
        with memory.open("/bucket/out/user.parquet") as file:
            assert pq.read_table(file).num_rows == 101
        assert run("prune", url, "--keep-last", 1, "--yes")[0] == 0
        assert [c["step"] for c in read_json(run("list", url, "--json"))] == [3]
    finally:
        memory.rm("/bucket", recursive=True)


def rewrite(folder: Folder, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as an attacker would, who can make checksums as well."""
    path = Path(folder.url) / "manifest.json"
    raw = json.loads(path.read_bytes())
    del raw["crc32"]
    change(raw)
    text = json.dumps(raw, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b'{"crc32":%d,' % zlib.crc32(text) + text[1:])


def first_chunk(raw: dict[str, Any]) -> dict[str, Any]:
    chunk: dict[str, Any] = raw["tensors"][TABLE.format("user")]["chunks"][0]
    return chunk


def wide_tensor(raw: dict[str, Any]) -> dict[str, Any]:
    """One row of 64 GiB, in a file that has room for it."""
    file = next(iter(raw["tensor_files"]))
    raw["tensor_files"][file] = 2**40
    chunk = {"file": file, "begin": 8, "offsets": [0, 0], "shape": [1, 2**34], "crc32": [0]}
    return {"data_type": "F32", "shape": [1, 2**34], "chunks": [chunk]}


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "path": (lambda raw: first_chunk(raw).update(file="../x"), "should match pattern"),
    "file": (lambda raw: raw["files"].update({"../x": {"size": 1, "crc32": 0}}), "match pattern"),
    "negative": (lambda raw: first_chunk(raw).update(begin=-8), "greater than or equal to 0"),
    "huge": (lambda raw: first_chunk(raw).update(begin=2**63), "less than"),
    "outside": (lambda raw: first_chunk(raw).update(begin=2**40), ".safetensors"),
    "missing": (
        lambda raw: raw["tensors"][TABLE.format("user")]["chunks"].pop(),
        TABLE.format("user"),
    ),
    "overlap": (lambda raw: first_chunk(raw).update(offsets=[1, 0]), "overlap"),
    "row": (
        lambda raw: raw["tensors"].update({"model.x": wide_tensor(raw)}),
        "68719476736",
    ),
    "blocks": (lambda raw: raw.update(block_bytes=2**27), "less than or equal to 67108864"),
    "checksums": (lambda raw: first_chunk(raw).update(crc32=[]), "lacks checksums"),
    "terminal": (lambda raw: raw["metrics"].update({"\x1b[2J": 1.0}), "should match pattern"),
    "order": (
        lambda raw: raw["order"].update(content_hash="\x1b]0;owned\x07"),
        "should match pattern",
    ),
    "other": (lambda raw: raw.update(code="print()"), "Extra inputs"),
    "format": (lambda raw: raw.update(format_version=1), "format 1"),
    "future": (lambda raw: raw.update(format_version=3), "format_version"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests(tmp_path: Path, run: Run, name: str) -> None:
    folder = make(tmp_path)
    change, message = HOSTILE[name]
    rewrite(folder, change)
    for command in (("inspect",), ("export", "user", "--output", tmp_path / "x.parquet")):
        code, _, err = run(command[0], folder.url, *command[1:])
        assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, err
        assert message in err and "\x1b" not in err
    assert read_json(run("list", tmp_path, "--json"))[0]["state"] == "damaged"
    assert run("verify", folder.url)[0] == 1


def test_a_hostile_shape_costs_nothing(tmp_path: Path, run: Run) -> None:
    """Without elements a table may have 2**62 rows, and needs no bytes for them."""
    folder = make(tmp_path)
    huge = {"data_type": "F32", "shape": [2**62, 0]}
    chunk = {"offsets": [0, 0], "shape": [2**62, 0], "begin": 8, "crc32": []}

    def change(raw: dict[str, Any]) -> None:
        chunk["file"] = next(iter(raw["tensor_files"]))
        raw["tensors"] |= {TABLE.format("huge"): huge | {"chunks": [chunk]}}

    rewrite(folder, change)
    said = read_json(run("inspect", folder.url, "--json"))
    assert {t["name"]: t["norm"] for t in said["tables"]}["huge"] == 0
    code, _, err = run("export", folder.url, "huge", "--output", tmp_path / "x")
    assert code == 1 and "is 0 wide" in err
    assert run("verify", folder.url)[0] == 1, "the file's header knows of no such tensor"


def grow(folder: Folder, name: str, size: int = 2**40) -> None:
    """A sparse file, whose size in the manifest takes no space on the disk."""
    os.truncate(Path(folder.url) / name, size)

    def change(raw: dict[str, Any]) -> None:
        if name in raw["files"]:
            raw["files"][name]["size"] = size
        else:
            raw["tensor_files"][name] = size

    rewrite(folder, change)


def test_a_hostile_header_is_not_read(tmp_path: Path, run: Run) -> None:
    folder = make(tmp_path)
    grow(folder, "rank-00000-00-0123abcd.safetensors")
    code, out, err = run("verify", folder.url)
    assert code == 1 and out.count("\n  ") == 1, err
    assert "header of rank-00000-00-0123abcd.safetensors" in out


def test_hostile_plain_files_are_not_taken_into_memory(tmp_path: Path, run: Run) -> None:
    good, bad = make(tmp_path / "a"), make(tmp_path / "b")
    for name, arguments in (
        ("plan.json", ("inspect", bad.url)),
        ("config.yaml", ("diff", good.url, bad.url)),
    ):
        grow(bad, name)
        code, _, err = run(*arguments)
        assert code == 1 and f"{name} in {bad}" in err and str(2**40) in err and str(2**27) in err
    parts: list[int] = []
    with mock.patch.object(inspection, "_PART_BYTES", 7):
        assert inspection.verify(good, read_manifest(good), parts.append) == []
    assert parts[:3] == [7, 7, 7], "verify holds a part at a time, however large the file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nodes": "x", "workers_per_node": 10**10}, "num_nodes: Input should be a valid int"),
        ({"workers_per_node": 10**10}, "workers_per_node: Input should be less than"),
        ({"name": "\x1b[2J"}, "name: String should match pattern"),
        ({}, "sharding_type: String should match pattern"),
    ],
)
def test_hostile_plans(tmp_path: Path, run: Run, change: dict[str, Any], message: str) -> None:
    plan = json.loads(PLAN)
    plan["made_for"]["topology"] |= change
    if not change:
        plan["tables"]["user"]["sharding_type"] = "\x1b[2J"
    folder = make(tmp_path, files={"plan.json": json.dumps(plan), "config.yaml": CONFIG})
    code, _, err = run("inspect", folder.url)
    assert code == 1 and "plan.json" in err and message in err and "\x1b" not in err


def test_no_key_of_a_config_gives_orders_to_the_terminal(tmp_path: Path, run: Run) -> None:
    one = make(tmp_path / "a")
    other = make(tmp_path / "b", files={"config.yaml": CONFIG + '"\\e]0;x\\a": "\\e[2J"\n'})
    code, out, _ = run("diff", one.url, other.url)
    assert code == 0 and "config ?]0;x?: None in A, '\\x1b[2J' in B" in out and "\x1b" not in out


def test_export_prints_no_secret(tmp_path: Path, run: Run) -> None:
    folder, output = make(tmp_path), "memory://KEY:SECRET@bucket/out.parquet?token=SECRET"
    with mock.patch("infnet_dist.checkpoint.export.TableExport.write"):
        code, out, _ = run("export", folder.url, "user", "--output", output)
    assert code == 0 and "to memory://bucket/out.parquet\n" in out and "SECRET" not in out


def test_a_state_of_more_shards_than_columns_is_none(tmp_path: Path, run: Run) -> None:
    """Else a table of one row could have billions of them."""
    cuts = {
        TABLE.format("user"): whole(torch.ones(2, 4)),
        STATE.format("user"): whole(torch.ones(10)),
    }
    folder = make(tmp_path, 1, cuts)
    assert read_json(run("inspect", folder.url, "--json"))["tables"][0]["untrained"] is None


def test_bad_places(tmp_path: Path, run: Run) -> None:
    folder = make(tmp_path / "run" / "checkpoints")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = "checkpoint: {folder: 's3://bucket/all'}\nrun: {name: mine}\n"
    (elsewhere / "config.yaml").write_text(text)
    for command, place, message in (
        ("list", tmp_path / "nowhere", str(tmp_path / "nowhere")),
        ("list", tmp_path / "empty", str(tmp_path / "empty")),
        ("list", tmp_path / "other", "step-00000500"),
        ("list", elsewhere, "s3://bucket/all/mine/elsewhere"),
        ("list", folder.url, f" {folder.parent}"),
        ("list", tmp_path / "other" / "x.txt", "x.txt"),
        ("verify", tmp_path / "empty", str(tmp_path / "empty")),
        ("inspect", tmp_path / "run", "step-00000001"),
        ("inspect", tmp_path / "other", "manifest.json"),
        ("inspect", tmp_path / "step-00000009", "step-00000009"),
        ("list", "nosuch://bucket/x", "nosuch://bucket/x"),
    ):
        code, _, err = run(command, place)
        assert code == 1 and message in err and err.startswith("error: "), (command, err)


def test_damaged_manifest(tmp_path: Path, run: Run) -> None:
    folder = make(tmp_path)
    place = (Path(folder.url) / "manifest.json").read_bytes().index(b'"examples":') + 11
    flip(folder, "manifest.json", place)
    code, _, err = run("inspect", folder.url)
    assert code == 1 and "manifest.json" in err


def test_as_a_program(tmp_path: Path) -> None:
    """Help needs no torch, a report no TorchRec; usage errors give 2."""
    make(tmp_path)
    program = (
        "import sys; from infnet_dist.checkpoint.cli.command import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, *sorted({'torch', 'torchrec', 'ray'} & sys.modules.keys()))"
    )

    def last_line(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True
        )
        return done.stdout.splitlines()[-1]

    assert last_line("--help") == "0"
    assert last_line("prune", str(tmp_path)) == "2"
    assert last_line("inspect", str(tmp_path / "step-00000001")) == "0 torch"


def test_names_of_earlier_versions_are_read(tmp_path: Path, run: Callable) -> None:
    """A table's tensors were named by its collection: intact, and equal to those of today."""
    old = make(tmp_path / "old", 1, {old_name(name): cut for name, cut in planted().items()})
    new = make(tmp_path / "new", 1)
    assert run("verify", str(old))[0] == 0
    assert run("diff", str(old), str(new))[0] == 0
    assert read_manifest(old).tensors.keys() == read_manifest(new).tensors.keys()
