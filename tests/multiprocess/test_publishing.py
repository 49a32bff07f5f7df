"""Deltas of a model while it trains: base + deltas = the checkpoint, byte for byte."""

import os
import signal
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from infnet_dist import checkpoint
from infnet_dist.checkpoint import CheckpointMetadata, SavedProgress, Saver, read_manifest, writing
from infnet_dist.checkpoint.manifest import DataOrder
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.run import Config
from infnet_dist.deltas.applying import apply_deltas
from infnet_dist.deltas.chain import InterruptedChainError, newest_chain
from infnet_dist.deltas.compacting import compact
from infnet_dist.deltas.comparing import Link, make_delta
from infnet_dist.deltas.live.publishing import Publisher
from infnet_dist.deltas.live.tracking import ChangedRows
from infnet_dist.deltas.manifest import DeltaManifest, Identity, identity
from infnet_dist.deltas.reading import Delta
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.training.step import EagerStep, PipelinedStep, Step, StepSettings
from infnet_dist.training.trainer import train
from tests.checkpoints import whole, write_checkpoint
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set

ORDER = DataOrder(content_hash="x", seed=0, shuffle_rows=1)
ROW_WISE = {name: "row_wise" for name in ROWS}


class Attempt(NamedTuple):
    """Steps of a process, from a checkpoint or from the beginning.

    Attributes:
        ranks: number of workers.
        types: sharding types where they aren't row-wise.
        resume: step of the checkpoint to load.
        steps: to train; after which of them to publish, and to save a checkpoint.
        nonfinite_step: step whose loss isn't finite.
    """

    ranks: int
    types: Mapping[str, str] = MappingProxyType({})
    resume: int | None = None
    steps: int = 4
    publish: Sequence[int] = (1, 2, 4)
    save: Sequence[int] = (1, 2, 4)
    nonfinite_step: int | None = None
    step: type[Step] = PipelinedStep


def config_for(types: Mapping[str, str], folder: Path, **publish: Any) -> Config:
    overrides: dict = {
        name: {"sharding_types": [kind]} for name, kind in (ROW_WISE | dict(types)).items()
    }
    for name, optimizer in {"user": "sgd", "item": "adagrad", "tag": "adagrad"}.items():
        overrides[name]["optimizer"] = optimizer
    if types.get("topic") == "column_wise":  # row-wise Adagrad can't train 12 floats cut in two
        overrides["topic"]["embedding_dim"] = 16
    return config_of(
        overrides=overrides,
        sparse_optimizer={"name": "rowwise_adagrad", "learning_rate": 0.05},
        dense_optimizer={"ema_decay": 0.9},
        checkpoint={"keep_last": 99, "retry_s": 0.0},
        publish={"folder": str(folder / "published"), **publish},
    )


def train_and_publish(
    context: WorkerContext, *, config: Config, folder: Path, attempt: Attempt
) -> dict[str, Any]:
    """Train as the attempt says.

    Returns:
        Whether the chain was continued, changed rows by version, and skipped steps.
    """
    sharded = build_sharded_model(config, SCHEMA, context)
    rows = ChangedRows(sharded)
    saver = Saver(Folder(folder / "checkpoints"), sharded, config, context, more_shards=rows.shards)
    publisher = Publisher(sharded, config, context, rows=rows, snapshots=saver.snapshots)
    begun, continued = attempt.resume or 0, False
    if attempt.resume is not None:
        place = saver.folder_of(attempt.resume)
        manifest = checkpoint.load(place, sharded, context)
        continued = publisher.resume(place, manifest)
    numbers = count(begun)
    batches = [make_batch(100 * n + context.rank) for n in range(begun, attempt.steps)]
    if attempt.nonfinite_step is not None:
        batches[attempt.nonfinite_step - begun].vectors_BV[:, :] = torch.inf
    step = attempt.step(sharded, context, seed=0)
    published: dict[str, int | None] = {}
    skipped = []
    for done, result in enumerate(
        step.over(iter(batches), lambda: StepSettings(next(numbers))), begun + 1
    ):
        if result.flags.read().nonfinite_loss:
            skipped.append(done)
        if done in attempt.publish:
            publisher.publish(CheckpointMetadata(SavedProgress(step=done), ORDER, {}))
            made = publisher.wait()
            assert made is not None
            published[made.folder.name] = made.changed_rows
        if done in attempt.save:
            about = CheckpointMetadata(
                SavedProgress(step=done), ORDER, {}, published=publisher.published
            )
            saver.save(about)
            saver.wait()
    publisher.close()
    saver.close()
    return {"continued": continued, "published": published, "skipped": skipped}


