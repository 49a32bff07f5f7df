"""Where metrics go: the console and metrics.jsonl always, W&B beside them. Never stops a run.

The same names everywhere: `split/metric/task`, `perf/samples_per_s`, against step and examples.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from infnet_dist.config import TrackingConfig

_WANDB_WAIT_S = 30.0  # for its server, at the start and at the end of a run
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
        values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, "examples": examples, **values}) + "\n"
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


class WandbTracker:
    """A W&B run, online or offline."""

    def __init__(
        self, config: TrackingConfig, *, folder: Path, run_id: str, settings: dict[str, Any]
    ) -> None:
        """Start a run, or go on with the one of this id; W&B itself takes no step twice.

        Args:
            config: where to.
            folder: of the offline files.
            run_id: the same in each attempt of a run.
            settings: the resolved config, shown with the run.
        """
        import wandb  # here: importing it takes seconds that only rank 0 should spend

        def start(mode: Literal["online", "offline", "disabled"]) -> Any:
            return wandb.init(
                project=config.project,
                id=run_id,
                name=run_id,
                dir=str(folder),
                mode=mode,
                config=settings,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(
                    init_timeout=_WANDB_WAIT_S,
                    finish_timeout=_WANDB_WAIT_S,
                    finish_timeout_raises=True,
                    x_transaction_log_flush_interval=1.0,  # a killed run loses a second, not 15
                    console="off",
                    silent=True,
                ),
            )

        mode = wandb_mode(config.wandb)
        try:
            self._run = start(mode)
        except Exception as error:
            if mode != "online":
                raise
            reason = " ".join(str(error).split())
            log.warning("W&B can't be reached (%s); going on offline: `wandb sync` later", reason)
            wandb.teardown(exit_code=1)  # or the offline run is taken for the one that failed
            self._run = start("offline")

    def log(self, metrics: Metrics, *, step: int, examples: int) -> None:
        """Log against `step`."""
        self._run.log({**metrics, "examples": examples}, step=step)

    def finish(self) -> str | None:
        """Close the run; its URL, or its folder if it is offline or W&B doesn't answer in time."""
        folder = str(Path(self._run.dir).parent)
        place = folder if self._run.offline else self._run.url
        try:
            self._run.finish()
        except TimeoutError as error:
            log.warning("W&B doesn't answer (%s); later: `wandb sync %s`", error, folder)
            return folder
        return place


class Guarded:
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


class Trackers:
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


def wandb_mode(wanted: str) -> Literal["online", "offline", "disabled"]:
    """W&B's mode: `auto` is online with an API key, otherwise offline, without asking."""
    for mode in ("online", "offline", "disabled"):
        if mode == (os.environ.get("WANDB_MODE") if wanted == "auto" else wanted):
            return mode
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    )
    return "online" if has_key else "offline"


def make_tracker(
    config: TrackingConfig, *, folder: Path, run_id: str, settings: dict[str, Any]
) -> Tracker:
    """The tracker of rank 0: metrics.jsonl in `folder`, and W&B unless disabled."""
    jsonl = Guarded("metrics.jsonl", lambda: JsonlTracker(folder / "metrics.jsonl"))
    if config.wandb == "disabled":
        return Trackers(jsonl, NullTracker())

    def make_wandb() -> Tracker:
        return WandbTracker(config, folder=folder, run_id=run_id, settings=settings)

    return Trackers(jsonl, Guarded("W&B", make_wandb))


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

        tracker = WandbTracker(config, folder=folder, run_id=run_id, settings=settings)
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
    for line in metrics_jsonl.read_text().splitlines():
        record = json.loads(line)
        for key, value in record.items():
            if "/" in key and value is not None:
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
