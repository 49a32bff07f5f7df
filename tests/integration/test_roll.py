"""The daily loop on three days of synthetic logs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from infnet_dist.checkpoint import read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.deltas.applying import apply_deltas
from infnet_dist.deltas.chain import newest_chain
from infnet_dist.deltas.manifest import identity, states_of
from infnet_dist.ingest.synthetic.daily import write_daily_logs
from infnet_dist.io.filesystem import Folder
from infnet_dist.rolling.state import RollState, read_state
from ray_jobs import _roll_stages, roll

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file per day; items are born on each."""
    world = SyntheticIngest(
        source="synthetic",
        num_rows=1_800,
        num_users=40,
        num_items=60,
        num_days=3,
        items_born_daily=0.1,
    )
    folder = tmp_path_factory.mktemp("logs")
    write_daily_logs(world, folder)
    return folder


class Loop:
    """A daily loop in a folder of its own."""

    def __init__(self, root: Path, logs: Path, **sections: Any) -> None:
        root.mkdir()
        self.folder = root / "runs" / "daily"
        self.publications = Folder(root / "published")
        self._file = root / "daily.yaml"
        raw: dict[str, Any] = {
            "run": {"name": "daily", "folder": str(root / "runs")},
            "ingest": {
                "source": "logs",
                "path": str(logs),
                "ids": {"user_id": "user", "item_id": "item", "topic_id": "topic"},
                "behaviours": {"clicked": {"where": "click", "ids": ["item_id"], "length": 4}},
                "tasks": {"click": "click"},
                "refresh": "daily",
            },
            "data": {"path": str(root / "set"), "batch_size": 64},
            "tables": {"embedding_dim": 8},
            "model": {"name": "stack", "token_dim": 8, "head": {"name": "linear"}},
            "roll": {"holdout_h": 4.0},
            "publish": {"folder": str(root / "published"), "keep": 9},
            "scaling": {"num_workers": 1},
            "tracking": {"wandb": "disabled"},
        }
        self._file.write_text(yaml.safe_dump({**raw, **sections}))

    def run(self, *options: str) -> RollState:
        roll.main(["--config", str(self._file), "--launcher", "local", *options])
        return read_state(self.folder)


def tensors(checkpoint: str) -> dict[str, torch.Tensor]:
    folder = Folder(checkpoint)
    manifest = read_manifest(folder)
    reader = TensorReader(folder, manifest)
    return {
        name: reader.rows(name, 0, saved.shape[0] if saved.shape else 1)
        for name, saved in manifest.tensors.items()
    }


def test_every_day_is_scored_before_it_is_trained_on(tmp_path: Path, logs: Path) -> None:
    """What is new comes later, and a day that fails the gate leaves the model in place."""
    (tmp_path / "logs").mkdir()
    days = sorted(logs.iterdir())
    shutil.copy(days[0], tmp_path / "logs")
    impossible = {"metric": "auc/click", "min_difference": 1.0}
    loop = Loop(tmp_path / "loop", tmp_path / "logs", roll={"holdout_h": 4.0, "gate": [impossible]})
    first = loop.run()
    (one,) = first.generations
    assert one.before == {} and one.failed == () and one.rows == 600
    assert loop.run() == first, "nothing is new"

    shutil.copy(days[1], tmp_path / "logs")
    second = loop.run()
    two = second.generations[-1]
    assert (two.number, two.rows) == (2, 600) and two.new_ids["item"] > 0
    assert two.before is not None and 0 < (two.before["valid/auc/click"] or 0) < 1
    assert two.failed, "no AUC is better by 1"
    assert second.current == second.whole == one.model
    assert [p.folder.name for p in newest_chain(loop.publications)] == ["version-00000001"]

    shutil.copy(days[2], tmp_path / "logs")
    three = loop.run().generations[-1]
    init = json.loads((loop.folder / "generation-00003" / "init.json").read_text())
    assert one.model is not None and init["checkpoint"] == one.model.checkpoint
    assert three.model is not None
    trained = read_manifest(Folder(three.model.checkpoint)).progress.examples
    # From the end of what generation 1 was trained on to four hours before the newest row.
    expected = (three.model.trained_until_ms - one.model.trained_until_ms) / DAY_MS * 600
    assert trained == pytest.approx(expected, rel=0.05)