def run(folder: Path, attempt: Attempt, **publish: Any) -> dict[str, Any]:
    config = config_for(attempt.types, folder, **publish)
    return run_ranks(
        train_and_publish, attempt.ranks, config=config, folder=folder, attempt=attempt
    )[0]


def model_of(place: Folder) -> dict[str, torch.Tensor]:
    """Its tensors, but for the tracked rows."""
    found = tensors_of(place)
    return {name: value for name, value in found.items() if not name.startswith("changed.")}


def tensors_of(place: Folder) -> dict[str, torch.Tensor]:
    manifest = read_manifest(place)
    reader = TensorReader(place, manifest)
    return {
        name: reader.rows(name, 0, saved.shape[0] if saved.shape else 1)
        for name, saved in manifest.tensors.items()
        if saved.shape != (0,)
    }


def assert_chain_is(folder: Path, step: int, *, made: str = "full") -> list[Any]:
    """The newest chain makes up a step's checkpoint, bit for bit; returns the chain."""
    chain = newest_chain(Folder(folder / "published"))
    out = chain[0].folder
    wanted = model_of(Folder(folder / "checkpoints") / f"step-{step:08d}")
    if len(chain) > 1:
        out = Folder(folder / made)
        apply_deltas(chain[0].folder, [one.folder for one in chain[1:]], out)
    assert_equal(tensors_of(out), wanted)
    return chain


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


MIXED = {"user": "data_parallel", "item": "table_wise", "author": "row_wise", "tag": "table_wise"}
COLUMNS = {"user": "column_wise", "item": "column_wise", "topic": "column_wise"}


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt(2, MIXED),
        pytest.param(Attempt(1, MIXED, step=EagerStep), marks=pytest.mark.exhaustive),
        Attempt(2, COLUMNS),
        pytest.param(Attempt(3, {"place": "table_wise"}), marks=pytest.mark.exhaustive),
        Attempt(2, MIXED, nonfinite_step=2),
    ],
    ids=["mixed", "one worker", "columns", "three workers", "skipped batch"],
)
def test_base_and_deltas_are_the_checkpoint(attempt: Attempt, tmp_path: Path) -> None:
    """Bags, sequences, all sharding types, all optimizers of CPUs."""
    found = run(tmp_path, attempt)
    assert found["skipped"] == (
        [attempt.nonfinite_step + 1] if attempt.nonfinite_step is not None else []
    )
    chain = assert_chain_is(tmp_path, 4)
    assert [type(one.manifest) is DeltaManifest for one in chain] == [False, True, True]
    one = Folder(tmp_path / "compacted")
    compact([link.folder for link in chain[1:]], one)
    apply_deltas(chain[0].folder, [one], Folder(tmp_path / "of-compacted"))
    assert_equal(
        tensors_of(Folder(tmp_path / "of-compacted")), tensors_of(Folder(tmp_path / "full"))
    )
    steps = Folder(tmp_path / "checkpoints")
    for before, after, one in ((1, 2, chain[1]), (2, 4, chain[2])):
        tracked = Delta(one.folder, one.manifest)
        out = Folder(tmp_path / f"compared-{after}")
        make_delta(steps / f"step-{before:08d}", steps / f"step-{after:08d}", out)
        compared = Delta(out)
        assert tracked.manifest.delta.tables.keys() == {
            name for name in ROWS if attempt.types.get(name) != "data_parallel"
        }
        changed = 0
        for table in tracked.manifest.delta.tables:
            mine, theirs = (set(d.indices(table).tolist()) for d in (tracked, compared))
            assert theirs <= mine, table
            changed += len(theirs)
        assert 0 < changed < tracked.manifest.changed_rows + 1
        assert tracked.manifest.changed_rows < sum(tracked.manifest.delta.tables.values())


