"""Training speed and AUC of three common models here, in FuxiCTR, DeepCTR-Torch and torch-rechub.

    make .peers/installed
    .venv/bin/python benchmarks/peers.py [--config FILE] [--set KEY=VALUE] [--root FOLDER]
        [--peers-python .peers/bin/python] [--rows N] [--batch-size 256] [--repeats 3]
        [--models dcnv2 din mmoe] [--systems ours fuxictr deepctr rechub] [--attributes N]

The training set is that of the config (synthetic logs by default); only its `ingest` and
`data.path` matter. All systems get the same features of it: the categorical and bucketised fields,
and for DIN the first behaviour, with those attributes of its items that the candidate has as well.
Numbers without buckets and time gaps are left out. DCNv2 and DIN learn the first binary task, MMoE
learns all of them. Each system trains one epoch in equal batches on one thread, in a separate
process, with its own loop: the peers from memory, ours from Parquet. Sizes are in
peer_runners/common.py; there is no dropout, batch norm or weight decay, and initial weights are
each system's own.

Rows per CPU-second of the process are compared (reader threads included). Ratios are taken within
a repeat, in which all systems run in turn, and their median is printed.

Where the systems differ:

* Ours trains the tables with row-wise Adagrad at its default rate, and the rest with AdamW at 1e-3;
  the peers train everything with Adam at 1e-3, whose step touches every row of every table.
* Ours maps each field's embedding by a separate matrix, then normalises it (LayerNorm).
* DCNv2: the peers' cross matrices are full (d x d), ours are products (d x d/2 and d/2 x d): equal
  multiply-adds.
* DIN: ours maps the attributes of an item to one token of width 16 and adds its position; FuxiCTR
  and DeepCTR-Torch attend with all attributes side by side, torch-rechub with each by itself.
  `--attributes 1` makes the widths equal.
* FuxiCTR's package has no models: they are assembled from its layers, as in its model zoo.
* With `--rows N` the peers train on the first N rows, ours on N of all rows in shuffled order: then
  compare the speed alone.
* torch-rechub's batch norm and Dice, which can't be switched off, are removed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from peer_runners.common import Data, Rows, save

from infnet_dist.config.run import load_config
from infnet_dist.data.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from infnet_dist.features.numbers import bucketise
from infnet_dist.io.paths import ROOT_VARIABLE, resolve_path
from infnet_dist.schema import Schema, SequenceFeature
from infnet_dist.training.provenance import versions

REPOSITORY = Path(__file__).resolve().parents[1]
RUNNERS = REPOSITORY / "benchmarks" / "peer_runners"

MODELS = ("dcnv2", "din", "mmoe")
SYSTEMS = ("ours", "fuxictr", "deepctr", "rechub")
OURS, *PEERS = SYSTEMS

Results = dict[tuple[str, str], list[dict[str, Any]]]  # by model and system, one for each repeat


def main() -> None:
    """Make the training set and each model's view of it, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/smoke.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--root", type=Path, help="used as INFNET_ROOT, with its training set")
    parser.add_argument("--peers-python", type=Path, default=Path(".peers/bin/python"))
    parser.add_argument("--rows", type=int, help="train on so many rows (default: all)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--attributes", type=int, help="item attributes in DIN (default: all)")
    arguments = parser.parse_args()
    peers = [system for system in arguments.systems if system != OURS]
    if peers and not arguments.peers_python.exists():
        parser.error(
            f"no {arguments.peers_python}; make it: make .peers/installed, or give --systems {OURS}"
        )
    python = {peer: str(arguments.peers_python.absolute()) for peer in PEERS}
    python[OURS] = sys.executable
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    if peers:
        print("versions of the peers:", json.dumps(versions_of_peers(python[peers[0]])))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = training_set(arguments, arguments.root or Path(temporary, "root"))
        for model in arguments.models:
            make_view(folder, Path(temporary, model), model, arguments)
        results: Results = {(m, s): [] for m in arguments.models for s in arguments.systems}
        for repeat in range(arguments.repeats):
            for model, system in results:
                command = [python[system], str(RUNNERS / f"{system}_runner.py")]
                command += ["--data", str(Path(temporary, model)), "--model", model]
                command += ["--seed", str(repeat), "--batch-size", str(arguments.batch_size)]
                command += ["--rows", str(arguments.rows)] if arguments.rows else []
                result = json.loads(run(command).splitlines()[-1])
                results[model, system].append(result)
                speed = f"{result['rows_per_cpu_s']:,.0f} rows per CPU-second"
                print(f"repeat {repeat}: {model}, {system}: {speed}", flush=True)
    print_table(results)


def run(command: Sequence[str], **environ: str) -> str:
    """What a process prints, on one thread; its errors go to ours if it fails."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | environ
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nfailed: {' '.join(command)}")
    return done.stdout


def versions_of_peers(python: str) -> dict[str, str]:
    """Versions of Python and of the packages that requirements.txt names."""
    lines = (RUNNERS / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if "==" in line]
    program = (
        "import json, platform, sys\n"
        "from importlib.metadata import version\n"
        "found = {name: version(name) for name in sys.argv[1:]}\n"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    found: dict[str, str] = json.loads(run([python, "-c", program, *names]))
    return found


def training_set(arguments: argparse.Namespace, root: Path) -> Path:
    """The folder of the config's training set, made unless it is there."""
    os.environ[ROOT_VARIABLE] = str(root.absolute())
    folder = resolve_path(load_config(arguments.config, arguments.overrides).data.path)
    if not (folder / MANIFEST).exists():
        command = [sys.executable, "-m", "ray_jobs.ingest", "--config", arguments.config]
        for override in arguments.overrides:
            command += ["--set", override]
        run(command)
    return folder


