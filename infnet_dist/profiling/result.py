"""What a benchmark measured: times in milliseconds per step, bytes and FLOPs per step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A phase of a step on one rank.

    Attributes:
        ms: exclusive milliseconds per step.
        share: of the step.
        sent_bytes: bytes that this rank sends per step.
        flops: of matrix products, per step.
    """

    ms: float
    share: float
    sent_bytes: float
    flops: float


@dataclass(frozen=True)
class RankResult:
    """The measurements of a rank.

    Attributes:
        phases: by name, in the order of a step; of eager steps with a clock.
        phases_step_ms: of such a step: their sum.
        reader_ms: `read` and `collate` of a batch, in the reader's thread beside the steps.
        eager_step_ms: of an eager step without a clock.
        step_ms: of a step as configured.
        overlap: `eager_step_ms` divided by `step_ms`.
        flops: of matrix products in forward and backward, per step.
        peak_flops_per_s: of the device, by type of the factors; None if it isn't known.
        peak_sources: where these figures are from.
        mfu: share of the peak that the configured step reaches; None if it isn't known.
    """

    phases: dict[str, Phase]
    phases_step_ms: float
    reader_ms: dict[str, float]
    eager_step_ms: float
    step_ms: float
    overlap: float
    flops: float
    peak_flops_per_s: dict[str, float | None]
    peak_sources: dict[str, str]
    mfu: float | None


@dataclass(frozen=True)
class BenchmarkResult:
    """The measurements of a run.

    Attributes:
        run: its name.
        device: a GPU's name, or cpu.
        backend: of the process group.
        world_size: ranks.
        batch_size: rows per rank.
        pipelined: whether the configured step is TorchRec's pipelined one.
        steps: measured, of each kind.
        warmup: steps before them.
        counted_steps: in which bytes and FLOPs were counted.
        rows_per_s: of all ranks in configured steps.
        ranks: by rank.
    """

    run: str
    device: str
    backend: str
    world_size: int
    batch_size: int
    pipelined: bool
    steps: int
    warmup: int
    counted_steps: int
    rows_per_s: float
    ranks: list[RankResult]