def test_rows_that_are_not_tracked_would_show(tmp_path: Path) -> None:
    with mock.patch.object(ChangedRows, "take", lambda self: no_marks(self)):
        run(tmp_path, Attempt(1, step=EagerStep))
    with pytest.raises(AssertionError, match="tables"):
        assert_chain_is(tmp_path, 4)


def no_marks(rows: ChangedRows) -> dict[int, torch.Tensor]:
    rows.taken = {id(k.module): torch.zeros_like(k.take()) for k in rows._kernels}
    return rows.taken


FIRST = Attempt(2, MIXED, steps=6, publish=(2, 4, 6), save=(3, 5))


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(1, marks=pytest.mark.exhaustive),
        pytest.param(2, marks=pytest.mark.exhaustive),
        3,
    ],
)
def test_resumed_it_continues_the_chain_after_links_of_a_lost_attempt(
    ranks: int, tmp_path: Path
) -> None:
    """Published at 2, 4 and 6; resumed from 3, with another batch per rank and other plans."""
    run(tmp_path, FIRST)
    again = Attempt(
        ranks, {"user": "row_wise", "tag": "data_parallel"}, 3, steps=5, publish=(4, 5), save=(5,)
    )
    found = run(tmp_path, again)
    assert found["continued"]
    assert list(found["published"]) == ["version-00000004", "version-00000005"]
    assert None not in found["published"].values(), "deltas"
    assert len(assert_chain_is(tmp_path, 5)) == 5


def test_resumed_it_publishes_what_changed_before_the_checkpoint(tmp_path: Path) -> None:
    """The last link is older than the checkpoint, whose marks are the only trace of a step."""
    run(tmp_path, FIRST._replace(steps=3, publish=(2,), save=(3,)))
    found = run(tmp_path, Attempt(1, MIXED, 3, steps=4, publish=(4,), save=(4,)))
    assert found["continued"]
    assert len(assert_chain_is(tmp_path, 4)) == 2


@pytest.mark.exhaustive
def test_twice_resumed_from_a_checkpoint_that_a_lost_attempt_saved(tmp_path: Path) -> None:
    """The second attempt trains past the first one's links, saves, and dies unpublished."""
    run(tmp_path, FIRST)
    run(tmp_path, Attempt(3, MIXED, 3, steps=5, publish=(), save=(5,)))
    found = run(tmp_path, Attempt(2, MIXED, 5, steps=6, publish=(6,), save=(6,)))
    assert found["continued"]
    assert len(assert_chain_is(tmp_path, 6)) == 4


def test_resumed_without_its_chain_it_publishes_in_full(tmp_path: Path) -> None:
    run(tmp_path, FIRST)
    (tmp_path / "published" / "version-00000001" / "manifest.json").unlink()
    found = run(tmp_path, Attempt(2, MIXED, 3, steps=4, publish=(4,), save=(4,)))
    assert not found["continued"]
    assert found["published"] == {"version-00000004": None}
    assert len(assert_chain_is(tmp_path, 4)) == 1


@pytest.mark.exhaustive
def test_resumed_after_another_run_added_rows_it_publishes_in_full(tmp_path: Path) -> None:
    """A delta of its smaller tables would not fit on those that the chain leads to."""
    run(tmp_path, Attempt(1, steps=3, publish=(2,), save=(2, 3), step=EagerStep))
    saved = Folder(tmp_path / "checkpoints" / "step-00000002")
    published = tmp_path / "published"
    cuts = {}
    for name, value in model_of(saved).items():
        more = value[-1:] if ".tables.item." in name else value[:0]
        is_scalar = not read_manifest(saved).tensors[name].shape
        cuts[name] = whole(value.squeeze() if is_scalar else torch.cat([value, more]))
    grown = write_checkpoint(Folder(tmp_path / "grown"), cuts, step=3)
    (full,) = newest_chain(Folder(published))
    own = Identity(name=full.folder.name, digest=identity(full.manifest))
    made = make_delta(saved, grown, Folder(published / "version-00000002"), after=Link(own, own, 1))
    assert made.delta.tables["item"] == ROWS["item"] + 1
    found = run(tmp_path, Attempt(1, resume=3, steps=4, publish=(4,), save=(4,), step=EagerStep))
    assert not found["continued"]
    assert found["published"] == {"version-00000003": None}
    assert len(assert_chain_is(tmp_path, 4)) == 1


