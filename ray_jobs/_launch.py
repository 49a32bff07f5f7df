"""Runs a worker function on N workers: under Ray Train, or as plain local processes.

A worker function takes a `WorkerContext` and keyword arguments, and returns something picklable.
Both launchers return what rank 0 returned and raise the root error of the first worker that failed.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from infnet_dist.config import Config, ScalingConfig
from infnet_dist.context import WorkerContext, backend_for, device_for
from infnet_dist.errors import UserError
from ray_jobs._local import root_error, run_local, set_up_worker_logging

Worker = Callable[..., Any]
log = logging.getLogger("infnet_dist")

# Of starting the workers, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S each; by default Ray never ends.
_START_RETRIES = 2


def launch(worker: Worker, arguments: dict[str, Any], config: Config, launcher: str) -> Any:
    """Run `worker(context, **arguments)` on `config.scaling.num_workers` workers.

    Args:
        worker: a module-level function.
        arguments: picklable keyword arguments.
        config: the run; its `scaling` says how many workers of which kind.
        launcher: "ray" or "local".

    Raises:
        UserError: what the worker raised as such.
        RuntimeError: any other failure of a worker; the message holds its root error.
    """
    scaling = config.scaling
    if launcher == "local":
        return run_local(
            worker,
            arguments,
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            timeout_s=scaling.timeout_s,
        )[0]
    return _launch_ray(worker, arguments, config)


def _launch_ray(worker: Worker, arguments: dict[str, Any], config: Config) -> Any:
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line appears twice
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train import ScalingConfig as RayScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    scaling = config.scaling
    lacking = _lacking(ray.cluster_resources(), scaling)
    if lacking:  # no error yet: the cluster may grow
        log.warning("%s; waiting for them", lacking)
    # Ray's own notes go on storage that all nodes share; our checkpoints don't pass through them.
    config.run.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=config.run.folder) as notes:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={
                "worker": worker,
                "arguments": arguments,
                "use_gpu": scaling.use_gpu,
            },
            torch_config=TorchConfig(
                backend=backend_for(scaling.use_gpu), timeout_s=int(scaling.timeout_s)
            ),
            scaling_config=RayScalingConfig(
                num_workers=scaling.num_workers,
                use_gpu=scaling.use_gpu,
                resources_per_worker=dict(scaling.resources_per_worker),
            ),
            run_config=RunConfig(
                name=config.run.name,
                storage_path=notes,
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=_START_RETRIES
                ),
            ),
        )
        try:
            return trainer.fit().return_value
        except WorkerGroupError as error:
            root = root_error(error.worker_failures)
            if isinstance(root, UserError):
                raise root from None
            raise RuntimeError(f"{type(root).__name__}: {root}") from error
        except ControllerError as error:
            raise UserError(
                f"Ray couldn't start the workers: {lacking or error.controller_failure}"
            ) from error


def _lacking(have: Mapping[str, float], scaling: ScalingConfig) -> str | None:
    """What the cluster, even when idle, has too little of for all workers; None if nothing."""
    per_worker = dict(scaling.resources_per_worker) | ({"GPU": 1.0} if scaling.use_gpu else {})
    for name, each in per_worker.items():
        if scaling.num_workers * each > have.get(name, 0.0):
            return (
                f"{scaling.num_workers} workers x {each:g} {name} don't fit this Ray cluster, "
                f"which has {have.get(name, 0.0):g} {name}; lower scaling.num_workers or "
                f"scaling.resources_per_worker, or add nodes"
            )
    return None


def _ray_worker(settings: dict[str, Any]) -> Any:
    """Runs inside each Ray Train worker, whose process group Ray has made."""
    set_up_worker_logging()
    # Ray Train shows each worker all GPUs that the workers of its node were given.
    device = device_for(settings["use_gpu"], int(os.environ["LOCAL_RANK"]))
    return settings["worker"](WorkerContext.from_process_group(device), **settings["arguments"])
