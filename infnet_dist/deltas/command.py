"""The commands `delta`, `apply` and `compact` of `infnet checkpoint`."""

import argparse
import math

from infnet_dist.checkpoint.cli.printing import bar_of
from infnet_dist.checkpoint.discovery import open_checkpoint
from infnet_dist.checkpoint.manifest import CheckpointManifest, read_manifest
from infnet_dist.deltas.applying import apply_deltas
from infnet_dist.deltas.compacting import compact
from infnet_dist.deltas.comparing import make_delta
from infnet_dist.deltas.manifest import DeltaManifest
from infnet_dist.deltas.reading import Delta
from infnet_dist.io.filesystem import Folder, size_text


def delta_command(arguments: argparse.Namespace) -> int:
    """Write the delta between two checkpoints."""
    (first, one), (second, other) = (
        open_checkpoint(place) for place in (arguments.first, arguments.second)
    )
    with bar_of(_tensor_bytes(one) + _tensor_bytes(other), "delta") as bar:
        made = make_delta(
            first,
            second,
            Folder(arguments.out),
            bar.update,
            rows=arguments.rows,
            optimizer_state=not arguments.without_optimizer,
        )
    print(_line(made, arguments.out))
    return 0


def apply_command(arguments: argparse.Namespace) -> int:
    """Write the checkpoint that a base and its deltas make up."""
    base, deltas = Folder(arguments.base), [Folder(place) for place in arguments.deltas]
    with bar_of(_tensor_bytes(read_manifest(base)), "apply") as bar:
        made = apply_deltas(base, deltas, Folder(arguments.out), bar.update)
    step, size = made.progress.step, size_text(made.num_bytes)
    print(f"wrote the checkpoint of step {step:,} to {Folder(arguments.out)} ({size})")
    return 0


def compact_command(arguments: argparse.Namespace) -> int:
    """Write one delta in place of several."""
    deltas = [Folder(place) for place in arguments.deltas]
    total = sum(_tensor_bytes(Delta(folder).manifest) for folder in deltas)
    with bar_of(total, "compact") as bar:
        made = compact(deltas, Folder(arguments.out), bar.update)
    print(_line(made, arguments.out))
    return 0


def _line(made: DeltaManifest, out: str) -> str:
    rows, link = sum(made.delta.tables.values()), made.delta
    rounded = "" if made.is_exact else f", rounded to {link.rows}"
    return (
        f"wrote {made.changed_rows:,} changed rows of {rows:,}{rounded}, to {Folder(out)} "
        f"({size_text(made.num_bytes)}); it changes {link.previous.name}"
    )


def _tensor_bytes(manifest: CheckpointManifest) -> int:
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in manifest.tensors.values())