def test_chains_end_and_old_ones_are_deleted(tmp_path: Path) -> None:
    attempt = Attempt(1, steps=7, publish=range(1, 8), save=(7,), step=EagerStep)
    found = run(tmp_path, attempt, max_chain=1, keep=2)
    assert [rows is None for rows in found["published"].values()] == [True, False] * 3 + [True]
    left = sorted(path.name for path in (tmp_path / "published").iterdir())
    assert left == ["version-00000005", "version-00000006", "version-00000007"]
    assert_chain_is(tmp_path, 7)


@pytest.mark.parametrize("rows", ["fp32", "fp16", "int8"])
def test_for_serving_rows_may_be_rounded_and_come_without_optimizer(
    rows: str, tmp_path: Path
) -> None:
    run(tmp_path, Attempt(2, MIXED), rows=rows, optimizer_state=False)
    chain, out = newest_chain(Folder(tmp_path / "published")), Folder(tmp_path / "full")
    made = apply_deltas(chain[0].folder, [one.folder for one in chain[1:]], out)
    found = tensors_of(out)
    wanted = model_of(Folder(tmp_path / "checkpoints" / "step-00000004"))
    assert found.keys() == {name for name in wanted if name.startswith("model.")}
    assert made.tensors.keys() >= found.keys()
    for name, value in found.items():
        exact = wanted[name].float()
        if rows == "fp32" or ".tables." not in name:
            assert torch.equal(value, wanted[name]), name
        elif rows == "fp16":
            assert torch.allclose(value.float(), exact, rtol=2**-11, atol=1e-7)
        else:
            limit = exact.abs().amax(1, keepdim=True) / 127 / 2 + 1e-7
            assert ((value.float() - exact).abs() <= limit * 1.001).all(), name
    if rows != "fp32":
        assert any(not torch.equal(found[name], wanted[name]) for name in found)


def test_int8_needs_whole_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"publish\.rows.*(user|item|topic)"):
        run(tmp_path, Attempt(2, COLUMNS), rows="int8", optimizer_state=False)


def test_a_failed_publication_is_applied_for(tmp_path: Path) -> None:
    """The disk is full at one publication, or the process is killed before its manifest."""
    config = config_for(MIXED, tmp_path)
    left = run_ranks(fail_once, 2, config=config, folder=tmp_path)[0]
    assert left == ["version-00000001", "version-00000003"], "the failed one is deleted later"
    assert len(assert_chain_is(tmp_path, 3)) == 2


def fail_once(context: WorkerContext, *, config: Config, folder: Path) -> list[str]:
    sharded = build_sharded_model(config, SCHEMA, context)
    rows = ChangedRows(sharded)
    saver = Saver(Folder(folder / "checkpoints"), sharded, config, context)
    publisher = Publisher(sharded, config, context, rows=rows, snapshots=saver.snapshots)
    step, write_file = EagerStep(sharded, context, seed=0), writing.write_file

    def write_or_fail(*arguments: Any) -> Any:
        if context.rank:
            raise OSError(28, "No space left on device")
        return write_file(*arguments)

    for n in range(3):
        step.train(make_batch(100 * n + context.rank), StepSettings(n))
        about = CheckpointMetadata(SavedProgress(step=n + 1), ORDER, {})
        if n == 1:
            with mock.patch.object(writing, "write_file", write_or_fail):
                publisher.publish(about)
                with pytest.raises(CheckpointError, match="No space left"):
                    publisher.wait()
        else:
            publisher.publish(about)
            publisher.wait()
    saver.save(about)
    saver.wait()
    publisher.close()
    saver.close()
    return sorted(path.name for path in (folder / "published").iterdir())


