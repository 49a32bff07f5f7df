"""Which files an ingest reads: each once, by what it is; the others are named with a reason."""

import logging
import os
import shutil
from pathlib import Path

import pyarrow.fs
import pytest

from infnet_dist.data.manifest import LogFile
from infnet_dist.ingest.listing import CSV, PARQUET, list_place, log_left_out

LOCAL = pyarrow.fs.LocalFileSystem()


def make(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def names(root, suffixes=CSV, known=()):
    found = list_place(LOCAL, str(root), suffixes, known)
    return [Path(file.path).name for file in found.files]


def left_out(root, suffixes=CSV, known=()):
    return list_place(LOCAL, str(root), suffixes, known).left_out


@pytest.mark.parametrize("target", [".", "..", "../logs", "sub", "loop"])
def test_loops_of_links_end(target, tmp_path):
    logs = make(tmp_path / "logs", a__csv="1")
    make(logs / "sub", b__csv="22")
    os.symlink(target, logs / "loop")
    os.symlink("..", logs / "sub" / "up")
    assert names(logs) == ["a.csv", "b.csv"]
    assert str(logs / "loop") in left_out(logs)


def test_two_loops_in_each_folder_end(tmp_path):
    """A walk that follows links without looking sees 2^40 of these."""
    logs = make(tmp_path / "logs", a__csv="1")
    for name in ("one", "other"):
        os.symlink(".", logs / name)
    assert names(logs) == ["a.csv"]


def test_a_file_of_several_names_is_read_once(tmp_path):
    logs = make(tmp_path / "logs", b__csv="1")
    os.link(logs / "b.csv", logs / "c.csv")
    os.symlink("b.csv", logs / "a.csv")
    assert names(logs) == ["b.csv"]  # the first that isn't a link
    assert {
        Path(path).name: str(logs / "b.csv") in why for path, why in left_out(logs).items()
    } == {
        "a.csv": True,
        "c.csv": True,
    }


def test_a_folder_of_two_names_is_read_once(tmp_path):
    logs = make(tmp_path / "logs" / "day", x__csv="1").parent
    os.symlink("day", logs / "a-link")
    found = list_place(LOCAL, str(logs), CSV)
    assert [file.path for file in found.files] == [str(logs / "day" / "x.csv")]
    assert list(found.left_out) == [str(logs / "a-link")]


def test_links_to_other_places_are_followed(tmp_path):
    other = make(tmp_path / "other", x__csv="1")
    logs = make(tmp_path / "logs", y__csv="22")
    os.symlink(other, logs / "more")
    assert names(logs) == ["x.csv", "y.csv"]
    assert names(other / "x.csv") == ["x.csv"]


def test_known_names_are_kept(tmp_path):
    """Whatever names a file gets later: an ingest that has read it doesn't read it again."""
    logs = make(tmp_path / "logs", m__csv="1", z__csv="22")
    known = list_place(LOCAL, str(logs), CSV).files
    os.link(logs / "m.csv", logs / "a.csv")
    shutil.copy(logs / "z.csv", logs / "b.csv")
    os.symlink(logs, tmp_path / "alias")
    assert list_place(LOCAL, str(logs), CSV, known).files == known
    assert list_place(LOCAL, str(tmp_path / "alias"), CSV, known).files == known


def test_copies_are_read_once_and_equal_sizes_are_not_enough(tmp_path):
    long = "x" * 200_000
    logs = make(tmp_path / "logs", a__csv=long, c__csv="12", d__csv="21")
    shutil.copy(logs / "a.csv", logs / "b.csv")
    middle = long[:100_000] + "y" + long[100_001:]  # equal ends
    make(logs, e__csv=middle)
    assert names(logs) == ["a.csv", "c.csv", "d.csv", "e.csv"]
    assert str(logs / "a.csv") in left_out(logs)[str(logs / "b.csv")]


def test_empty_files_are_no_copies(tmp_path):
    assert names(make(tmp_path, a__csv="", b__csv="")) == ["a.csv", "b.csv"]


ALL = ["a.csv", "b.csv.zst", "c.CSV", "e.csv.gz", "f.Csv.Gz", "h.csv.bz2", "i.csv.lz4", "j.tsv"]
OTHERS = ["a.parquet", "d.txt", "g.csv.zip", "_SUCCESS", ".a.csv.crc", "noending"]


def test_every_file_is_read_or_named(tmp_path):
    for i, name in enumerate([*ALL, *OTHERS]):
        (tmp_path / name).write_text("x" * (i + 1))
    make(tmp_path / "_temporary", x__csv="1")
    assert names(tmp_path) == sorted(ALL)
    reasons = {Path(path).name: why for path, why in left_out(tmp_path).items()}
    assert reasons.keys() == {*OTHERS, "_temporary"}
    assert reasons["_SUCCESS"] == reasons["_temporary"] != reasons["d.txt"]
    assert names(tmp_path, PARQUET) == ["a.parquet"]
    assert {*ALL} < {Path(path).name for path in left_out(tmp_path, PARQUET)}


@pytest.mark.parametrize("suffix", ["parquet", "PARQUET", "parq", "pq"])
def test_endings_of_parquet(suffix, tmp_path):
    (tmp_path / f"x.{suffix}").write_text("x")
    assert names(tmp_path, PARQUET) == [f"x.{suffix}"]


def test_what_cannot_be_read_is_named(tmp_path):
    os.symlink("nothing", tmp_path / "dead.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    os.symlink("self.txt", tmp_path / "self.txt")
    found = list_place(LOCAL, str(tmp_path), CSV)
    assert {Path(path).name for path in found.unreadable} == {"dead.csv", "pipe.csv"}
    assert list(found.left_out) == [str(tmp_path / "self.txt")]
    assert list_place(LOCAL, str(tmp_path / "pipe.csv"), CSV).unreadable


def test_patterns_are_plain_but_for_the_star(tmp_path):
    logs = make(tmp_path / "a[1]", x__csv="1", y__csv="22", xy__txt="3")
    assert names(logs / "x*") == ["x.csv"]
    assert list(left_out(logs / "x*")) == [str(logs / "xy.txt")]
    with pytest.raises(FileNotFoundError):
        list_place(LOCAL, str(tmp_path / "none" / "*.csv"), CSV)


def test_sizes_and_times_are_those_that_arrow_tells(tmp_path):
    """What sets made so far hold is compared with them."""
    make(tmp_path, a__csv="12345")
    info = LOCAL.get_file_info(str(tmp_path / "a.csv"))
    listed = LogFile(path=info.path, size=info.size, modified_ns=info.mtime_ns)
    assert list_place(LOCAL, str(tmp_path), CSV).files == [listed]


def test_other_file_systems_are_listed_alike(tmp_path):
    make(tmp_path, a__csv="1", b__csv="1", c__txt="1", _d__csv="1")
    make(tmp_path / "_hidden" / "x", e__csv="1")
    there = pyarrow.fs.SubTreeFileSystem(str(tmp_path), LOCAL)
    found = list_place(there, "", CSV)
    assert [file.path for file in found.files] == ["a.csv"]
    assert found.left_out.keys() == {"b.csv", "c.txt", "_d.csv", "_hidden"}


def test_long_lists_are_cut_short_in_the_log(caplog):
    with caplog.at_level(logging.INFO):
        log_left_out({f"{i}.txt": "no" for i in range(40)})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "9.txt" in record.message and "30 more" in record.message


def test_files_that_an_earlier_version_read_twice_are_warned_about(tmp_path, caplog):
    logs = make(tmp_path / "logs", a__csv="1", b__csv="22")
    os.symlink(".", logs / "loop")
    paths = [logs / "a.csv", logs / "b.csv", logs / "loop" / "a.csv"]
    known = [LogFile(path=str(path), size=1, modified_ns=0) for path in paths]
    list_place(LOCAL, str(logs), CSV, known[:2])
    assert not caplog.records
    list_place(LOCAL, str(logs), CSV, known)
    (warning,) = caplog.records
    assert str(logs / "loop" / "a.csv") in warning.getMessage()
    assert str(logs / "b.csv") not in warning.getMessage()
