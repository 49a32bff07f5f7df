"""The stages of a generation of `infnet roll`, each written down once it is done."""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infnet_dist.checkpoint import read_manifest as read_checkpoint
from infnet_dist.checkpoint.inspection import table_facts, tables_of
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.run import Config
from infnet_dist.config.warm_start import InitFromConfig
from infnet_dist.config.window import WindowConfig
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.window.dividing import divide_at
from infnet_dist.data.window.selection import EmptyWindowError, select_window
from infnet_dist.deltas.offline import publish_checkpoint
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import null_nonfinite
from infnet_dist.rolling.gate import failures
from infnet_dist.rolling.state import Generation, Metrics, Model, RollState, metrics_of, write_state
from ray_jobs._cli import log
from ray_jobs._run_checks import check_run
from ray_jobs._supervise import train_with_restarts
from ray_jobs.evaluate import evaluate_on

_HOUR_MS = 3_600_000


class Stages:
    """Runs the stages of the newest generation that aren't done.

    Args:
        config: the run file.
        folder: of the state and of the runs.
        launcher: "ray" or "local".
    """

    def __init__(self, config: Config, folder: Path, launcher: str) -> None:
        self.launcher = launcher
        self._config = config
        self._folder = folder
        self._state = RollState()

    def complete(self, state: RollState) -> None:
        """Run all stages of the newest generation that aren't done yet.

        Raises:
            UserError: bad data or settings; what was done before is kept.
            StoppedError: a signal stopped the training.
        """
        self._state = state
        if state.newest is None:
            return
        if state.newest.failed is None:
            self._evaluate_current()
            self._train()
            self._pass_gate()
        if self._newest.published is None:
            self._publish()
        self._prune()

    @property
    def _newest(self) -> Generation:
        assert self._state.newest is not None
        return self._state.newest

    def _done(self, stage: str, started: float, **update: Any) -> None:
        """Write down what a stage found."""
        newest = self._newest
        seconds = newest.seconds | {stage: time.monotonic() - started}
        changed = newest.model_copy(update={**update, "seconds": seconds})
        self._state = self._state.having(changed)
        write_state(self._folder, self._state)

    def _evaluate_current(self) -> None:
        """The current model on rows that it has never seen, and on those that are held out."""
        newest, current = self._newest, self._state.current
        if newest.before is None:
            start, before = time.monotonic(), dict[str, float | None]()
            if current is not None:
                before = self._metrics(current, current.trained_until_ms + 1)
            self._done("evaluate", start, before=before)
        if self._newest.incumbent is None:
            start, incumbent = time.monotonic(), dict[str, float | None]()
            if current is not None and self._config.roll.gate:
                incumbent = self._metrics(current, self._valid_from_ms)
            self._done("evaluate the held-out rows", start, incumbent=incumbent)

    def _metrics(self, model: Model, valid_from_ms: int) -> Metrics:
        """Metrics of a model on all rows of the set from this time on."""
        config = self._with(data={"valid_from": valid_from_ms})
        found = evaluate_on(config, Folder(model.checkpoint), "valid", self.launcher)
        metrics: Metrics = null_nonfinite(found["metrics"])
        return metrics

    @property
    def _valid_from_ms(self) -> int:
        """The first millisecond that is held out."""
        held_out_ms = round(self._config.roll.holdout_h * _HOUR_MS)
        return self._newest.last_time_ms - held_out_ms + 1

    def _train(self) -> None:
        """Train from the current model on all rows since, up to those that are held out."""
        if self._newest.model is not None:
            return
        started = time.monotonic()
        ids_only = self._trains_ids_only()
        start = self._state.current if ids_only else self._state.whole
        config = self._run_config(start, ids_only=ids_only)
        if (rows := self._window_rows(config)) < self._step_rows:
            log.warning(
                "generation %s isn't trained on: its window has %s rows, fewer than one step; the "
                "next generation includes them",
                *(self._newest.number, f"{rows:,}"),
            )
            self._done("train", started, failed=(f"only {rows:,} rows to train on",), published="")
            return
        run_folder = self._folder / run_id(self._newest.number)
        check_run(config, run_folder)
        summary = train_with_restarts(config, run_folder, self.launcher)
        model = Model(
            generation=self._newest.number,
            checkpoint=summary["checkpoint"],
            trained_until_ms=self._valid_from_ms - 1,
        )
        candidate = null_nonfinite(dict(summary["metrics"]))
        self._done("train", started, model=model, candidate=candidate, ids_only=ids_only)

    def _trains_ids_only(self) -> bool:
        """Whether a whole model was trained on this day already."""
        if self._config.roll.update != "ids_within_day" or self._state.whole is None:
            return False
        assert isinstance(self._config.ingest, LogsIngest)
        offset_ms = round(self._config.ingest.utc_offset_h * _HOUR_MS)
        times = {one.number: one.last_time_ms for one in self._state.generations}
        trained, now = times[self._state.whole.generation], self._newest.last_time_ms
        return (trained + offset_ms) // (24 * _HOUR_MS) == (now + offset_ms) // (24 * _HOUR_MS)

    def _run_config(self, start: Model | None, *, ids_only: bool) -> Config:
        """The config of the generation's run."""
        data: dict[str, Any] = {"valid_from": self._valid_from_ms}
        checkpoint: dict[str, Any] = {}
        if start is not None:
            data["window"] = WindowConfig.model_validate(
                {"from": start.trained_until_ms + 1, "to": self._valid_from_ms - 1}
            )
            checkpoint["init_from"] = InitFromConfig(source=start.checkpoint)
        return self._with(
            data=data,
            checkpoint=checkpoint,
            training={"ids_only": ids_only},
            publish={"folder": None},
        )

    def _with(self, **sections: Mapping[str, Any]) -> Config:
        """The config with some keys of its sections changed."""
        update = {
            name: getattr(self._config, name).model_copy(update=dict(keys))
            for name, keys in sections.items()
        }
        return self._config.model_copy(update=update)

    def _window_rows(self, config: Config) -> int:
        """Number of rows that a run with this window would train on."""
        folder = config.data.path
        try:
            divided = divide_at(folder, read_manifest(folder), self._valid_from_ms)
            return select_window(folder, divided, config.data.window).split("train").rows
        except EmptyWindowError:
            return 0

    @property
    def _step_rows(self) -> int:
        return self._config.scaling.num_workers * self._config.data.batch_size

    def _pass_gate(self) -> None:
        """Make the trained model the current one if it meets all conditions."""
        newest = self._newest
        if newest.failed is not None:
            return
        assert newest.model is not None
        start, roll = time.monotonic(), self._config.roll
        candidate, incumbent = metrics_of(newest.candidate), metrics_of(newest.incumbent)
        norm = self._largest_row(newest.model) if roll.max_row_norm is not None else None
        failed = failures(roll, candidate, incumbent, norm)
        update: dict[str, Any] = {}
        if failed:
            log.warning(
                "generation %s fails the gate, the current model stays: %s",
                *(newest.number, "; ".join(failed)),
            )
        else:
            update = {"current": newest.model}
            if not newest.ids_only:
                update["whole"] = newest.model
        self._state = self._state.model_copy(update=update)
        self._done("gate", start, failed=failed)

    def _largest_row(self, model: Model) -> float:
        """The largest L2 norm of an embedding row."""
        folder = Folder(model.checkpoint)
        manifest = read_checkpoint(folder)
        reader = TensorReader(folder, manifest)
        norms = [
            table_facts(reader, manifest, name, lambda num_bytes: None).max_row_norm
            for name in tables_of(manifest)
        ]
        return max(norms, default=math.nan)

    def _publish(self) -> None:
        """Publish the current model if it is new and a folder is set."""
        start, newest, published = time.monotonic(), self._newest, ""
        if not newest.failed and newest.model is not None and self._config.publish.folder:
            passed = [one.model for one in self._state.generations[:-1] if one.failed == ()]
            before = Folder(passed[-1].checkpoint) if passed and passed[-1] else None
            folder = publish_checkpoint(
                self._config.publish, Folder(newest.model.checkpoint), before
            )
            published = folder.name
            log.info("published %s", folder)
        self._done("publish", start, published=published)

    def _prune(self) -> None:
        """Delete the runs that no later generation needs."""
        numbers = [one.number for one in self._state.generations if one.model is not None]
        needed = {one.generation for one in (self._state.current, self._state.whole) if one}
        for number in set(numbers[: -self._config.roll.keep]) - needed:
            place = self._folder / run_id(number)
            if place.is_dir():
                shutil.rmtree(place)
                log.info("deleted run %s (roll.keep is %s)", place, self._config.roll.keep)


def run_id(generation: int) -> str:
    """The run of a generation."""
    return f"generation-{generation:05d}"