def make_view(folder: Path, view: Path, model: str, arguments: argparse.Namespace) -> None:
    """The training set with what `model` reads alone: for us a manifest, for the peers arrays."""
    manifest = read_manifest(folder)
    schema = schema_of(model, manifest.schema_, arguments.attributes)
    view.mkdir()
    for split in manifest.splits:
        (view / split).symlink_to(folder / split)
    write_manifest(view, manifest.model_copy(update={"schema_": schema}))
    save(view, arrays_of(folder, manifest, schema, arguments.rows))


def schema_of(model: str, schema: Schema, num_attributes: int | None) -> Schema:
    """Fields, the behaviour if the model reads one, and tasks."""
    if model == "din" and not schema.sequences:
        sys.exit("the training set has no behaviour for DIN; give --models dcnv2 mmoe")
    behaviour = shared_part(schema, schema.sequences[0], num_attributes) if model == "din" else None
    features = [field.key for field in schema.fields] + ([behaviour.name] if behaviour else [])
    tasks = [task.name for task in schema.tasks if task.kind == "binary"]
    sequences = {"sequences": (behaviour,) if behaviour else ()}
    return schema.model_copy(update=sequences).select(
        features, tasks if model == "mmoe" else tasks[:1]
    )


def shared_part(
    schema: Schema, sequence: SequenceFeature, num_attributes: int | None
) -> SequenceFeature:
    """The attributes that the candidate has as well, in its order; no time gaps."""
    pairs = zip(schema.target_fields(sequence), sequence.attributes, strict=True)
    shared = sorted((i, attribute) for i, attribute in pairs if i is not None)
    kept = tuple(attribute for _, attribute in shared[:num_attributes])
    return sequence.model_copy(update={"attributes": kept, "time_gap_column": None})


def arrays_of(folder: Path, manifest: Manifest, schema: Schema, rows: int | None) -> Data:
    """What a view holds, as arrays; the first `rows` rows of train. Id 0 becomes 1, and so on."""
    splits = []
    for split, limit in (("train", rows), ("valid", None)):
        files = [folder / part.file for part in manifest.split(split).parts]
        tables = [pq.read_table(file, columns=list(schema.columns)) for file in files]
        splits.append(rows_of(pa.concat_tables(tables).slice(0, limit), schema))
    return Data(
        *splits,
        sizes_F=[schema.table(field.table).num_embeddings + 1 for field in schema.fields],
        targets_A=[i for s in schema.sequences for i in schema.target_fields(s) if i is not None],
    )


def rows_of(table: pa.Table, schema: Schema) -> Rows:
    """The arrays of one split."""
    columns = {name: table[name].combine_chunks() for name in schema.columns}
    for task in schema.tasks:
        if columns[task.column].null_count:
            sys.exit(f"labels of task {task.name!r} are unknown in some rows: the peers need all")
    fields = [columns[f.column].to_numpy() for f in schema.categorical]
    fields += [
        bucketise(columns[f.column].to_numpy(zero_copy_only=False), f.boundaries)
        for f in schema.bucketised
    ]
    histories = [
        padded(columns[attribute.column], sequence.max_length)
        for sequence in schema.sequences
        for attribute in sequence.attributes
    ]
    return Rows(
        fields_NF=np.stack(fields, axis=1) + 1,
        history_NAL=np.stack(histories, axis=1) if histories else np.zeros((len(table), 0, 0), int),
        lengths_N=(histories[0] > 0).sum(1) if histories else np.zeros(len(table), int),
        labels_NK=np.stack([columns[t.column].to_numpy() for t in schema.tasks], 1).astype(int),
    )


def padded(lists: pa.ListArray, length: int) -> npt.NDArray[np.int64]:
    """[N, length]: the first items of each list, ids from 1 on, 0 where there is none."""
    lengths = np.diff(lists.offsets.to_numpy())
    row = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = place < length
    ids_NL = np.zeros((len(lists), length), np.int64)
    ids_NL[row[kept], place[kept]] = lists.flatten().to_numpy()[kept] + 1
    return ids_NL


def print_table(results: Results) -> None:
    """Medians and ratios as Markdown."""
    print("\n| model | system | rows per CPU-s | rows per s | ours / it | dense parameters | AUC |")
    print("|---|---|---|---|---|---|---|")
    for model in dict.fromkeys(model for model, _ in results):
        of_model = {s: found for (m, s), found in results.items() if m == model}
        speeds = {s: [r["rows_per_cpu_s"] for r in found] for s, found in of_model.items()}
        ours = speeds.get(OURS)
        for system, found in of_model.items():
            wall = statistics.median(r["rows_per_wall_s"] for r in found)
            ratio = f"{median_ratio(ours, speeds[system]):.2f}" if ours else ""
            aucs = zip(*(r["aucs"] for r in found), strict=True)
            print(
                f"| {model} | {system} | {statistics.median(speeds[system]):,.0f} | {wall:,.0f} "
                f"| {ratio} | {found[0]['parameters']:,} "
                f"| {', '.join(f'{statistics.mean(auc):.4f}' for auc in aucs)} |"
            )
        peers = [speed for system, speed in speeds.items() if system != OURS]
        if ours and peers:
            best = [max(at_once) for at_once in zip(*peers, strict=True)]
            print(f"| {model} | best peer | | | {median_ratio(ours, best):.2f} | | |")


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios within each repeat."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
