"""Checkpoints that are already there, published one after the other by hand."""

from pathlib import Path

import pytest
import torch

from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.publish import PublishConfig
from infnet_dist.deltas.applying import apply_deltas
from infnet_dist.deltas.chain import newest_chain
from infnet_dist.deltas.manifest import DeltaManifest, identity
from infnet_dist.deltas.offline import publish_checkpoint
from infnet_dist.io.filesystem import Folder
from tests.checkpoints import STATE, TABLE, by_rows, whole, write_checkpoint

ITEM, MOMENTUM, DENSE = TABLE.format("item"), STATE.format("item"), "model.dense.weight"


def state_of(day: int, rows: int) -> dict[str, torch.Tensor]:
    """A model; each day changes row `day` and the dense part, and rows beyond 20 are new."""
    values = torch.arange(rows * 4, dtype=torch.float32).reshape(rows, 4)
    values[1 : day + 1] += 0.5
    return {ITEM: values, MOMENTUM: values[:, 0].clone(), DENSE: torch.full((2, 3), float(day))}


class Days:
    """A checkpoint per day, and the folder that they are published in."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = Folder(root / "published")

    def checkpoint(self, day: int, rows: int = 20) -> Folder:
        tensors = state_of(day, rows)
        cuts = {name: by_rows(value, 2) for name, value in tensors.items() if ".tables." in name}
        cuts |= {DENSE: whole(tensors[DENSE])}
        place = Folder(self._root / f"day-{day}")
        return write_checkpoint(place, cuts, step=10 * day, files={"config.yaml": "{}"})

    def publish(self, checkpoint: Folder, previous: Folder | None, **settings: object) -> str:
        """Returns the publication's name."""
        section = PublishConfig.model_validate({"folder": self.folder.url, **settings})
        return publish_checkpoint(section, checkpoint, previous).name

    def kinds(self) -> dict[int, str]:
        """By version, full or delta."""
        kinds = {"manifest.json": "full", "delta.json": "delta"}
        return {
            int(name[-2:]): next(
                kind for file, kind in kinds.items() if file in (self.folder / name).entries()
            )
            for name in sorted(self.folder.entries())
        }

    def assert_is(self, day: int, rows: int) -> None:
        """The newest chain makes up a day's model, bit for bit."""
        chain, out = newest_chain(self.folder), Folder(self._root / f"made-up-{day}")
        if len(chain) > 1:
            apply_deltas(chain[0].folder, [one.folder for one in chain[1:]], out)
        else:
            out = chain[0].folder
        manifest, wanted = read_manifest(out), state_of(day, rows)
        assert manifest.tensors.keys() == wanted.keys()
        assert manifest.progress.step == 10 * day
        reader = TensorReader(out, manifest)
        for name, value in wanted.items():
            assert manifest.tensors[name].shape == value.shape
            assert torch.equal(reader.rows(name, 0, len(value)), value), name


@pytest.fixture
def days(tmp_path: Path) -> Days:
    return Days(tmp_path)


def test_the_first_is_full_and_the_next_are_deltas(days: Days) -> None:
    one, two, three = (days.checkpoint(day) for day in (1, 2, 3))
    assert days.publish(one, None) == "version-00000001"
    copied = read_manifest(days.folder / "version-00000001")
    assert identity(copied) == identity(read_manifest(one))
    days.publish(two, one)
    days.publish(three, two)
    assert days.kinds() == {1: "full", 2: "delta", 3: "delta"}
    days.assert_is(3, 20)
    last = newest_chain(days.folder)[-1].manifest
    assert isinstance(last, DeltaManifest)
    assert (last.delta.base.name, last.delta.number) == ("version-00000001", 2)


def test_the_same_again_changes_nothing(days: Days) -> None:
    one, two = days.checkpoint(1), days.checkpoint(2)
    assert days.publish(one, None) == days.publish(one, None) == "version-00000001"
    assert days.publish(two, one) == days.publish(two, one) == "version-00000002"
    assert days.kinds() == {1: "full", 2: "delta"}


def test_a_chain_has_at_most_so_many_deltas(days: Days) -> None:
    found = [days.checkpoint(day) for day in range(1, 7)]
    for before, after in zip([None, *found], found, strict=False):
        days.publish(after, before, max_chain=2, keep=9)
    assert days.kinds() == {1: "full", 2: "delta", 3: "delta", 4: "full", 5: "delta", 6: "delta"}
    days.assert_is(6, 20)
    days.publish(days.checkpoint(7), found[-1], max_chain=0, keep=1)
    assert days.kinds() == {7: "full"}, "older ones are deleted"


@pytest.mark.parametrize("previous", ["none", "deleted", "not the published one"])
def test_without_the_checkpoint_published_before_it_is_full(previous: str, days: Days) -> None:
    one, two, three = (days.checkpoint(day) for day in (1, 2, 3))
    days.publish(one, None)
    given = {"none": None, "deleted": Folder(one.url + "-gone"), "not the published one": two}
    days.publish(three, given[previous])
    assert days.kinds() == {1: "full", 2: "full"}
    days.assert_is(3, 20)


def test_rows_added_to_a_table_are_a_delta(days: Days) -> None:
    one, two, three = days.checkpoint(1), days.checkpoint(2, 25), days.checkpoint(3, 31)
    days.publish(one, None)
    days.publish(two, one)
    days.publish(three, two)
    assert days.kinds() == {1: "full", 2: "delta", 3: "delta"}
    days.assert_is(3, 31)
    last = newest_chain(days.folder)[-1].manifest
    assert isinstance(last, DeltaManifest) and last.changed_rows == 1 + 6


def test_a_model_that_differs_otherwise_is_full(days: Days) -> None:
    one, two = days.checkpoint(1, 25), days.checkpoint(2, 24)
    days.publish(one, None)
    days.publish(two, one)
    assert days.kinds() == {1: "full", 2: "full"}
    days.assert_is(2, 24)


def test_an_interrupted_publication_is_left_aside(days: Days) -> None:
    one, two = days.checkpoint(1), days.checkpoint(2)
    days.publish(one, None)
    (days.folder / "version-00000002").put("rank-00000-00-0123abcd.safetensors", b"")
    assert days.publish(two, one) == "version-00000003"
    assert days.kinds() == {1: "full", 3: "delta"}, "the rest is deleted"
    days.assert_is(2, 20)
