"""Measures the steps of a run: built as for training, without run folder and checkpoints.

Phases are measured on eager steps. The run's configured step may overlap them, so it is measured as
a whole beside them. Bytes and FLOPs are counted in further steps, as counting takes time.
"""

from contextlib import closing

import torch

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import ConfigError
from infnet_dist.profiling.counts import StepCounts
from infnet_dist.profiling.peak import peak_of
from infnet_dist.profiling.phases import PHASES
from infnet_dist.profiling.reading import timed_reader
from infnet_dist.profiling.result import BenchmarkResult, Phase, RankResult
from infnet_dist.profiling.steps import BenchmarkSteps
from infnet_dist.training.setup import TrainingSetup, open_for_training


def check_steps(config: Config, steps: int) -> None:
    """Check that the measured steps update the dense part at least once.

    Raises:
        ConfigError: they are too few.
    """
    needed = config.training.accumulate_steps
    if steps < needed:
        raise ConfigError(
            f"--steps {steps} is less than training.accumulate_steps ({needed}), so no measured "
            f"step might update the dense part; expected --steps >= {needed}"
        )


def benchmark(
    context: WorkerContext, config: Config, *, steps: int, warmup: int, trace: bool = False
) -> tuple[BenchmarkResult, str | None]:
    """Measure the steps of a run; every rank calls it.

    Args:
        context: this worker.
        config: the run.
        steps: to measure, of each kind.
        warmup: steps before them, each time; at least one.
        trace: whether to record some steps of rank 0.

    Returns:
        The measurements of all ranks, and on rank 0 the trace as JSON in Chrome's format.

    Raises:
        UserError: as in training; also if a loss isn't finite.
    """
    check_steps(config, steps)
    splits = ("train", "valid")
    setup = TrainingSetup.open(config, context, splits=splits, open_set=open_for_training)
    with timed_reader() as reader, closing(BenchmarkSteps(setup, steps=steps, warmup=warmup)) as of:
        eager_s = of.eager_s()
        phases_s, counts = of.phases()
        step_s, pipelined = of.configured_s()
        traced = of.trace() if trace else None
    context.barrier()  # so that a CPU's peak is measured on all ranks at once
    found = _rank_result(context.device, phases_s, counts, eager_s, step_s, reader.per_batch)
    ranks = context.gather(found)
    result = BenchmarkResult(
        run=config.run.name,
        device=_device_name(context.device),
        backend="nccl" if context.device.type == "cuda" else "gloo",
        world_size=context.world_size,
        batch_size=config.data.batch_size,
        pipelined=pipelined,
        steps=steps,
        warmup=warmup,
        counted_steps=counts.steps,
        rows_per_s=sum(1000 * config.data.batch_size / rank.step_ms for rank in ranks),
        ranks=ranks,
    )
    return result, traced


def _rank_result(
    device: torch.device,
    phases_s: dict[str, float],
    counts: StepCounts,
    eager_s: float,
    step_s: float,
    reader_s: dict[str, float],
) -> RankResult:
    total_s = sum(phases_s.values())
    phases = {
        name: Phase(
            ms=1000 * phases_s.get(name, 0.0),
            share=phases_s.get(name, 0.0) / total_s,
            sent_bytes=counts.sent_bytes[name] / counts.steps,
            flops=counts.flops[name] / counts.steps,
        )
        for name in PHASES
    }
    flops = {dtype: n / counts.steps for dtype, n in counts.flops_by_dtype.items()}
    peaks = {dtype: peak_of(device, dtype) for dtype in flops}
    known = {dtype: peak.flops_per_s for dtype, peak in peaks.items() if peak.flops_per_s}
    return RankResult(
        phases=phases,
        phases_step_ms=1000 * total_s,
        reader_ms={name: 1000 * seconds for name, seconds in reader_s.items()},
        eager_step_ms=1000 * eager_s,
        step_ms=1000 * step_s,
        overlap=eager_s / step_s,
        flops=sum(flops.values()),
        peak_flops_per_s={_name(dtype): peak.flops_per_s for dtype, peak in peaks.items()},
        peak_sources={_name(dtype): peak.source for dtype, peak in peaks.items()},
        mfu=_mfu(flops, known, step_s),
    )


def _mfu(
    flops: dict[torch.dtype, float], peaks: dict[torch.dtype, float], step_s: float
) -> float | None:
    """The seconds that the device needs at its peak, divided by those of a step."""
    if flops.keys() != peaks.keys():
        return None
    return sum(n / peaks[dtype] for dtype, n in flops.items()) / step_s


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
