"""The parts of Ray that we use and that Ray doesn't promise to keep, all in one place.

Each is looked up when it is needed. If a later Ray lacks it, the function here says which part and
which version, or does without. `tests/unit/test_ray_internals.py` fails first, with the same words.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from infnet_dist.errors import UserError

TESTED_WITH = "2.60.0"
# Worker failures that Ray Train's controller makes, by name: their module is private.
LOST_WORKER_ERRORS = frozenset({"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError"})
# The actor that frees a dead controller's resources.
CLEANER_CALLBACK = "PlacementGroupCleanerCallback"
# The handler that prints the output of workers.
PRINTS_WORKER_LINES = "ray_print_logs"


def free_resources_by_node() -> Sequence[Mapping[str, float]]:
    """The free resources of each node, without nodes that are being drained.

    Ray's public functions give totals of nodes, and free resources of the whole cluster alone.

    Raises:
        UserError: this Ray doesn't tell.
    """
    import ray

    free = _find("ray._private.state", "available_resources_per_node")()
    draining = _find("ray._private.state", "state").get_draining_nodes()
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [each for node, each in free.items() if node in alive and node not in draining]


def preemption_info() -> Any:
    """Ray Train's `PreemptionInfo` of this worker's group, in a worker; None without a notice.

    Ray's public function of this is a barrier of all workers through an actor; this reads what the
    watcher of the group has sent. With a later Ray that keeps it elsewhere, there is no notice, and
    a node that is drained is lost at its deadline.
    """
    with suppress(UserError, AttributeError, RuntimeError):
        context = _find("ray.train.v2._internal.execution.context", "get_train_context")()
        return context.preemption_context.preemption_info
    return None


def keep_to_loopback() -> None:
    """Let a Ray that is started by this process listen on 127.0.0.1, and nowhere else.

    Despite its name, the variable has this effect on all systems (`_local_ray.py`). Ray reads it
    when it is imported, which may have happened already.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    constants = "ray._private.ray_constants"
    _find(constants, "ENABLE_RAY_CLUSTER")
    vars(importlib.import_module(constants))["ENABLE_RAY_CLUSTER"] = False


def filter_worker_lines(
    takes: Callable[[str], bool], printing: Callable[[], AbstractContextManager[None]]
) -> None:
    """Print the output of workers without some of its lines.

    With a later Ray that prints in another way, all lines are printed.

    Args:
        takes: called with each line; those for which it returns True aren't printed.
        printing: entered while the others are.
    """
    with suppress(UserError, AttributeError, KeyError):
        dispatcher = _find("ray._private.ray_logging", "global_worker_stdstream_dispatcher")
        print_lines = dict(dispatcher.handlers)[PRINTS_WORKER_LINES]

        def print_rest(data: Mapping[str, Any]) -> None:
            if rest := [line for line in data["lines"] if not takes(line)]:
                with printing():
                    print_lines({**data, "lines": rest})

        dispatcher.remove_handler(PRINTS_WORKER_LINES)
        dispatcher.add_handler(PRINTS_WORKER_LINES, print_rest)


def without_cleaner(trainer: type[Any]) -> type[Any]:
    """A class of trainers without the actor that frees the resources of a dead controller.

    That actor asks Ray's dashboard each second, and where there is none it only prints warnings.
    With a later Ray that names it otherwise, the warnings are back.
    """

    class Trainer(trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ != CLEANER_CALLBACK]

    return Trainer


def _find(module: str, name: str) -> Any:
    import ray

    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(
            f"Ray {ray.__version__} has no {module}.{name}, which Ray {TESTED_WITH} has; install "
            f"ray=={TESTED_WITH}"
        ) from None
