"""How much is measured: all of it, or sizes that measure nothing."""

from typing import NamedTuple

from gpu_checks.models import Sizes


class Extent(NamedTuple):
    """How much is measured.

    Attributes:
        sizes: of the models.
        parity_batch: rows where results are compared.
        speed_batch: rows where training is timed.
        latency_batches: rows of a request.
        histories: items of the long histories.
        table_rows: of each table where results are compared.
        speed_rows: of each table where steps are timed.
        repeats: timed calls.
        matmul: rows of the square matrices.
        backend: of torch.compile.
    """

    sizes: Sizes = Sizes()
    parity_batch: int = 128
    speed_batch: int = 4096
    latency_batches: tuple[int, ...] = (1, 100, 500)
    histories: tuple[int, ...] = (500, 4000)
    table_rows: int = 1000
    speed_rows: int = 1_000_000
    repeats: int = 20
    matmul: int = 8192
    backend: str = "inductor"


SHORT = Extent(
    sizes=Sizes(fields=4, lengths=(5, 3), token_dim=16, width=8),
    parity_batch=8,
    speed_batch=16,
    latency_batches=(1, 4),
    histories=(10, 20),
    table_rows=50,
    speed_rows=100,
    repeats=3,
    matmul=64,
    backend="aot_eager",
)
