"""The setup of training and evaluation: an open training set and a sharded model."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import DataOrder
from infnet_dist.config.run import Config
from infnet_dist.config.window import first_ms
from infnet_dist.data.checks.footers import (
    check_columns,
    check_enough_rows,
    check_split,
    count_orphan_positives,
)
from infnet_dist.data.epoch_order import ORDER_VERSION
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.reader import Reader
from infnet_dist.data.statistics import sample_usage
from infnet_dist.data.unknown_ids import UnknownIds, default_rates, unlearned_ids
from infnet_dist.data.window.dividing import divide_at
from infnet_dist.data.window.replay import REPLAY, Replay, replay_of
from infnet_dist.data.window.selection import generations_of, select_window
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import DataError
from infnet_dist.model.settings_check import check_settings
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.schema import Schema
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.training.selected_schema import selected_schema

log = logging.getLogger("infnet_dist")


def open_training_set(
    config: Config, trained: Schema | None = None, *, manifest: Manifest | None = None
) -> tuple[Manifest, Schema]:
    """Open a training set: its manifest, and the selected features and tasks, with crosses.

    It reads no rows, so the driver calls it too; only the times of parts that `data.valid_from`
    divides.

    Args:
        config: the run.
        trained: the schema of a trained model that reads the set; replaces the features and crosses
            that `config` selects. Only the names of columns come from the set.
        manifest: the set's, if it was read before.

    Raises:
        DataError: missing or malformed set, unknown names of features or tasks, or a split without
            rows.
        ConfigError: unknown names of tables or tasks elsewhere in the config, or a cross that can't
            be made.
    """
    manifest = manifest or read_manifest(config.data.path)
    if config.data.reader != "petastorm" and manifest.is_elsewhere:
        raise DataError(
            f"{config.data.path}: its manifest names files outside its folder, expected "
            "relative names; a Petastorm data set needs data.reader=petastorm"
        )
    schema = selected_schema(config, manifest.schema_, trained)
    open_part = part_opener(config.data.reader, schema)
    try:
        check_columns(config.data.path, manifest, schema, open_part)
    except DataError as error:
        if manifest.source.get("source") != "petastorm" or config.data.reader == "petastorm":
            raise
        raise DataError(f"{error}; a Petastorm data set needs data.reader=petastorm") from None
    if config.data.valid_from is not None:
        at_ms = first_ms("data.valid_from", config.data.valid_from)
        manifest = divide_at(config.data.path, manifest, at_ms)
    return manifest, schema


def open_for_training(config: Config, manifest: Manifest | None = None) -> tuple[Manifest, Schema]:
    """As `open_training_set`, with the rows of the window, and all checks that need no worker.

    It reads the times of parts that are partly in a time window, and no other rows.

    Args:
        config: the run.
        manifest: the set's, if it was read before (`manifest_of_run`).

    Raises:
        DataError: the window doesn't fill one step, or there is no valid split.
        ConfigError: contradicting settings.
        PlanError: a table can't have a sharding type that it asks for.
    """
    manifest, schema = open_training_set(config, manifest=manifest)
    check_settings(config, schema)
    tables_of_run(config, schema)  # checks their sharding types
    manifest.split("valid")
    data = config.data
    replay = data.replay_share > 0
    manifest = select_window(data.path, manifest, data.window, replay=replay)
    check_enough_rows(
        manifest.split("train").rows,
        split="train" if data.window is None else "the window of train",
        num_workers=config.scaling.num_workers,
        batch_size=data.batch_size,
    )
    return manifest, schema


def unknown_id_rates(
    config: Config,
    manifest: Manifest,
    schema: Schema,
    begun: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """By table, the share of the ids that training drops to 0.

    Args:
        config: the run.
        manifest: of the training set.
        schema: the selected features.
        begun: of the run's checkpoint; used where `config` leaves the rate open, even if the
            training set has grown since.

    A cross has the largest rate of its features, since it is unknown where one of them is.
    """
    given = config.tables.unknown_id_rate
    if given is None and begun is not None:
        rates = begun
    else:
        hashed = manifest.ingested.hashed if manifest.ingested else {}
        in_place = manifest.source.get("source") == "petastorm"  # unchanged ids: 0 may be an id
        needed = default_rates(manifest, schema) if given is None else {}
        rates = {
            table.name: needed.get(table.name, 0.0) if given is None else given
            for table in schema.tables
            if not (table.raw or table.name in hashed or in_place)
        }
    found = {table.name: rates.get(table.name, 0.0) for table in schema.tables}
    overridden = {
        name: override.unknown_id_rate
        for name in found
        for override in config.tables.overrides_of(name)  # the strongest is last
        if override.unknown_id_rate is not None
    }
    found |= overridden
    tables = {field.key: field.table for field in schema.fields}
    for cross in schema.crosses:  # 0 where a feature of it is: they share a random number
        if cross.table not in overridden:
            found[cross.table] = max(found[tables[name]] for name in cross.features)
    return found


@dataclass
class TrainingSetup:
    """An open training set and a sharded model on this worker.

    Attributes:
        manifest: rank 0's, with the fingerprints of the parts of all opened splits.
        begun_rates: shares of ids that the run dropped until its checkpoint, by table.
    """

    config: Config
    context: WorkerContext
    manifest: Manifest
    schema: Schema
    sharded: ShardedModel
    begun_rates: Mapping[str, float] | None = None

    @classmethod
    def open(
        cls,
        config: Config,
        context: WorkerContext,
        *,
        splits: Sequence[str],
        open_set: Callable[[Config], tuple[Manifest, Schema]] = open_training_set,
        for_training: bool = True,
    ) -> "TrainingSetup":
        """Open the set on rank 0, check the data of `splits` on all ranks, build the model.

        The model has no optimizers unless it is built `for_training`.

        All ranks use rank 0's manifest, since the set may change at any time.
        """
        manifest, schema = context.on_first(lambda: open_set(config))
        open_part = part_opener(config.data.reader, schema)
        rank, world_size = context.rank, context.world_size
        for split in (*splits, REPLAY) if REPLAY in manifest.splits else splits:
            check = partial(check_split, config.data.path, manifest, schema, open_part=open_part)
            here = partial(check, split=split, rank=rank, world_size=world_size)
            found = context.gather(context.together(here))
            in_order = [one for row in zip_longest(*found) for one in row if one is not None]
            manifest = manifest.with_fingerprints(split, in_order)
        data = (config.data.path, manifest, schema)
        sample = partial(sample_usage, *data, open_part)
        sharded = build_sharded_model(config, schema, context, sample, for_training=for_training)
        return cls(config, context, manifest, schema, sharded)

    @cached_property
    def order(self) -> DataOrder:
        """The order in which rows are read."""
        return DataOrder(
            content_hash=self.manifest.content_hash,
            identity=self.manifest.identity(self.schema),
            seed=self.config.run.seed,
            shuffle_rows=self.config.data.shuffle_rows,
            version=ORDER_VERSION,
            replay_share=self.config.data.replay_share,
            generations=generations_of(self.manifest.split("train").parts),
        )

    @cached_property
    def replay(self) -> Replay | None:
        """The sample of older rows in each epoch of training, if there is one."""
        if REPLAY not in self.manifest.splits:
            return None
        return replay_of(
            self.manifest.splits[REPLAY].parts,
            window_rows=self.manifest.split("train").rows,
            share=self.config.data.replay_share,
            seed=self.config.run.seed,
        )

    @property
    def unknown_id_rates(self) -> dict[str, float]:
        """By table, the share of the ids that training drops to 0."""
        return unknown_id_rates(self.config, self.manifest, self.schema, self.begun_rates)

    def resume_unknown_id_rates(self, begun: Mapping[str, float] | None) -> None:
        """Resume with the rates of a checkpoint; warn on rank 0 where the config changes them.

        Args:
            begun: the checkpoint's; None in checkpoints of versions that didn't save them.
        """
        self.begun_rates = begun
        before, now = begun or {}, self.unknown_id_rates
        changed = [name for name in before if now[name] != before[name]]
        if changed and self.context.is_first:
            log.warning(
                "until this checkpoint training dropped %s of the ids of table %r to 0, now it "
                "drops %s (tables.unknown_id_rate); changed for %s of %s tables",
                *(before[changed[0]], changed[0], now[changed[0]], len(changed), len(now)),
            )

    def warn_of_contradicting_labels(self) -> None:
        """Warn of rows that are positive for a task and negative for the one it is conditional on.

        P(task) = P(given) P(task | given) can't fit them.
        """
        for task, given in self.config.model.conditional_on.items():
            without, positives = count_orphan_positives(
                self.config.data.path, self.manifest, self.schema, task=task, under=given
            )
            if without:
                log.warning(
                    "model.conditional_on: %s of %s positive rows of %r are negative for %r, which "
                    "model.conditional_on rules out; remove the pair if these aren't noise",
                    *(f"{without:,}", f"{positives:,}", task, given),
                )

    def warn_of_unlearned_ids(self, split: str) -> None:
        """Warn on rank 0 of unknown ids in `split` whose row 0 training never updates."""
        rates = self.unknown_id_rates
        found = unlearned_ids(self.manifest, self.schema, rates, split)
        for key, (table, share) in found.items() if self.context.is_first else ():
            log.warning(
                "%.0f %% of the ids of %r are unknown (0) in %s and none in train, so row 0 of "
                "table %r isn't trained: tables.unknown_id_rate is %s for it",
                *(100 * share, key, split, table, rates[table]),
            )

    def reader(self, split: str, *, shuffle: bool) -> Reader:
        """This rank's reader of a split; if shuffled, as for training, it drops ids to 0."""
        data = self.config.data
        rates = self.unknown_id_rates if shuffle else {}
        return Reader(
            folder=data.path,
            manifest=self.manifest,
            schema=self.schema,
            split=split,
            batch_size=data.batch_size,
            rank=self.context.rank,
            world_size=self.context.world_size,
            seed=self.config.run.seed,
            shuffle_rows=data.shuffle_rows if shuffle else None,
            prefetch_batches=data.prefetch_batches,
            unknown_ids=UnknownIds(rates, self.config.run.seed),
            open_part=part_opener(data.reader, self.schema),
            max_bad_row_groups=data.max_bad_row_groups,
            replay=self.replay if split == "train" and shuffle else None,
        )


def stream(
    batches: Iterator[RankingBatch], device: torch.device
) -> Iterator[tuple[RankingBatch, float]]:
    """Batches on the device, each with the seconds that the loop waited for it."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        if device.type == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        yield batch, time.perf_counter() - start
