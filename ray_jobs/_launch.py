"""Runs a worker function on N workers: under Ray Train, or as plain local processes.

A worker function takes a `WorkerContext` and keyword arguments, and returns something picklable.
Both launchers return what rank 0 returned and raise the root error of the first worker that failed.
"""

import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from infnet_dist.config.run import Config, ScalingConfig
from infnet_dist.distributed.context import WorkerContext, backend_for, device_for
from infnet_dist.errors import UserError
from ray_jobs._cluster import connect, is_own
from ray_jobs._local import (
    WorkerLostError,
    is_broken_collective,
    root_error,
    run_local,
    set_up_worker_logging,
)

Worker = Callable[..., Any]
log = logging.getLogger("infnet_dist")

# Of starting the workers, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S each; by default Ray never ends.
_START_RETRIES = 2
# Where fewer workers will do: Ray may take a while to see that a node is gone, and waits for it.
_ELASTIC_START_TIMEOUT_S = 30


def launch(
    worker: Worker,
    arguments: dict[str, Any],
    config: Config,
    launcher: str,
    *,
    num_workers: int | None = None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Any:
    """Run `worker(context, **arguments)` on workers of the kind that `config.scaling` describes.

    Args:
        worker: a module-level function.
        arguments: picklable keyword arguments.
        config: the run.
        launcher: "ray" or "local".
        num_workers: None for `scaling.num_workers`.
        while_waiting: called about every second meanwhile (on Ray).

    Raises:
        UserError: what the worker raised as such.
        WorkerLostError: a worker, or its node, is gone.
        RuntimeError: any other failure of a worker; the message holds its root error.
    """
    scaling = config.scaling
    num_workers = num_workers or scaling.num_workers
    if launcher == "local":
        return run_local(
            worker,
            arguments,
            num_workers=num_workers,
            use_gpu=scaling.use_gpu,
            timeout_s=scaling.timeout_s,
        )[0]
    return _launch_ray(worker, arguments, config, num_workers, while_waiting)


def _launch_ray(
    worker: Worker,
    arguments: dict[str, Any],
    config: Config,
    num_workers: int,
    while_waiting: Callable[[], None],
) -> Any:
    connect()
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import RunConfig
    from ray.train import ScalingConfig as RayScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

    scaling = config.scaling
    elastic = scaling.min_workers is not None
    if elastic:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_ELASTIC_START_TIMEOUT_S)
    lacking = _lacking(ray.cluster_resources(), scaling, num_workers)
    if lacking:  # no error yet: the cluster may grow
        log.warning("%s; waiting for them", lacking)
    # Ray's own notes go on storage that all nodes share; our checkpoints don't pass through them.
    config.run.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=config.run.folder) as notes:
        trainer = _trainer_class()(
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
                num_workers=num_workers,
                use_gpu=scaling.use_gpu,
                resources_per_worker=dict(scaling.resources_per_worker),
            ),
            run_config=RunConfig(
                name=config.run.name,
                storage_path=notes,
                failure_config=_failure_config(start_retries=0 if elastic else _START_RETRIES),
            ),
        )
        try:
            return _in_thread(trainer.fit, while_waiting).return_value
        except WorkerGroupError as error:
            raise _failure(error.worker_failures) from error
        except PreemptionError as error:
            raise _drained(error.preemption_info.preempted_ranks) from error
        except ControllerError as error:
            reason = f"Ray couldn't start the workers: {lacking or error.controller_failure}"
            raise (WorkerLostError if elastic else UserError)(reason) from error
        except (RayActorError, OutOfMemoryError) as error:
            if is_own():
                _free_room()
            raise WorkerLostError(f"Ray Train's controller is gone: {_why(error)}") from error


def _failure_config(start_retries: int) -> Any:
    """Ray Train restarts nothing that has trained: our supervisor alone does, and counts.

    By itself it restarts without limit, and without a word, when a node is drained.
    """
    from ray.train import FailureConfig

    return FailureConfig(
        max_failures=0, max_preemption_failures=0, controller_failure_limit=start_retries
    )


def _trainer_class() -> type[Any]:
    """Ray Train's; without the actor that frees its room if it dies, where the Ray is our own.

    That actor asks the dashboard each second, and can only warn where there is none: `_free_room`.
    """
    from ray.train.torch import TorchTrainer

    if not is_own():
        return TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer


def _free_room() -> None:
    """Give back what a dead controller of Ray Train holds for its workers; nobody else is there."""
    from ray import PlacementGroupID
    from ray.util.placement_group import (
        PlacementGroup,
        placement_group_table,
        remove_placement_group,
    )

    for name in placement_group_table():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def _in_thread(action: Callable[[], Any], while_waiting: Callable[[], None]) -> Any:
    """What `action` returns; the main thread stays free for signals, which Ray would take.

    An exception in the main thread doesn't wait for the action.
    """
    future: Future[Any] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=act, name="launch", daemon=True).start()
    while not future.done():
        wait([future], timeout=1.0)
        while_waiting()
    return future.result()


def _failure(failures: Mapping[int, BaseException]) -> Exception:
    """The error to raise for those of the workers."""
    root = root_error(failures)
    if isinstance(root, UserError):
        return root
    if not (_is_gone(root) or is_broken_collective(root)):
        return RuntimeError(f"{type(root).__name__}: {root}")
    gone = sorted(rank for rank, error in failures.items() if _is_gone(error))
    if not gone:
        return WorkerLostError(f"a worker is gone: {root}")
    return WorkerLostError(f"worker {', '.join(map(str, gone))} is gone: {_why(failures[gone[0]])}")


def _drained(ranks: Sequence[int]) -> WorkerLostError:
    """What a drained node, as of a spot instance that is reclaimed, comes to."""
    named = ", ".join(map(str, sorted(ranks)))
    return WorkerLostError(f"worker {named} is gone: its node was drained (preempted)")


def _why(error: BaseException) -> str:
    """What Ray says of a lost worker, in a line."""
    text = " ".join(str(getattr(error, "health_check_failure", error)).split())
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes| *$)", text)
    return detail[1] if detail else text[:200]


def _is_gone(error: BaseException) -> bool:
    """Whether Ray tells of a worker that died, was killed, or doesn't answer."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import (
        WorkerHealthCheckFailedError,
        WorkerHealthCheckTimeoutError,
    )

    kinds = (RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
    return isinstance(error, kinds)


def workers_that_fit(scaling: ScalingConfig) -> int:
    """Workers for which nodes have room beside all that runs there now; none on drained ones."""
    import ray
    from ray._private.state import available_resources_per_node, state

    needed = {name: each for name, each in _per_worker(scaling).items() if each}
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {
        *state.get_draining_nodes()
    }
    nodes = [free for node, free in available_resources_per_node().items() if node in alive]
    if not needed:
        return scaling.num_workers
    room = [[int(node.get(name, 0.0) // each) for name, each in needed.items()] for node in nodes]
    return sum(min(workers) for workers in room)


def _per_worker(scaling: ScalingConfig) -> dict[str, float]:
    return dict(scaling.resources_per_worker) | ({"GPU": 1.0} if scaling.use_gpu else {})


def _lacking(have: Mapping[str, float], scaling: ScalingConfig, num_workers: int) -> str | None:
    """What the cluster, even when idle, has too little of for the workers; None if nothing."""
    for name, each in _per_worker(scaling).items():
        if num_workers * each > have.get(name, 0.0):
            return (
                f"{num_workers} workers x {each:g} {name} don't fit this Ray cluster, "
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
