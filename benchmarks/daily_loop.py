"""Progressive AUC and cost of five ways to keep a model current, on logs that change every day.

    .venv/bin/python benchmarks/daily_loop.py [--logs synthetic] [--days 10] [--rows-a-day 20000]
        [--drift 0.2] [--born 0.05] [--files-a-day 4] [--set KEY=VALUE ...]
    .venv/bin/python benchmarks/daily_loop.py --logs kuairand

Synthetic logs, or the KuaiRand slice in $INFNET_SHARED (its rows that repeat a user, video and time
left out, and times that several rows have made distinct), are played day by day. Each day from the
third on is scored by the model that would serve it: one that has seen no row of that day, but for
`ids_within_day`, which is scored on each file of a day before it is updated on it.

    daily           infnet roll: from yesterday's model, on the new day
    ids_within_day  as daily, and the tables alone within the day (--files-a-day files of logs)
    all_days        from scratch each night, on all days so far
    last_3_days     from scratch each night, on the last three days
    never           trained on the first two days, never updated

All train one epoch up to `roll.holdout_h` before the end of a day. The run file is
configs/daily.yaml or configs/kuairand_logs.yaml with a small model, one worker, and no gate. AUC of
click: mean over the days of the AUC of each; also on the rows whose item was first seen on that day
or the day before, and of the true probabilities (optimum) where they are known. Rows and seconds
(of training steps alone) are those of the nights whose models are scored.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infnet_dist import checkpoint
from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config, dump_config, load_config
from infnet_dist.config.window import WindowConfig
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.window.selection import select_window
from infnet_dist.distributed.context import WorkerContext, local_process_group
from infnet_dist.evaluation.metrics import auc
from infnet_dist.ingest.synthetic.changes import days_of
from infnet_dist.ingest.synthetic.daily import write_daily_logs
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.ports import free_ports
from infnet_dist.rolling.state import read_state
from infnet_dist.schema import Schema
from infnet_dist.training.provenance import versions
from infnet_dist.training.setup import TrainingSetup, open_training_set

ROOT = Path(__file__).resolve().parents[1]
SLICE = Path(os.environ.get("INFNET_SHARED", ROOT.parent / "shared")) / "data/kuairand_pure_slice"
BEIJING_MS = 8 * 3_600_000
TASK = "click"
FIRST_SCORED = 2  # days from 0
SMALL = (
    "model={name: stack, token_dim: 16, sequence: {name: mean}, head: {name: linear}}",
    "tables.embedding_dim=16",
    "dense_optimizer.learning_rate=0.003",
    "scaling.num_workers=1",
    "tracking.wandb=disabled",
    "publish.folder=null",
    "roll.gate=[]",
    "roll.keep=1000",
)


class Model(NamedTuple):
    """A model that serves the rows after `after_ms`, until the next one does."""

    after_ms: int
    checkpoint: str
    rows: int
    seconds: float


class Rows(NamedTuple):
    """All rows of the logs, in the order of time; arrays of [n]."""

    times_ms: np.ndarray
    days: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None
    new: np.ndarray  # the item was first seen on the same day or the day before


class Logs(NamedTuple):
    """Logs to play: a file per day, their rows, and the settings that read them."""

    files: Sequence[Path]
    rows: Rows
    run_file: str
    overrides: Sequence[str]


def main() -> None:
    """Play the days, score the models, print a table of the ways and one of the days."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", choices=("synthetic", "kuairand"), default="synthetic")
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rows-a-day", type=int, default=20_000)
    parser.add_argument("--drift", type=float, default=0.2)
    parser.add_argument("--born", type=float, default=0.05)
    parser.add_argument("--files-a-day", type=int, default=4, help="of ids_within_day")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    print(f"command: python benchmarks/daily_loop.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = synthetic_logs if arguments.logs == "synthetic" else kuairand_logs
        logs = make(folder / "logs", arguments)
        rows = logs.rows
        served = play(folder, logs, arguments.files_a_day, arguments.set)
        with local_process_group(
            0, 1, use_gpu=False, port=free_ports(1)[0], timeout_s=60.0
        ) as context:
            scores = {way: score(context, *served[way], rows) for way in served}
    if rows.truth is not None:
        scores["optimum"] = rows.truth
    report(rows, scores, {way: found for way, (_, found) in served.items()})


# ---- logs


def synthetic_logs(folder: Path, arguments: argparse.Namespace) -> Logs:
    """Logs with drift and items that are born daily."""
    world = SyntheticIngest(
        source="synthetic",
        num_rows=arguments.rows_a_day * arguments.days,
        num_users=1_000,
        num_items=1_000,
        num_days=arguments.days,
        drift=arguments.drift,
        items_born_daily=arguments.born,
    )
    files = write_daily_logs(world, folder)
    columns = ["time_ms", "item_id", TASK, f"truth_{TASK}"]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    times, items, labels, truth = (table[name].to_numpy() for name in columns)
    rows = Rows(times, days_of(times), labels, truth, are_new(items, days_of(times)))
    return Logs(files, rows, "daily.yaml", ())


def kuairand_logs(folder: Path, arguments: argparse.Namespace) -> Logs:
    """The slice of KuaiRand-Pure, by days in Beijing; each row has a time of its own."""
    folder.mkdir()
    files = [SLICE / f"interactions_{split}.parquet" for split in ("train", "valid")]
    table = pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()
    table = table.drop_duplicates(["user_id", "video_id", "time_ms"]).sort_values("time_ms")
    table = table.head(arguments.rows_a_day * arguments.days)
    places = np.arange(len(table))  # a row is at least 1 ms later than the one before
    times = np.maximum.accumulate(table["time_ms"].to_numpy() - places) + places
    table["time_ms"] = times
    days = (times + BEIJING_MS) // 86_400_000
    days = np.maximum(days - days[0] - 1, 0)  # the first day has 141 rows: part of the second
    found = []
    for day, rows_of_day in table.groupby(days):
        found.append(folder / f"day-{day:02d}.parquet")
        rows_of_day.to_parquet(found[-1], index=False)
    items, labels = table["video_id"].to_numpy(), table["is_click"].to_numpy()
    overrides = [
        *(f"ingest.joins.{name}.path={SLICE / name}.parquet" for name in ("videos", "users")),
        "ingest.valid_from=null",
        "tables.unknown_id_rate=0.02",
        "roll.holdout_h=2",
    ]
    return Logs(
        found,
        Rows(times, days, labels, None, are_new(items, days)),
        "kuairand_logs.yaml",
        overrides,
    )


def are_new(items: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Whether the item of each row was first seen on the day of the row or the day before."""
    _, first, inverse = np.unique(items, return_index=True, return_inverse=True)
    new: np.ndarray = days - days[first][inverse] <= 1
    return new


# ---- playing


def play(
    folder: Path, logs: Logs, files_a_day: int, overrides: Sequence[str]
) -> dict[str, tuple[Config, list[Model]]]:
    """Train all models; by way, the config of its training set and its models in order."""
    files, overrides = logs.files, [*logs.overrides, *overrides]
    daily = loop(folder / "daily", logs.run_file, overrides)
    all_days, last_3_days = list[Model](), list[Model]()
    for day, file in enumerate(files):
        shutil.copy(file, folder / "daily" / "logs")
        roll(daily)
        if FIRST_SCORED - 1 <= day < len(files) - 1:
            all_days.append(from_scratch(daily, f"all_days-{day + 1}"))
            window = "data.window={last_days: 3}"
            last_3_days.append(from_scratch(daily, f"last_3_days-{day + 1}", window))
        print(f"played day {day + 1}", flush=True)
    within = loop(folder / "within", logs.run_file, [*overrides, "roll.update=ids_within_day"])
    for file in files:
        table = pq.read_table(file)
        size = -(-len(table) // files_a_day)
        for i in range(files_a_day):
            path = folder / "within" / "logs" / f"{file.stem}-{i}.parquet"
            pq.write_table(table.slice(i * size, size), path)
    roll(within)
    print("played all days within days", flush=True)
    return {
        "daily": (daily, rolled(daily)),
        "ids_within_day": (within, rolled(within)),
        "all_days": (daily, all_days),
        "last_3_days": (daily, last_3_days),
        "never": (daily, all_days[:1]),
    }


def loop(folder: Path, run_file: str, overrides: Sequence[str]) -> Config:
    """The run file of a daily loop in a folder of its own."""
    places = {"run.folder": "runs", "data.path": "set", "ingest.path": "logs"}
    ours = [f"{key}={folder / name}" for key, name in places.items()]
    config = load_config(ROOT / "configs" / run_file, [*SMALL, *ours, *overrides])
    (folder / "logs").mkdir(parents=True)
    (folder / "daily.yaml").write_text(dump_config(config))
    return config


def roll(config: Config) -> None:
    """Roll on, a generation for each new file."""
    infnet(config, "roll", "--one-by-one")


def rolled(config: Config) -> list[Model]:
    """The models of a daily loop."""
    state = read_state(config.run.folder / config.run.name)
    return [
        trained(one.last_time_ms, Path(one.model.checkpoint).parents[1])
        for one in state.generations
        if one.model is not None
    ]


def from_scratch(config: Config, name: str, *overrides: str) -> Model:
    """A model of the days so far, or of a window of them, up to what `infnet roll` holds out."""
    ingested = read_manifest(config.data.path).ingested
    assert ingested is not None
    held_out_ms = round(config.roll.holdout_h * 3_600_000)
    ours = ["run.name=scratch", f"data.valid_from={ingested.last_time_ms - held_out_ms + 1}"]
    sets = [word for one in (*ours, *overrides) for word in ("--set", one)]
    infnet(config, "train", "--run-id", name, *sets)
    return trained(ingested.last_time_ms, config.run.folder / "scratch" / name)


def trained(after_ms: int, run: Path) -> Model:
    """The model of a run, which serves the rows after some time."""
    found = json.loads((run / "summary.json").read_text())
    return Model(after_ms, found["checkpoint"], found["examples"], found["train_seconds"])


def infnet(config: Config, verb: str, *arguments: str) -> None:
    """Run a verb of the `infnet` command without Ray."""
    run_file = config.run.folder.parent / "daily.yaml"
    words = ["-m", "ray_jobs", verb, "--config", str(run_file), "--launcher", "local", *arguments]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-6_000:])


# ---- scoring


def score(
    context: WorkerContext, config: Config, models: Sequence[Model], rows: Rows
) -> np.ndarray:
    """The logit of each row by the model that serves it; NaN before the first scored day."""
    logits = np.full(len(rows.times_ms), np.nan)
    ends = [model.after_ms for model in models[1:]] + [int(rows.times_ms[-1])]
    for model, end_ms in zip(models, ends, strict=True):
        here = (rows.times_ms > model.after_ms) & (rows.times_ms <= end_ms)
        here &= rows.days >= FIRST_SCORED
        if here.any():
            times = rows.times_ms[here]
            found, labels = predict(context, config, model, int(times[0]), int(times[-1]))
            assert (labels == rows.labels[here]).all(), "these rows, in the order of time"
            logits[here] = found
    return logits


def predict(
    context: WorkerContext, config: Config, model: Model, first_ms: int, last_ms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the rows from one time to another, in the order of time."""
    folder = Folder(model.checkpoint)
    its_schema = checkpoint.read_schema(folder, checkpoint.read_manifest(folder))
    window = WindowConfig.model_validate({"from": first_ms, "to": last_ms})

    def open_rows(config: Config) -> tuple[Manifest, Schema]:
        manifest, schema = open_training_set(config, its_schema)
        return select_window(config.data.path, manifest, window), schema

    setup = TrainingSetup.open(
        config, context, splits=["train"], open_set=open_rows, for_training=False
    )
    checkpoint.load(folder, setup.sharded, context, with_optimizer=False)
    task = [one.name for one in setup.schema.tasks].index(TASK)
    logits, labels = [], []
    setup.sharded.model.eval()
    with torch.no_grad(), setup.sharded.serving_weights():
        for batch in setup.reader("train", shuffle=False).batches():
            _, output = setup.sharded.model(batch)
            logits.append(output.logits_BK[: batch.num_rows, task])
            labels.append(batch.labels_BK[: batch.num_rows, task])
    files = [config.data.path / part.file for part in setup.manifest.split("train").parts]
    times = np.concatenate([pq.read_table(file)["time_ms"].to_numpy() for file in files])
    order = times[(times >= first_ms) & (times <= last_ms)].argsort()
    return torch.cat(logits).numpy()[order], torch.cat(labels).numpy()[order]


# ---- reporting


def report(rows: Rows, scores: dict[str, np.ndarray], served: dict[str, list[Model]]) -> None:
    """Print a table of the ways, and the AUC of each day."""
    days = range(FIRST_SCORED, int(rows.days[-1]) + 1)
    by_day = {
        way: np.array([_auc(rows, found, day) for day in days]) for way, found in scores.items()
    }
    of_new = {
        way: np.array([_auc(rows, found, day, rows.new) for day in days])
        for way, found in scores.items()
    }
    scored = rows.days >= FIRST_SCORED
    print(f"{scored.sum():,} rows scored, {rows.new[scored].mean():.1%} of them of new items")
    # Trained at the end of the days FIRST_SCORED - 1 (from 0) to the last but one, or within them.
    ends = [int(rows.times_ms[rows.days == day][-1]) for day in (FIRST_SCORED - 2, days[-1] - 1)]
    print(
        "| way | trainings | rows trained | seconds | AUC | to daily | AUC, new items | to daily |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way, found in by_day.items():
        models = [m for m in served.get(way, []) if ends[0] < m.after_ms <= ends[1]]
        seconds = sum(model.seconds for model in models)
        cost = f"{len(models)} | {sum(model.rows for model in models):,} | {seconds:.1f}"
        change = _change(found, by_day["daily"])
        new = f"{of_new[way].mean():.4f} | {_change(of_new[way], of_new['daily'])}"
        print(f"| {way} | {cost if models else ' |  | '} | {found.mean():.4f} | {change} | {new} |")
    print(f"\n| AUC of day | {' | '.join(str(day + 1) for day in days)} |")
    print(f"|{'---|' * (len(days) + 1)}")
    for way, found in by_day.items():
        print(f"| {way} | {' | '.join(f'{value:.4f}' for value in found)} |")


def _auc(rows: Rows, scores: np.ndarray, day: int, chosen: np.ndarray | None = None) -> float:
    here = rows.days == day
    here = here if chosen is None else here & chosen
    return auc(scores[here], rows.labels[here])


def _change(found: np.ndarray, reference: np.ndarray) -> str:
    """Mean difference over the days, with its standard error."""
    change = found - reference
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else math.nan
    return f"{change.mean():+.4f} +- {error:.4f}" if change.any() else ""


if __name__ == "__main__":
    main()
