"""Trackers of metrics: metrics.jsonl always, W&B optionally. A failing tracker never stops a run.

The same names everywhere: `split/metric/task`, `perf/samples_per_s`, against step and examples.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from infnet_dist.config.run import TrackingConfig
from infnet_dist.io.json_files import nan_for_null, null_nonfinite
from infnet_dist.tracking.wandb_run import WandbRun

METRICS = "metrics.jsonl"
log = logging.getLogger("infnet_dist")

Metrics = dict[str, float]
T = TypeVar("T")


class Tracker(Protocol):
    """Receives metrics; `finish` returns the place where they can be viewed, if there is one."""

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Record metrics of a step."""

    def finish(self) -> str | None:
        """Flush and close."""


class NullTracker:
    """Tracks nothing: for all ranks but the first."""

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Do nothing."""

    def finish(self) -> str | None:
        """Nothing to close."""
        return None


class JsonlTracker:
    """One JSON object per call, flushed at once: the source of truth. NaN becomes null.

    Lines that a full disk refuses are kept in memory, and written as soon as there is space.
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Write a line."""
        line = json.dumps(null_nonfinite({"step": step, "examples": examples, **metrics})) + "\n"
        kept = bool(self._unwritten)
        self._unwritten += line.encode()
        try:
            self._write()
        except OSError as error:
            if not kept:
                log.warning("can't write %s (%s); its lines are kept", self._file.name, error)

    def finish(self) -> str | None:
        """Write the remaining lines and close the file.

        Raises:
            OSError: the disk is still full.
        """
        with self._file:
            self._write()
        return self._file.name

    def _write(self) -> None:
        """Write the unwritten lines; all or nothing."""
        size = os.fstat(self._file.fileno()).st_size
        left = self._unwritten
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(size)
            raise
        self._unwritten = b""


class FailSafeTracker:
    """Wraps a tracker that may fail: the first failure is a warning, later calls do nothing."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker = NullTracker()
        self._tracker = self._try(make) or self._tracker

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Log if the tracker still works."""
        self._try(lambda: self._tracker.log(metrics, step=step, examples=examples))

    def finish(self) -> str | None:
        """Finish if the tracker still works."""
        return self._try(self._tracker.finish)

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:
            log.warning("%s failed and is disabled for the rest of the run (%s)", self._name, error)
            self._tracker = NullTracker()
            return None


class CompositeTracker:
    """Several trackers as one; `finish` returns the place of the last one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Log to all."""
        for tracker in self._trackers:
            tracker.log(metrics, step=step, examples=examples)

    def finish(self) -> str | None:
        """Finish all."""
        return [tracker.finish() for tracker in self._trackers][-1]


def make_tracker(
    config: TrackingConfig, *, folder: Path, run_id: str, settings: dict[str, Any]
) -> Tracker:
    """The tracker of rank 0: metrics.jsonl in `folder`, and W&B unless disabled.

    W&B receives the metrics of earlier attempts from metrics.jsonl, so that it has each step once.
    """
    before = read_metrics(folder / METRICS)
    jsonl = FailSafeTracker("metrics.jsonl", lambda: JsonlTracker(folder / METRICS))
    if config.wandb == "disabled":
        return CompositeTracker(jsonl, NullTracker())

    def make_wandb() -> Tracker:
        return WandbRun(config, folder=folder, run_id=run_id, settings=settings, before=before)

    return CompositeTracker(jsonl, FailSafeTracker("W&B", make_wandb))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, NaN for null, without a half line after a kill.

    Lines that aren't a record of a step are skipped.
    """
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {"step", "examples"} <= record.keys():
                found.append(nan_for_null(record))
    return found


def send_report(
    config: TrackingConfig,
    *,
    folder: Path,
    run_id: str,
    settings: dict[str, Any],
    scores: Metrics,
    pictures: Sequence[Path] = (),
    pages: Sequence[Path] = (),
) -> str | None:
    """Send scores, pictures and HTML pages to W&B as one run; a failure only warns.

    Returns:
        The place of the run, if there is one.
    """
    if config.wandb == "disabled":
        return None

    def send() -> str | None:
        import wandb

        tracker = WandbRun(config, folder=folder, run_id=run_id, settings=settings)
        images = {f"report/{path.stem}": wandb.Image(str(path)) for path in pictures}
        html = {f"report/{path.stem}": wandb.Html(path.read_text()) for path in pages}
        tracker.log({**scores, **images, **html}, step=0, examples=0)
        return tracker.finish()

    try:
        return send()
    except Exception as error:
        log.warning("W&B failed; the report is stored in %s (%s)", folder, error)
        return None


def plot_curves(metrics_jsonl: Path, image: Path) -> None:
    """Draw every metric that has two or more points against examples, one panel per kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[str, dict[str, dict[int, float]]] = {}
    for record in read_metrics(metrics_jsonl):
        for key, value in record.items():
            if "/" in key and not math.isnan(value):
                split, metric, *rest = key.split("/")
                curve = curves.setdefault(f"{split}/{metric}", {}).setdefault("/".join(rest), {})
                curve[record["examples"]] = value  # the last record of a step counts
    columns = 3
    rows = max(1, math.ceil(len(curves) / columns))
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (title, lines) in zip(axes.flat, sorted(curves.items()), strict=False):
        for label, points in lines.items():
            marker = "." if len(points) < 30 else ""
            examples = sorted(points)
            axis.plot(examples, [points[e] for e in examples], marker=marker, label=label)
        axis.set_title(title)
        axis.set_xlabel("examples")
        if any(lines):
            axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(image, dpi=100)
    pyplot.close(figure)
