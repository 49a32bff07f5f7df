"""The data report: one HTML page about a training set, for review before training."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from infnet_dist.data.manifest import Ingested, Manifest, Statistics
from infnet_dist.io.html import heading, page, paragraph, picture, table
from infnet_dist.schema import Task

REPORT = "report.html"
_ROWS_READ = 2_000_000  # sampled for label means over time
_HOUR_MS = 3_600_000
_BARS = 40  # maximum number of features in a plot, by length of the bar


def write_report(folder: Path, manifest: Manifest) -> Path:
    """Write `report.html` to the training set; returns its path.

    Contains sizes and label means of the splits, label means over time, lengths, coverage, skew and
    drift of the features, tables, and quarantined rows.
    """
    parts = [
        paragraph(f"Made by infnet_dist {manifest.code_version}; content {manifest.content_hash}."),
        heading("Splits"),
        _splits(manifest),
    ]
    if manifest.source.get("source") != "petastorm":  # times may have any type, or be absent
        labels = picture(_draw_labels(folder, manifest), "label means over time")
        parts += [heading("Labels over time"), labels]
    if manifest.statistics is not None:
        parts += _features(manifest, manifest.statistics)
    if manifest.ingested is not None:
        parts += _ingested(manifest.ingested)
    if manifest.files_left_out:
        left_out = table(("file", "reason"), manifest.files_left_out.items())
        parts += [heading("Files left out"), left_out]
    path = folder / REPORT
    path.write_text(page(f"Training set {folder.name}", *parts))
    return path


def _splits(manifest: Manifest) -> str:
    tasks = [task.name for task in manifest.schema_.tasks]
    head = ("split", "rows", "parts", "from (UTC)", "to (UTC)", *(f"mean {t}" for t in tasks))
    rows = []
    for name, split in manifest.splits.items():
        times = (_moment(t) for t in split.time_range_ms)
        means = (f"{split.base_rates[task]:.4g}" for task in tasks)
        rows.append((name, f"{split.rows:,}", f"{len(split.parts):,}", *times, *means))
    return table(head, rows)


def _moment(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _draw_labels(folder: Path, manifest: Manifest) -> Figure:
    """Rows and means of known labels, per hour or day."""
    tasks = manifest.schema_.tasks
    found = {split: _read_labels(folder, manifest, split) for split in manifest.splits}
    times = np.concatenate([rows["time"] for rows in found.values()])
    step_ms = _HOUR_MS if np.ptp(times) < 4 * 24 * _HOUR_MS else 24 * _HOUR_MS
    figure = Figure(figsize=(11, 2.2 * (len(tasks) + 1)), layout="constrained")
    axes = figure.subplots(len(tasks) + 1, 1, sharex=True)
    for split, rows in found.items():
        bins, place, counts = np.unique(
            rows["time"] // step_ms, return_inverse=True, return_counts=True
        )
        moments = [datetime.fromtimestamp(b * step_ms / 1000, UTC) for b in bins.tolist()]
        scale = manifest.splits[split].rows / len(rows["time"])
        axes[0].plot(moments, counts * scale, ".-", label=split)
        for axis, task in zip(axes[1:], tasks, strict=True):
            axis.plot(moments, _means(rows[task.name], place, len(bins)), ".-", label=split)
            axis.set_ylabel(task.name)
    axes[0].set_ylabel(f"rows per {'hour' if step_ms == _HOUR_MS else 'day'}")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    return figure


def _means(labels: npt.NDArray, place: npt.NDArray, bins: int) -> npt.NDArray:
    known = ~np.isnan(labels)
    sums = np.bincount(place[known], labels[known], bins)
    counts = np.bincount(place[known], minlength=bins)
    return np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)


def _read_labels(folder: Path, manifest: Manifest, split: str) -> dict[str, npt.NDArray]:
    """Times and labels of row groups spread evenly over the split; NaN for unknown labels."""
    tasks: Sequence[Task] = manifest.schema_.tasks
    time = manifest.schema_.time_column
    groups = [
        (part.file, group, rows)
        for part in manifest.splits[split].parts
        for group, rows in enumerate(part.row_groups)
        if rows
    ]
    total = sum(rows for *_, rows in groups)
    every = max(total // _ROWS_READ, 1)
    tables = []
    for file, group, _ in groups[::every]:
        with pq.ParquetFile(folder / file) as parquet:
            tables.append(parquet.read_row_group(group, [time, *(t.column for t in tasks)]))
    rows = pa.concat_tables(tables)
    labels = {t.name: rows[t.column].cast(pa.float64()).to_numpy() for t in tasks}
    return {"time": rows[time].to_numpy(), **labels}


def _features(manifest: Manifest, statistics: Statistics) -> list[str]:
    train = statistics.splits["train"].features
    table_of = {feature.key: feature.table for feature in manifest.schema_.table_features}
    sizes = {t.name: t.num_embeddings for t in manifest.schema_.tables}
    head = (
        *("feature", "table", "rows of it", "mean length", "p99 length", "known", "distinct"),
        *("top id's share", "known in valid", "drift"),
    )
    valid = statistics.splits["valid"].features if "valid" in statistics.splits else {}
    rows = [
        (
            key,
            table_of[key],
            f"{sizes[table_of[key]]:,}",
            f"{feature.mean_length:.3g}",
            f"{feature.p99_length:.3g}",
            f"{feature.coverage:.1%}",
            f"{feature.distinct:,}",
            f"{feature.top_share:.1%}",
            f"{valid[key].coverage:.1%}" if key in valid else "",
            f"{statistics.drift[key]:.3f}" if key in statistics.drift else "",
        )
        for key, feature in train.items()
    ]
    sampled = statistics.splits["train"].rows
    vectors = [
        (name, *(f"{split.vectors.get(name, 0.0):.1%}" for split in statistics.splits.values()))
        for name in statistics.splits["train"].vectors
    ]
    return [
        heading("Features"),
        paragraph(
            f"From a sample of {sampled:,} rows of train. Known: ids other than 0, which means "
            "null, rare, or missing before valid. Drift: total variation distance between train "
            "and valid of the shares of the 50 most frequent ids, of unknown ids and of all others."
        ),
        table(head, rows),
        *(
            [
                heading("Vectors"),
                paragraph("Share of the rows that have one."),
                table(("vector", *statistics.splits), vectors),
            ]
            if vectors
            else []
        ),
        heading("Lengths, coverage, skew, drift"),
        picture(_draw_features(statistics), "lengths, coverage, skew and drift by feature"),
    ]


def _draw_features(statistics: Statistics) -> Figure:
    train = statistics.splits["train"].features
    values: dict[str, Mapping[str, float]] = {
        "mean length": {key: f.mean_length for key, f in train.items() if f.p99_length > 1},
        "share of unknown ids": {key: 1 - f.coverage for key, f in train.items()},
        "share of the top id": {key: f.top_share for key, f in train.items()},
        "drift from train to valid": statistics.drift,
    }
    shown = {title: bars for title, bars in values.items() if bars}
    most = max(min(len(bars), _BARS) for bars in shown.values())
    figure = Figure(figsize=(13, 1.2 + 0.2 * most * ((len(shown) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).flat
    for axis, (title, bars) in zip(axes, shown.items(), strict=False):
        longest = sorted(bars.items(), key=lambda bar: bar[1])[-_BARS:]
        axis.barh([key for key, _ in longest], [value for _, value in longest])
        axis.tick_params(axis="y", labelsize="x-small")
        axis.set_title(title)
    for axis in list(figure.axes)[len(shown) :]:
        axis.set_visible(False)
    return figure


def _ingested(ingested: Ingested) -> list[str]:
    parts = [
        heading("Logs"),
        paragraph(
            f"{len(ingested.files):,} files in {ingested.generation} ingests, up to "
            f"{_moment(ingested.last_time_ms)} UTC."
        ),
    ]
    left_out = [(name, f"{rows:,}") for name, rows in ingested.left_out.items() if rows]
    bad = [(why, f"{rows:,}") for why, rows in ingested.quarantined.items()]
    hashed = [
        (name, f"{t.values:,}", f"{t.sharing:.2%}", f"{t.indistinct:.2%}", f"{t.unseen:.1%}")
        for name, t in ingested.hashed.items()
    ]
    if bad:
        parts += [heading("Quarantined rows"), table(("reason", "rows"), bad)]
    if ingested.unreadable:
        parts += [
            heading("Unreadable files"),
            table(("file", "reason"), ingested.unreadable.items()),
        ]
    if left_out:
        parts += [heading("Rows left out"), table(("why", "rows"), left_out)]
    if hashed:
        head = ("table", "values (estimate)", "share a row", "share all rows", "missing in train")
        parts += [heading("Hashed tables"), table(head, hashed)]
    return parts
