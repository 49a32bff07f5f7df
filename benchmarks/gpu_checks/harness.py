"""Runs checks one by one: a check that fails, or can't run here, stops no other."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

Values = dict[str, Any]


class SkippedError(Exception):
    """This check can't run here; the message says why."""


@dataclass(frozen=True)
class Check:
    """A check: its name, and a function that returns what it measured, or raises."""

    name: str
    run: Callable[[], Values]


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        values: what it measured, by name with unit.
        reason: why it failed or was skipped.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    seconds: float
    values: Values = field(default_factory=dict)
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def row(self) -> str:
        """One line of the table."""
        shown = self.reason or ", ".join(f"{k} {_short(v)}" for k, v in self.values.items())
        return f"{self.status:8}{self.seconds:7.1f} s  {self.name:46}{shown}"


def run_checks(
    checks: Iterable[Check], *, deadline: float, report: Callable[[Result], None]
) -> None:
    """Run all checks that start before `deadline` (of `time.monotonic`), reporting each result."""
    for check in checks:
        start = time.monotonic()
        if start > deadline:
            report(Result(check.name, "skipped", 0.0, reason="out of time"))
            continue
        try:
            result = Result(check.name, "passed", 0.0, check.run())
        except SkippedError as skipped:
            result = Result(check.name, "skipped", 0.0, reason=str(skipped))
        except Exception as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            result = Result(
                check.name, "failed", 0.0, reason=f"{type(error).__name__}: {lines[0][:200]}"
            )
        seconds = time.monotonic() - start
        report(Result(result.name, result.status, seconds, result.values, result.reason))


def expect(condition: bool, message: str) -> None:
    """Fail this check unless `condition` holds, under python -O too."""
    if not condition:
        raise AssertionError(message)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_ms(
    function: Callable[[], object], device: torch.device, repeats: int, *, warmup: int = 2
) -> list[float]:
    """Milliseconds of each of `repeats` calls, after `warmup` calls; sorted."""
    times = []
    for number in range(repeats + warmup):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        if number >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
