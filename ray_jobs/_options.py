"""Options of the verbs, with the standard library alone: --help and completion are quick."""

import argparse
import re
from pathlib import Path

from infnet_dist.io.command_line import positive

REPOSITORY = Path(__file__).resolve().parents[1]


def run_id(text: str) -> str:
    """Type of --run-id: a plain folder name, as `run.name`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return text


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config and --set."""
    parser.add_argument("--config", type=Path, required=True, help="run file, e.g. configs/x.yaml")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the run file, e.g. --set training.epochs=2; repeatable",
    )


def add_launcher(parser: argparse.ArgumentParser, *, default: str = "ray") -> None:
    """Add --launcher."""
    parser.add_argument(
        "--launcher",
        choices=("ray", "local"),
        default=default,
        help="ray: Ray Train on the cluster of $RAY_ADDRESS or a new one; local: plain processes "
        f"on this machine, without Ray (default: {default})",
    )


def ingest_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet ingest`."""
    add_config(parser)
    add_launcher(parser)


def train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet train`."""
    add_config(parser)
    add_launcher(parser)
    parser.add_argument(
        "--run-id", type=run_id, help="name of the run's folder (default: the time, UTC)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the plan and what checkpoint.init_from would take, but train and write nothing",
    )


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet evaluate`."""
    add_config(parser)
    add_launcher(parser)
    parser.add_argument("--split", default="valid", help="split to evaluate (default: valid)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", type=run_id, help="a run's folder name (default: the newest)")
    where.add_argument("--checkpoint", help="a checkpoint folder or URL")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON to write (default: evaluation-SPLIT-STEP.json in the run's folder)",
    )


def predict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet predict`."""
    add_config(parser)
    add_launcher(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", metavar="PATH", help="file, folder or URL of prepared rows")
    what.add_argument("--split", metavar="NAME", help="split of the training set")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", type=run_id, help="a run's folder name (default: the newest)")
    where.add_argument("--checkpoint", help="a checkpoint folder or URL")
    parser.add_argument(
        "--output", metavar="FOLDER", required=True, help="folder or URL of the prediction"
    )
    parser.add_argument(
        "--keys",
        metavar="COLUMN",
        nargs="+",
        default=[],
        help="columns of the input to copy to the output; NAME=COLUMN renames one",
    )
    parser.add_argument("--tasks", metavar="TASK", nargs="+", help="tasks to score (default: all)")
    parser.add_argument("--logits", action="store_true", help="also write the logit of each task")
    parser.add_argument(
        "--rows-per-part",
        type=positive,
        metavar="N",
        help="write parts of at least N rows, and whole row groups of the input (default: by its "
        "size, at most 1,000,000)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another prediction in the folder"
    )


def export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet export`."""
    add_config(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", type=run_id, help="a run's folder name (default: the newest)")
    where.add_argument("--checkpoint", help="a checkpoint folder or URL")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle, a new one")
    parser.add_argument(
        "--tables",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="data type of the rows; int8 has a scale per row (default: fp32)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="then compare the bundle with the model on rows of a split",
    )
    parser.add_argument("--split", default="valid", help="split of --check (default: valid)")
    parser.add_argument(
        "--check-rows", type=positive, default=2000, help="rows of --check (default: 2000)"
    )


def benchmark_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet benchmark`."""
    add_config(parser)
    add_launcher(parser)
    parser.add_argument("--steps", type=positive, default=50, help="steps to measure (default: 50)")
    parser.add_argument(
        "--warmup", type=positive, default=10, help="steps before them (default: 10)"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument(
        "--trace", type=Path, help="file to write a trace of some steps to, for Chrome or Perfetto"
    )
    parser.add_argument("--picture", type=Path, help="PNG to write, a bar of phases per rank")


def compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet compare`."""
    add_config(parser)
    add_launcher(parser)
    parser.add_argument(
        "--at-once",
        type=positive,
        help="most trials at the same time (default: as many as fit; with --launcher local: 1)",
    )


def roll_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet roll`."""
    add_config(parser)
    add_launcher(parser)
    parser.add_argument(
        "--every",
        type=duration_s,
        metavar="TIME",
        help="look for new logs again after so long, e.g. 10m or 1h (default: once)",
    )
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="replay: a generation for each new file or folder below ingest.path, by name",
    )
    parser.add_argument(
        "--until",
        metavar="DAY",
        help="with --one-by-one: stop once the training set reaches this day, e.g. 2026-05-08",
    )


def duration_s(text: str) -> float:
    """Type of --every: seconds of a number with s, m, h or d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time such as 30s, 10m, 1h or 1d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def sync_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet sync`."""
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run")


def smoke_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet smoke`."""
    parser.add_argument(
        "--config",
        type=Path,
        default=REPOSITORY / "configs" / "smoke.yaml",
        help="run file (default: configs/smoke.yaml)",
    )
    parser.add_argument(
        "--root", type=Path, default=Path(".infnet"), help="folder for data and runs (.infnet)"
    )
    add_overrides(parser)
