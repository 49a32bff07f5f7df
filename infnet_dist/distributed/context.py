"""The worker's environment: rank, world size, device, process group.

`WorkerContext` is all that the library knows of its environment. It is created inside a worker
whose process group exists (from Ray Train or `local_process_group`) and offers the few collectives
that the library needs, so that all ranks fail together.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from infnet_dist.errors import ConfigError, UserError

T = TypeVar("T")


def _no_notice() -> str:
    return ""


@dataclass(frozen=True)
class WorkerContext:
    """One worker among `world_size`.

    Attributes:
        group: the process group of the collectives below; None is torch's default group.
        preemption_notice: returns why a worker is about to be lost, empty if none is; cheap, and
            not the same on all ranks.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    preemption_notice: Callable[[], str] = _no_notice

    @classmethod
    def from_process_group(cls, device: torch.device) -> "WorkerContext":
        """The context of this process, which computes on `device`."""
        assert dist.is_initialized(), "initialise a process group first"
        return cls(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
            device=device,
        )

    def with_own_group(self) -> "WorkerContext":
        """The same worker with its own gloo group, for use in another thread; every rank calls it.

        Its collectives have practically no timeout: writes of other ranks may take any time.
        """
        group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        return replace(self, group=group)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes logs and manifests."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(self.group)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum of a tensor over all ranks."""
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_to_first(self, value: T) -> list[T] | None:
        """The picklable `value` of every rank, in rank order, on rank 0; None on the others."""
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's picklable `value`, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on this rank; if it fails on any rank, raise on all ranks at once.

        Raises:
            UserError: the error of the first failing rank, with its type; any other error of
                another rank as a plain UserError.
        """
        error: BaseException | None = None
        result: T | None = None
        try:
            result = action()
        except (Exception, CheckpointException) as caught:
            error = caught
        found = [other for other in self.gather(_as_user_error(error)) if other is not None]
        if error is not None:
            raise error
        if found:
            kind, message = found[0]
            raise kind(message)
        return result  # type: ignore[return-value]

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; its picklable result, or its failure, on all ranks.

        Raises:
            UserError: as in `together`.
        """
        error: BaseException | None = None
        result: T | None = None
        if self.is_first:
            try:
                result = action()
            except (Exception, CheckpointException) as caught:
                error = caught
        result, found = self.broadcast((result, _as_user_error(error)))
        if error is not None:
            raise error
        if found is not None:
            kind, message = found
            raise kind(message)
        return result  # type: ignore[return-value]


def _as_user_error(error: BaseException | None) -> tuple[type[UserError], str] | None:
    """Type and message of the error that the other ranks raise for this one."""
    if error is None:
        return None
    if isinstance(error, UserError):
        return type(error), str(error)
    return UserError, f"{type(error).__name__}: {error}"


def backend_for(use_gpu: bool) -> str:
    """The process group's backend, gloo or NCCL.

    With GPUs, gloo is added for tensors on the CPU (metrics, manifests, error messages).
    """
    return "cpu:gloo,cuda:nccl" if use_gpu else "gloo"


def device_for(use_gpu: bool, local_rank: int) -> torch.device:
    """The device of a worker; a GPU also becomes the current device."""
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("scaling.use_gpu is true, but torch sees no GPU here; set it to false")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"scaling.num_workers asks for GPU {local_rank} of this machine, which has "
            f"{torch.cuda.device_count()}; lower it"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def local_process_group(
    rank: int, world_size: int, *, use_gpu: bool, port: int, timeout_s: float
) -> Iterator[WorkerContext]:
    """A process group of `world_size` processes on this machine, for runs without Ray."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    if sys.platform == "linux":  # else gloo listens on the address of the host name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = device_for(use_gpu, rank)
    dist.init_process_group(
        backend_for(use_gpu),
        store=_loopback_store(rank, world_size, port, timedelta(seconds=timeout_s)),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield WorkerContext.from_process_group(device)
    finally:
        dist.destroy_process_group()


def _loopback_store(rank: int, world_size: int, port: int, timeout: timedelta) -> dist.TCPStore:
    """The store of the process group; by default torch would listen on all addresses."""
    descriptor = None
    if rank == 0:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen(max(128, 2 * world_size))
            descriptor = sock.detach()
    return dist.TCPStore(
        "127.0.0.1",
        port,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=descriptor,
    )