def test_two_runs_in_one_folder_are_noticed(tmp_path: Path) -> None:
    config = config_for({}, tmp_path)
    run_ranks(disturbed, 1, config=config, folder=tmp_path)
    assert_chain_is(tmp_path, 1)


def disturbed(context: WorkerContext, *, config: Config, folder: Path) -> None:
    sharded = build_sharded_model(config, SCHEMA, context)
    saver = Saver(Folder(folder / "checkpoints"), sharded, config, context)
    rows = [ChangedRows(sharded), ChangedRows(sharded)]
    one, other = (
        Publisher(sharded, config, context, rows=row, snapshots=saver.snapshots) for row in rows
    )
    step = EagerStep(sharded, context, seed=0)
    step.train(make_batch(0), StepSettings(0))
    about = CheckpointMetadata(SavedProgress(step=1), ORDER, {})
    for publisher in (one, other):
        publisher.publish(about)
        publisher.wait()
    one.publish(about)
    with pytest.raises(InterruptedChainError, match="version-00000002"):
        one.wait()
    one.publish(about)
    made = one.wait()
    assert made is not None and made.changed_rows is None, "full again"
    saver.save(about)
    saver.wait()
    for publisher in (one, other):
        publisher.close()
    saver.close()


def test_a_run_killed_in_mid_publish_resumes_and_continues_its_chain(tmp_path: Path) -> None:
    """Rank 1 dies when its rows of version 3 are written; the checkpoint of step 6 is complete."""
    data = make_tiny_set(tmp_path / "data", num_rows=1_000)
    config = make_config(
        data,
        tmp_path,
        checkpoint={"every_steps": 3, "keep_last": 99, "background": False},
        training={"max_steps": 8},
        publish={"folder": str(tmp_path / "published"), "every_steps": 2},
    )
    with pytest.raises(RuntimeError, match=r"worker 1 died \(exit code -9\)"):
        run_ranks(die_in_publication, 2, config=config, run_folder=tmp_path)
    published = Folder(tmp_path / "published")
    assert [one.folder.name[-1] for one in newest_chain(published)] == ["1", "2"]
    assert (tmp_path / "published" / "version-00000003").is_dir()
    run_ranks(train, 2, config=config, run_folder=tmp_path)
    chain = assert_chain_is(tmp_path, 8)
    assert [one.folder.name[-1] for one in chain] == ["1", "2", "4"]
    assert [one.manifest.progress.step for one in chain] == [2, 4, 8]
    assert not (tmp_path / "published" / "version-00000003").exists()


def die_in_publication(context: WorkerContext, *, config: Config, run_folder: Path) -> None:
    from infnet_dist.deltas.live.publishing import FolderWriter

    write_state = FolderWriter.write_state

    def dying(writer: FolderWriter, folder: Folder, state: Any) -> Any:
        if folder.name == "version-00000003" and context.rank:
            writer._write_tensors(folder, state, "0123abcd")
            os.kill(os.getpid(), signal.SIGKILL)
        return write_state(writer, folder, state)

    with mock.patch.object(FolderWriter, "write_state", dying):
        train(context, config, run_folder=run_folder)


def test_a_run_publishes_by_the_clock_and_after_its_epoch(tmp_path: Path) -> None:
    """All ranks agree on rank 0's clock a step later, so not in the first step."""
    data = make_tiny_set(tmp_path / "data", num_rows=1_000)
    publish = {"folder": str(tmp_path / "published"), "every_minutes": 1e-9}
    config = make_config(data, tmp_path, training={"max_steps": 4}, publish=publish)
    run_ranks(train, 2, config=config, run_folder=tmp_path)
    chain = assert_chain_is(tmp_path, 4)
    assert [one.manifest.progress.step for one in chain] == [2, 3, 4]
