"""Where metrics go: the console and metrics.jsonl always, W&B beside them. Never stops a run.

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
    """Takes metrics; `finish` returns where they can be looked at, if anywhere."""

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

    Lines for which the disk has no room are kept, and written as soon as it has.
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
        """Write what is left and close the file.

        Raises:
            OSError: there is still no room.
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
    """A tracker that may fail: it is warned about once, then left alone."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        """Make the tracker, which may fail already."""
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
            log.warning("%s failed and is left alone from here on (%s)", self._name, error)
            self._tracker = NullTracker()
            return None


class CompositeTracker:
    """Several trackers as one; `finish` returns the last place given."""

    def __init__(self, *trackers: Tracker) -> None:
        """Log to all of them, in order."""
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

    W&B is given what metrics.jsonl holds of earlier attempts, so that it has each step once too.
    """
    before = read_metrics(folder / METRICS)
    jsonl = FailSafeTracker("metrics.jsonl", lambda: JsonlTracker(folder / METRICS))
    if config.wandb == "disabled":
        return CompositeTracker(jsonl, NullTracker())

    def make_wandb() -> Tracker:
        return WandbRun(config, folder=folder, run_id=run_id, settings=settings, before=before)

    return CompositeTracker(jsonl, FailSafeTracker("W&B", make_wandb))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, null as NaN; without the half line that a kill may leave.

    Lines that are no record of a step are left out.
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
    """Send scores, pictures and HTML pages to W&B as one run; its place. A failure only warns."""
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
        log.warning("W&B failed; the report stands in %s (%s)", folder, error)
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
                curve[record["examples"]] = value  # a resumed run's later word counts
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
