"""Renders a benchmark: tables for a terminal, and a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infnet_dist.io.filesystem import size_text
from infnet_dist.profiling.phases import PHASES
from infnet_dist.profiling.result import BenchmarkResult, Phase, RankResult

MAX_TABLES = 8  # of more ranks, the ones with the shortest and the longest step are shown
_NOT_COUNTED = "not element-wise operations, norms, lookups, optimizers"


def render(result: BenchmarkResult) -> RenderableType:
    """One table per rank, and the figures of whole steps."""
    shown = _shown(result.ranks)
    tables = [_table(result, rank) for rank in shown]
    lines = [
        f"{result.run}: {result.world_size} ranks, {result.device}, {result.backend}, batch "
        f"{result.batch_size} per rank; {result.steps} steps of each kind after {result.warmup}",
        f"{result.rows_per_s:,.0f} rows/s over all ranks, in steps as configured "
        f"({'TorchRec pipeline' if result.pipelined else 'eager'})",
    ]
    if len(shown) < len(result.ranks):
        lines.append(f"ranks {shown} have the shortest and the longest step; --json has all")
    for rank in shown:
        lines += [f"rank {rank}: {line}" for line in _lines(result.ranks[rank], result.pipelined)]
    lines += [
        "ms: mean over the middle half of the steps by duration; one phase after the other, on "
        "GPUs with the device synchronised between them",
        f"sent and GFLOP: counted in {result.counted_steps} further steps; GFLOP of matrix "
        f"products and attention, forward and backward: {_NOT_COUNTED}",
        "read, collate: per batch, in the reader's thread beside the steps, so no part of the sum",
    ]
    return Group(*tables, Text("\n".join(lines)))


def _shown(ranks: Sequence[RankResult]) -> list[int]:
    if len(ranks) <= MAX_TABLES:
        return [*range(len(ranks))]
    by_time = sorted(range(len(ranks)), key=lambda rank: ranks[rank].phases_step_ms)
    return [by_time[0], by_time[-1]]


def _table(result: BenchmarkResult, number: int) -> Table:
    rank = result.ranks[number]
    table = Table("phase", title=f"rank {number}", title_justify="left")
    for column in ("ms", "share", "sent", "GFLOP"):
        table.add_column(column, justify="right")
    for name in PHASES:
        table.add_row(name, *_cells(rank.phases[name]))
    sent = sum(phase.sent_bytes for phase in rank.phases.values())
    table.add_section()
    table.add_row("step", *_cells(Phase(rank.phases_step_ms, 1.0, sent, rank.flops)))
    table.add_section()
    for name, ms in rank.reader_ms.items():
        table.add_row(f"{name} (beside the step)", f"{ms:.3f}", "", "", "")
    return table


def _cells(phase: Phase) -> tuple[str, ...]:
    return (
        f"{phase.ms:.3f}",
        f"{phase.share:.1%}",
        size_text(round(phase.sent_bytes)) if phase.sent_bytes else "",
        f"{phase.flops / 1e9:.4g}" if phase.flops else "",
    )


def _lines(rank: RankResult, pipelined: bool) -> list[str]:
    eager = f"eager step {rank.eager_step_ms:.3f} ms ({rank.phases_step_ms:.3f} with the clock)"
    kind = "pipelined step" if pipelined else "configured step, eager as well:"
    mfu = "unknown" if rank.mfu is None else f"{rank.mfu:.2%}"
    peaks = [
        f"{dtype} {'?' if peak is None else f'{peak / 1e9:,.0f}'} GFLOP/s "
        f"({rank.peak_sources[dtype]})"
        for dtype, peak in rank.peak_flops_per_s.items()
    ]
    return [
        f"{eager}, {kind} {rank.step_ms:.3f} ms: eager / configured {rank.overlap:.2f}",
        f"{rank.flops / 1e9:.4g} GFLOP per step, MFU {mfu} of {', '.join(peaks)}",
    ]


def draw(result: BenchmarkResult, image: Path) -> None:
    """Write a PNG: a bar of phases per rank, and a tick at the end of its configured step."""
    ranks = result.ranks
    figure = Figure(figsize=(12, 2.5 + 0.4 * min(len(ranks), 100)), layout="constrained")
    axis = figure.subplots()
    left = [0.0] * len(ranks)
    for index, name in enumerate(PHASES):
        widths = [rank.phases[name].ms for rank in ranks]
        color = colormaps["tab20"](index % 20)
        axis.barh(range(len(ranks)), widths, left=left, label=name, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.plot(
        [rank.step_ms for rank in ranks],
        range(len(ranks)),
        *("k|",),
        markersize=18,
        label="step as configured",
    )
    axis.set_xlabel("ms per step")
    axis.set_ylabel("rank")
    axis.set_yticks(range(len(ranks)))
    axis.invert_yaxis()
    axis.set_title(f"{result.run}: {result.rows_per_s:,.0f} rows/s on {result.device}")
    figure.legend(loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(image, format="png", dpi=100)
