"""Checks of the dense part: tokens, towers and losses; need torch alone."""

import statistics
from collections.abc import Iterator
from functools import partial

import torch

from gpu_checks.extent import Extent
from gpu_checks.harness import Check, SkippedError, Values, expect, synchronize, times_ms
from gpu_checks.models import (
    TOWERS,
    Sizes,
    Trained,
    flops_per_sample,
    forward_backward,
    make_dense,
    make_inputs,
    relative_errors,
    train,
)
from infnet_dist.model.compute import Precision, compile_training, set_tf32
from infnet_dist.model.dense import DenseArch

CPU = torch.device("cpu")
MEASURED = ("infnet", "din+dcnv2+mmoe")  # of these also compilation, memory, latency and speed
# Largest relative errors against float64 on the CPU, of logits and of any parameter's gradient.
TOLERANCES: dict[Precision, dict[str, float]] = {
    "fp32": {"logits": 1e-4, "gradients": 1e-3},
    "tf32": {"logits": 2e-2, "gradients": 1e-1},
    "bf16": {"logits": 1e-1, "gradients": 5e-1},
}
LOSS_TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}
# Dense TFLOP/s of data sheets, without sparsity, by part of the device's name.
PEAKS: dict[str, dict[Precision, float]] = {
    name: {"fp32": 67.0, "tf32": 494.5, "bf16": 989.0} for name in ("H200", "H100")
} | {"A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0}}


def dense_checks(device: torch.device, extent: Extent) -> Iterator[Check]:
    """All checks of this part, the most telling first."""
    for tower in TOWERS:
        yield Check(f"parity {tower}", partial(check_parity, tower, "fp32", device, extent))
    for precision in ("bf16", "tf32"):
        for tower in TOWERS:
            check = partial(check_parity, tower, precision, device, extent)
            yield Check(f"{precision} {tower}", check)
    for tower in TOWERS:
        yield Check(f"repeatable {tower}", partial(check_repeatable, tower, device, extent))
    for tower in TOWERS:
        yield Check(f"no synchronisation {tower}", partial(check_no_sync, tower, device, extent))
    yield Check("matrix product", partial(measure_matmul, device, extent))
    for tower in MEASURED:
        yield Check(f"memory {tower}", partial(measure_memory, tower, device, extent))
        yield Check(f"latency {tower}", partial(measure_latency, tower, device, extent))
        for precision in ("fp32", "tf32", "bf16"):
            measure = partial(measure_speed, tower, precision, device, extent)
            yield Check(f"speed {precision} {tower}", measure)
    for tower in MEASURED:
        for precision in ("fp32", "bf16"):
            check = partial(check_compiled, tower, precision, device, extent)
            yield Check(f"compile {precision} {tower}", check)
    yield Check("long histories infnet", partial(measure_histories, "infnet", device, extent))


def dense_on(tower: str, precision: Precision, device: torch.device, sizes: Sizes) -> DenseArch:
    """The dense part in training mode; sets the precision of this process."""
    if precision == "tf32" and device.type == "cpu":
        raise SkippedError("CPUs have no TF32")
    set_tf32(precision == "tf32")
    return make_dense(tower, sizes, bf16=precision == "bf16").to(device)


def reference(tower: str, extent: Extent) -> Trained:
    """The same step in float64 on the CPU."""
    set_tf32(False)
    inputs = make_inputs(extent.sizes, extent.parity_batch).to(CPU, torch.float64)
    return train(make_dense(tower, extent.sizes).double(), inputs)


def check_parity(tower: str, precision: Precision, device: torch.device, extent: Extent) -> Values:
    """Loss, logits and gradients against float64 on the CPU."""
    dense = dense_on(tower, precision, device, extent.sizes)
    found = train(dense, make_inputs(extent.sizes, extent.parity_batch).to(device))
    expected = reference(tower, extent)
    errors = relative_errors(found, expected)
    loss_error = abs(float(found.loss) / float(expected.loss) - 1)
    for name, error in errors.items():
        allowed = TOLERANCES[precision][name]
        expect(error <= allowed, f"the relative error of {name} is {error:.1e}, above {allowed}")
    allowed = LOSS_TOLERANCES[precision]
    expect(loss_error <= allowed, f"the relative error of the loss is {loss_error:.1e}")
    expect(found.logits_BK.dtype == torch.float32, f"logits are {found.logits_BK.dtype}")
    return {"error/loss": loss_error} | {f"error/{name}": error for name, error in errors.items()}


def check_repeatable(tower: str, device: torch.device, extent: Extent) -> Values:
    """Two equal steps are equal bit for bit, so that a resumed run can be."""
    dense = dense_on(tower, "fp32", device, extent.sizes)
    inputs = make_inputs(extent.sizes, extent.parity_batch).to(device)
    once, again = train(dense, inputs), train(dense, inputs)
    expect(torch.equal(once.logits_BK, again.logits_BK), "logits differ")
    others = [n for n, part in once.gradients.items() if not torch.equal(part, again.gradients[n])]
    expect(not others, f"gradients differ: {', '.join(others)}")
    return {}


def check_no_sync(tower: str, device: torch.device, extent: Extent) -> Values:
    """Forward and backward never wait for the device."""
    if device.type == "cpu":
        raise SkippedError("a CPU has no queue to wait for")
    dense = dense_on(tower, "fp32", device, extent.sizes)
    inputs = make_inputs(extent.sizes, extent.parity_batch).to(device)
    forward_backward(dense, inputs)
    synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        dense(*inputs[:4]).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return {}


def check_compiled(
    tower: str, precision: Precision, device: torch.device, extent: Extent
) -> Values:
    """Compiled against plain: the same names of parameters, results and speed."""
    plain = dense_on(tower, precision, device, extent.sizes)
    compiled = dense_on(tower, precision, device, extent.sizes)
    torch.compiler.reset()
    compile_training(compiled, backend=extent.backend)
    expect(list(plain.state_dict()) == list(compiled.state_dict()), "names in checkpoints differ")
    inputs = make_inputs(extent.sizes, extent.parity_batch).to(device)
    (start_ms,) = times_ms(lambda: train(compiled, inputs), device, repeats=1, warmup=0)
    errors = relative_errors(train(compiled, inputs), train(plain, inputs))
    for name, error in errors.items():
        allowed = TOLERANCES[precision][name]
        expect(error <= allowed, f"the relative error of {name} is {error:.1e}, above {allowed}")
    found = {f"error/{name}": error for name, error in errors.items()}
    found["start/s"] = start_ms / 1e3
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    for _ in range(3):
        for name, dense in (("plain", plain), ("compiled", compiled)):
            step = partial(forward_backward, dense, inputs)
            times[name].append(statistics.median(times_ms(step, device, extent.repeats)))
    found["plain / compiled"] = statistics.median(
        a / b for a, b in zip(times["plain"], times["compiled"], strict=True)
    )
    return found


def measure_matmul(device: torch.device, extent: Extent) -> Values:
    """TFLOP/s of a square matrix product: what this device gives at best."""
    found: Values = {}
    for precision in ("fp32", "tf32", "bf16"):
        if precision != "tf32" or device.type == "cuda":
            found[f"{precision}/TFLOP/s"] = matmul_tflops(precision, device, extent)
    return found


def matmul_tflops(precision: Precision, device: torch.device, extent: Extent) -> float:
    """The same in one precision."""
    set_tf32(precision == "tf32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(extent.matmul, extent.matmul, device=device, dtype=dtype)
    median = statistics.median(times_ms(lambda: matrix @ matrix, device, extent.repeats))
    return 2 * extent.matmul**3 / median / 1e9


def measure_memory(tower: str, device: torch.device, extent: Extent) -> Values:
    """Peak memory of a step, beyond the parameters and the input."""
    if device.type == "cpu":
        raise SkippedError("torch keeps no statistics of memory on CPUs")
    found: Values = {}
    inputs = make_inputs(extent.sizes, extent.speed_batch).to(device)
    for precision in ("fp32", "bf16"):
        dense = dense_on(tower, precision, device, extent.sizes)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        train(dense, inputs)
        peak = torch.cuda.max_memory_allocated(device) - before
        found[f"{precision}/KiB per row"] = peak / extent.speed_batch / 2**10
    return found


def measure_latency(tower: str, device: torch.device, extent: Extent) -> Values:
    """Milliseconds of a forward pass, as in serving: median and slowest."""
    dense = dense_on(tower, "fp32", device, extent.sizes).eval()
    found: Values = {}
    for batch in extent.latency_batches:
        inputs = make_inputs(extent.sizes, batch).to(device)
        with torch.inference_mode():
            times = times_ms(partial(dense, *inputs[:4]), device, 5 * extent.repeats)
        found[f"{batch} rows/ms"] = statistics.median(times)
        found[f"{batch} rows/slowest ms"] = times[-1]
    return found


def measure_speed(tower: str, precision: Precision, device: torch.device, extent: Extent) -> Values:
    """Forward and backward: rows per second, and model FLOP/s utilisation."""
    dense = dense_on(tower, precision, device, extent.sizes)
    inputs = make_inputs(extent.sizes, extent.speed_batch).to(device)
    step = partial(forward_backward, dense, inputs)
    median_ms = statistics.median(times_ms(step, device, extent.repeats))
    flops = flops_per_sample(tower, extent.sizes) * extent.speed_batch
    tflops = flops / median_ms / 1e9
    found = {"rows/s": 1e3 * extent.speed_batch / median_ms, "TFLOP/s": tflops}
    found["of a matrix product"] = tflops / matmul_tflops(precision, device, extent)
    if (peak := peak_tflops(precision, device)) is not None:
        found["MFU"] = tflops / peak
    return found


def peak_tflops(precision: Precision, device: torch.device) -> float | None:
    """The device's peak by its data sheet; None if it isn't known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)


def measure_histories(tower: str, device: torch.device, extent: Extent) -> Values:
    """Microseconds per history item and row of a step, by the number of items."""
    found: Values = {}
    batch = max(1, extent.speed_batch // 32)
    for length in extent.histories:
        sizes = extent.sizes._replace(lengths=(length,))
        dense = dense_on(tower, "fp32", device, sizes)
        inputs = make_inputs(sizes, batch).to(device)
        step = partial(forward_backward, dense, inputs)
        median_ms = statistics.median(times_ms(step, device, extent.repeats))
        found[f"{length} items/us"] = 1e3 * median_ms / batch / length
    return found
