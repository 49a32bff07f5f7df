"""Ray Train's set-up of workers that use torch, with ours of SIGTERM; imports Ray.

Its classes are found by name in Ray's controller.
"""

from typing import Any

from ray.train.torch import TorchConfig

from ray_jobs._preemption import take_sigterm

_Backend: Any = TorchConfig().backend_cls


class WorkerBackend(_Backend):  # type: ignore[misc]
    """Makes the process group, in the main thread of each worker, and takes SIGTERM there."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called when all workers have started."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(take_sigterm)


class WorkerTorchConfig(TorchConfig):
    """A `TorchConfig` with our backend."""

    @property
    def backend_cls(self) -> Any:
        """The class of the backend."""
        return WorkerBackend