@pytest.mark.exhaustive
def test_too_few_rows_wait_for_more(tmp_path: Path, logs: Path) -> None:
    """All rows of the first file are held out: no model, but no error that would stay either."""
    day = pq.read_table(min(logs.iterdir()))
    (tmp_path / "logs").mkdir()
    pq.write_table(day.slice(0, 50), tmp_path / "logs" / "0.parquet")
    loop = Loop(tmp_path / "loop", tmp_path / "logs")
    (one,) = loop.run().generations
    assert one.model is None and one.failed and one.rows == 50

    pq.write_table(day.slice(50), tmp_path / "logs" / "1.parquet")
    state = loop.run()
    two = state.generations[-1]
    assert two.rows == len(day) - 50 and two.model is not None and state.current == two.model
    trained = read_manifest(Folder(two.model.checkpoint)).progress.examples
    times = day["time_ms"].to_numpy()
    assert trained == (times <= two.model.trained_until_ms).sum() > 50, "also rows of the first"


class _KilledError(Exception):
    pass


@pytest.mark.exhaustive
def test_a_loop_that_is_killed_in_each_stage_is_as_one_that_isnt(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage is killed once after its work, before that is written down."""
    undisturbed = Loop(tmp_path / "undisturbed", logs).run("--one-by-one", "--until", "2024-01-02")
    write, seen = _roll_stages.write_state, set[tuple[int, tuple[str, ...]]]()

    def killed_once(folder: Path, state: RollState) -> None:
        newest = state.newest
        assert newest is not None
        stage = (newest.number, tuple(newest.seconds))
        if stage not in seen:
            seen.add(stage)
            raise _KilledError
        write(folder, state)

    monkeypatch.setattr(_roll_stages, "write_state", killed_once)
    loop = Loop(tmp_path / "killed", logs)
    for _ in range(20):
        try:
            killed = loop.run("--one-by-one", "--until", "2024-01-02")
            break
        except _KilledError:
            continue
    assert len(seen) == 10, "five stages of two generations"
    assert len(killed.generations) == 2
    for one, other in zip(killed.generations, undisturbed.generations, strict=True):
        apart = {"model", "seconds"}
        assert one.model_dump(exclude=apart) == other.model_dump(exclude=apart)
        assert one.model is not None and other.model is not None
        ours, theirs = tensors(one.model.checkpoint), tensors(other.model.checkpoint)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    chain = newest_chain(loop.publications)
    assert killed.current is not None
    current = read_manifest(Folder(killed.current.checkpoint))
    assert identity(current) in states_of(chain[-1].manifest)
    assert len(chain) == 2, "the second day's items are new rows of a delta"
    made_up = Folder(tmp_path / "made-up")
    apply_deltas(chain[0].folder, [chain[1].folder], made_up)
    ours, theirs = tensors(made_up.url), tensors(killed.current.checkpoint)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.exhaustive
def test_within_a_day_only_ids_are_trained(tmp_path: Path, logs: Path) -> None:
    """The dense part stays that of the day's first model; the next day starts from that one."""
    (tmp_path / "logs").mkdir()
    for number, day in enumerate(sorted(logs.iterdir())[:2]):
        table = pq.read_table(day).sort_by("time_ms")
        half = len(table) // 2
        pq.write_table(table.slice(0, half), tmp_path / "logs" / f"{number}-am.parquet")
        pq.write_table(table.slice(half), tmp_path / "logs" / f"{number}-pm.parquet")
    loop = Loop(
        tmp_path / "loop",
        tmp_path / "logs",
        roll={"holdout_h": 4.0, "update": "ids_within_day", "keep": 4},
    )
    state = loop.run("--one-by-one")
    assert [one.ids_only for one in state.generations] == [False, True, False, True]
    models = [one.model for one in state.generations]
    parts = [tensors(model.checkpoint) for model in models if model is not None]
    dense = [name for name in parts[0] if name.startswith("model.model.dense")]
    assert dense
    for whole, ids in ((0, 1), (2, 3)):
        assert all(torch.equal(parts[whole][name], parts[ids][name]) for name in dense)
        name = "model.tables.item.weight"
        known = len(parts[whole][name])
        assert not torch.equal(parts[whole][name], parts[ids][name][:known])
    init = json.loads((loop.folder / "generation-00003" / "init.json").read_text())
    assert models[0] is not None and init["checkpoint"] == models[0].checkpoint
