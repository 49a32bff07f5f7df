"""The clock of phases, the typical step, peaks, and the rendered result."""

import io
import itertools
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional

from infnet_dist.profiling import phases
from infnet_dist.profiling.counts import StepCounts
from infnet_dist.profiling.peak import gpu_peak, peak_of
from infnet_dist.profiling.phases import PHASES, PhaseClock, StepTimer, typical
from infnet_dist.profiling.report import draw, render
from infnet_dist.profiling.result import BenchmarkResult, Phase, RankResult

CPU = torch.device("cpu")


def test_a_moment_belongs_to_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's hand moves by 1 s each time it is read."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    clock, timer = PhaseClock(CPU), StepTimer(CPU)
    for _ in range(2):
        clock.lap()
        timer.mark()
        with clock.within(phases.BACKWARD):
            with clock.within(phases.TABLE_UPDATE):
                assert clock.phase == phases.TABLE_UPDATE
            with pytest.raises(KeyError), clock.within(phases.ALL_REDUCE):
                raise KeyError
        timer.mark()
        lap = clock.lap()
        assert lap == {
            phases.OTHER: 4.0,  # two before, with the reading of the timer, and as many after
            phases.BACKWARD: 3.0,
            phases.TABLE_UPDATE: 1.0,
            phases.ALL_REDUCE: 1.0,
        }
    assert timer.seconds() == [7.0, 3.0, 7.0]


def test_a_typical_step_ignores_outliers_and_keeps_the_sum() -> None:
    steps = [{"a": 1.0, "b": 2.0}, {"a": 900.0}, {"a": 2.0, "b": 3.0}, {"b": 0.5}]
    assert typical(steps) == {"a": 1.5, "b": 2.5}
    alternating = [{"a": 1.0}, {"a": 5.0}] * 4 + [{"a": 9.0}]
    assert typical(alternating, cycle=2) == {"a": 3.0}


def test_attention_on_cpus_is_counted() -> None:
    """Scores and sums; in backward the scores again, and two products for each of them."""
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    with StepCounts(PhaseClock(CPU)) as counts:
        out = functional.scaled_dot_product_attention(q, k, v)
        forward = counts.flops[phases.OTHER]
        out.sum().backward()
    product = 2 * 2 * 3 * 5 * 5 * 4
    assert forward == 2 * product
    assert counts.flops[phases.OTHER] == 2 * product + 5 * product
    assert counts.flops_by_dtype == {torch.float32: 7 * product}


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("GeForce 9000", None),
    ],
)
def test_peaks_of_gpus_are_those_of_their_name(name: str, half: float | None) -> None:
    assert gpu_peak(name, torch.bfloat16).flops_per_s == half
    if half is None:
        assert name in gpu_peak(name, torch.float32).source


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = peak_of(CPU, torch.float32)
    assert peak.flops_per_s and peak.flops_per_s > 1e8
    assert "measured" in peak.source


def test_the_document_explains_every_phase(repository: Path) -> None:
    lines = (repository / "docs" / "benchmark.md").read_text().splitlines()
    rows = [f"| {name} | {text} |" for name, text in PHASES.items()]
    assert [line for line in lines if line in rows] == rows


def result_of(ranks: int) -> BenchmarkResult:
    found = [
        RankResult(
            phases={name: Phase(2.0, 1 / len(PHASES), 2048.0, 1e9) for name in PHASES},
            phases_step_ms=2.0 * len(PHASES) + rank,
            reader_ms={"read": 0.25, "collate": 0.5},
            eager_step_ms=30.0,
            step_ms=20.0,
            overlap=1.5,
            flops=16e9,
            peak_flops_per_s={"float32": None},
            peak_sources={"float32": "unknown for X"},
            mfu=None,
        )
        for rank in range(ranks)
    ]
    return BenchmarkResult("test", "cpu", "gloo", ranks, 32, True, 50, 10, 10, 1600.0, found)


@pytest.mark.parametrize("ranks", [2, 20])
def test_a_result_is_shown(ranks: int, tmp_path: Path) -> None:
    result, console = result_of(ranks), Console(width=160, file=io.StringIO(), record=True)
    console.print(render(result))
    text = console.export_text()
    for name in (*PHASES, "read", "collate"):
        assert name in text
    for shown in ("2.000", "6.2%", "2 KiB", "1.50", "MFU unknown", "unknown for X", "1,600 rows/s"):
        assert shown in text
    titles = [line.strip() for line in text.splitlines() if line.startswith("rank ")]
    shown = {title for title in titles if ":" not in title}
    assert shown == {f"rank {0}", f"rank {ranks - 1}"}
    draw(result, tmp_path / "phases.png")
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG\r\n")
