"""Runs a worker function as one run of Ray Train, which restarts nothing that has trained."""

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext, backend_for, device_for
from infnet_dist.errors import UserError
from infnet_dist.io.console import terminal_columns
from ray_jobs._cluster import connect, is_own
from ray_jobs._local import set_up_worker_logging
from ray_jobs._preemption import notice
from ray_jobs._ray_failures import nodes_drained, reason_of, workers_failed
from ray_jobs._ray_internals import without_cleaner
from ray_jobs._resources import missing_resources
from ray_jobs._worker_errors import WorkerLostError

# Of starting the workers, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S each; Ray's default is no limit.
_START_RETRIES = 2
# Where fewer workers will do: Ray may notice a lost node late, and waits for its workers.
_ELASTIC_START_TIMEOUT_S = 30
_DRAIN_POLL_S = 1.0  # of Ray's watcher of nodes that are drained; Ray's default is 5 s
log = logging.getLogger("infnet_dist")


def run_on_ray(
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    config: Config,
    num_workers: int,
    while_waiting: Callable[[], None],
) -> Any:
    """See `launch`."""
    connect()
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import ControllerError, PreemptionError, WorkerGroupError

    elastic = config.scaling.min_workers is not None
    if elastic:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_ELASTIC_START_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", str(_DRAIN_POLL_S))
    missing = missing_resources(ray.cluster_resources(), config.scaling, num_workers)
    if missing:  # no error yet: the cluster may grow
        log.warning("%s; waiting for them", missing)
    # Ray's own files need storage that all nodes share; our checkpoints aren't among them.
    config.run.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=config.run.folder) as storage:
        trainer = _trainer(worker, arguments, config, num_workers, storage)
        try:
            return _in_thread(trainer.fit, while_waiting).return_value
        except WorkerGroupError as error:
            raise workers_failed(error.worker_failures) from error
        except PreemptionError as error:
            raise nodes_drained(error.preemption_info.preempted_ranks) from error
        except ControllerError as error:
            reason = f"Ray couldn't start the workers: {missing or error.controller_failure}"
            raise (WorkerLostError if elastic else UserError)(reason) from error
        except (RayActorError, OutOfMemoryError) as error:
            if is_own():
                _remove_placement_groups()
            raise WorkerLostError(f"Ray Train's controller was lost: {reason_of(error)}") from error


def failure_config(*, elastic: bool) -> Any:
    """Ray Train restarts nothing that has trained: our supervisor alone does, and counts.

    By its own defaults it restarts without limit, and without a message, when a node is drained.
    """
    from ray.train import FailureConfig

    return FailureConfig(
        max_failures=0,
        max_preemption_failures=0,
        controller_failure_limit=0 if elastic else _START_RETRIES,
    )


def _trainer(
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    config: Config,
    num_workers: int,
    storage: str,
) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ray_jobs._torch_backend import WorkerTorchConfig

    scaling = config.scaling
    # In a Ray of our own, which has no dashboard, `_remove_placement_groups` does it.
    kind = without_cleaner(TorchTrainer) if is_own() else TorchTrainer
    return kind(
        _work,
        train_loop_config={
            "worker": worker,
            "arguments": arguments,
            "use_gpu": scaling.use_gpu,
            "columns": terminal_columns(),
        },
        torch_config=WorkerTorchConfig(
            backend=backend_for(scaling.use_gpu), timeout_s=int(scaling.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=dict(scaling.resources_per_worker),
        ),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=storage,
            failure_config=failure_config(elastic=scaling.min_workers is not None),
        ),
    )


def _work(settings: dict[str, Any]) -> Any:
    """Runs inside each worker, after Ray Train has made the process group."""
    set_up_worker_logging(settings["columns"])
    # Ray Train shows each worker all GPUs that the workers of its node were given.
    device = device_for(settings["use_gpu"], int(os.environ["LOCAL_RANK"]))
    context = WorkerContext.from_process_group(device)
    context = replace(context, preemption_notice=partial(notice, context.rank))
    return settings["worker"](context, **settings["arguments"])


def _in_thread(action: Callable[[], Any], while_waiting: Callable[[], None]) -> Any:
    """Run `action` in a thread; Ray would handle signals itself if it ran in the main thread.

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


def _remove_placement_groups() -> None:
    """Free what a dead controller of Ray Train reserved, in a Ray that nobody else uses."""
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name in placement_group_table():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
