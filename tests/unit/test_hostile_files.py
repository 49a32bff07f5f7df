"""Manifests, plans and Parquet files that lie: an error that names the file, at once."""

import json
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infnet_dist.config.logs import LogsIngest
from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.unischema_pickle import load_unischema
from infnet_dist.data.checks.footers import check_split, count_orphan_positives
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.part_files import ChangedError
from infnet_dist.data.reader import Reader
from infnet_dist.errors import DataError, PlanError
from infnet_dist.ingest.logs.reading.files import fragments, list_files
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.training.setup import open_training_set
from tests.hostile_parquet import forget_fingerprints, lie
from tests.runs import make_config
from tests.unit.test_planning import cpu, run_tables
from tests.unit.test_reader import make_set

ROWS = 1237  # no other number of a footer looks like it
PART = "train/part-00000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(tmp_path / "set", ROWS, rows_per_part=ROWS, row_group_rows=ROWS)
    return tmp_path / "set"


pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """No more than 1 GiB; and, by the mark above, no loop over what a file claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def change(path: Path, *keys: str | int, value: Any) -> None:
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def change_rows(folder: Path, rows: int) -> None:
    """The manifest says the same everywhere."""
    path = folder / "manifest.json"
    train: list[str | int] = ["splits", "train"]
    change(path, *train, "rows", value=rows)
    change(path, *train, "parts", 0, "rows", value=rows)
    change(path, *train, "parts", 0, "row_groups", value=[rows])


def read_all(folder: Path, manifest: Manifest) -> int:
    reader = Reader(folder, manifest, manifest.schema_, "train", 64, 0, 1, shuffle_rows=999)
    return sum(1 for _ in reader.batches())


@pytest.mark.parametrize(
    "name",
    [
        "../x.parquet",
        "train/../../x.parquet",
        "/etc/passwd",
        "..",
        "a/..",
        "",
        "a\x00b",
        "a\x1b[2J",
    ],
)
def test_names_of_parts_stay_in_the_folder(folder: Path, name: str) -> None:
    change(folder / "manifest.json", "splits", "train", "parts", 0, "file", value=name)
    with pytest.raises(DataError, match=r"manifest\.json: ") as caught:
        read_manifest(folder)
    assert str(caught.value).isprintable()


def test_links_in_the_folder_are_followed(folder: Path) -> None:
    (folder / "train").rename(folder.parent / "elsewhere")
    (folder / "train").symlink_to(folder.parent / "elsewhere")
    assert read_all(folder, read_manifest(folder)) == -(-ROWS // 64)


def test_parts_elsewhere_need_the_petastorm_reader(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    change(path, "splits", "train", "parts", 0, "file", value=str(folder / PART))
    change(path, "source", value={"source": "petastorm"})
    assert read_manifest(folder).is_elsewhere
    with pytest.raises(DataError, match=r"data\.reader=petastorm"):
        open_training_set(make_config(folder, tmp_path))


@pytest.mark.parametrize("rows", [-1, 0, 2**31, 10**15, 2**63, 10**300, 1.5, "x", None, []])
def test_counts_of_a_manifest(folder: Path, rows: Any) -> None:
    change_rows(folder, rows)
    with pytest.raises(DataError, match=r"manifest\.json: splits"):
        read_manifest(folder)


def test_tables_of_a_manifest(folder: Path) -> None:
    for rows in (-1, 0, 10**15, 2**64):
        change(folder / "manifest.json", "schema", "tables", 0, "num_embeddings", value=rows)
        with pytest.raises(DataError, match=r"manifest\.json: .*(num_embeddings|has 10+ rows)"):
            read_manifest(folder)


@pytest.mark.parametrize("places", [slice(None), slice(1, None), slice(-1, None)])
@pytest.mark.parametrize("claimed", [-1, -(2**40), 1, ROWS + 1, 10**9, 10**15, 2**62])
def test_a_footer_that_lies(folder: Path, claimed: int, places: slice) -> None:
    """About the file, its row group, the values of its columns."""
    lie(folder / PART, ROWS, claimed, places)
    with pytest.raises(ChangedError, match=r"part-00000\.parquet"):
        read_all(folder, read_manifest(folder))
    forget_fingerprints(folder)
    manifest = read_manifest(folder)
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        check_split(folder, manifest, manifest.schema_, split="train", rank=0, world_size=1)
        read_all(folder, manifest)
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        read_all(folder, manifest)
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        count_orphan_positives(folder, manifest, manifest.schema_, task="click", under="click")


@pytest.mark.parametrize("claimed", [1, ROWS + 1, 50_000, 10**7, 10**8, 10**9, 10**15])
def test_a_footer_and_a_manifest_that_lie_alike(folder: Path, claimed: int) -> None:
    lie(folder / PART, ROWS, claimed)
    forget_fingerprints(folder)
    change_rows(folder, claimed)
    if claimed == 1:
        assert read_all(folder, read_manifest(folder)) == 1
        return
    with pytest.raises(DataError, match=r"part-00000\.parquet|manifest\.json"):
        read_all(folder, read_manifest(folder))


@pytest.mark.parametrize("claimed", [-1, 10**9, 10**15, 2**62])
def test_a_footer_of_logs_that_lies(tmp_path: Path, claimed: int) -> None:
    logs = tmp_path / "logs"
    make_set(logs, ROWS, rows_per_part=ROWS, row_group_rows=ROWS)
    lie(logs / PART, ROWS, claimed)
    config = LogsIngest.model_validate(
        {"source": "logs", "path": str(logs / "train"), "ids": {"row": "row"}}
        | {"tasks": {"click": "label"}, "valid_from": "2026-01-01"}
    )
    found, bad = fragments(config, list_files(config).files)
    assert found == []
    assert [str(logs / PART)] == [file.file.path for file in bad]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("made_for", "topology", "num_nodes"), 10**12),
        (("made_for", "topology", "num_nodes"), 100_000),
        (("made_for", "topology", "workers_per_node"), 10**12),
        (("made_for", "topology", "workers_per_node"), 1000),
        (("made_for", "tables", "tables", 0, "num_embeddings"), 10**15),
        (("made_for", "tables", "tables", 0, "num_embeddings"), -1),
        (("made_for", "tables", "tables", 0, "embedding_dim"), 4 * 10**12),
        (("made_for", "tables", "batch_size"), 10**20),
        (("tables", "author", "columns"), 10**12),
        (("tables", "author", "columns"), 1),
        (("tables", "author", "places"), [10**12]),
        (("tables", "author", "places"), [-1]),
        (("tables", "author", "places"), list(range(1000))),
        (("tables", "author", "memory_bytes"), {"hbm": -1}),
        (("tables", "author", "lookup_ms"), 1e300),
        (("ranks", "hbm_bytes"), [10**400]),
        (("ranks", "lookup_ms"), []),
        (("lower_bound_ms",), float("nan")),
        (("format_version",), 10**30),
    ],
)
def test_counts_of_a_plan(tmp_path: Path, keys: tuple[str | int, ...], value: Any) -> None:
    path = tmp_path / "plan.json"
    save_plan(make_plan(run_tables(author=("table_wise",)), cpu(2)), path)
    change(path, *keys, value=value)
    with pytest.raises(PlanError, match=r"plan\.json"):
        load_plan(path)


def test_parts_without_a_parquet_footer(folder: Path) -> None:
    whole = (folder / PART).read_bytes()
    assert pq.read_metadata(folder / PART).num_rows == ROWS
    manifest = read_manifest(folder)
    for content in (b"", b"PAR1", whole[:-8], whole[:1000], b"PAR1" * 100, bytes(1000)):
        (folder / PART).write_bytes(content)
        with pytest.raises(DataError, match=r"part-00000\.parquet"):
            read_all(folder, manifest)


CALLS = [
    b"cbuiltins\ntuple\n(cbuiltins\nbytes\n(I10000000000\ntRtR.",
    b"cbuiltins\nbytes\n(I10000000000\ntR.",
    b"cnumpy\nvoid\n(I10000000000\ntR.",
    b"cnumpy\nvoid\n(I10000000000\nt\x81.",
    b"(I10000000000\nibuiltins\nbytes\n.",
    b"(cbuiltins\nbytes\nI10000000000\no.",
    b"ccopyreg\n_reconstructor\n(cbuiltins\nbytes\ncbuiltins\nbytes\nI10000000000\ntR.",
    b"ccopyreg\n_reconstructor\n(cpetastorm.unischema\nUnischemaField\ncbuiltins\nbytes\nI9\ntR.",
    b"\x80\x04I1\nr\xff\xff\xff\x7f.",  # the memo of the C unpickler would take 32 GiB
    b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00.",
    b"\x80\x04\x95\xff\xff\xff\xff\x0f\x00\x00\x00.",
]


@pytest.mark.parametrize("pickled", CALLS)
def test_a_unischema_that_asks_for_memory(pickled: bytes) -> None:
    load_petastorm()
    with pytest.raises(pickle.UnpicklingError):
        load_unischema(pickled)
