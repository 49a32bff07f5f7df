"""The parts of Ray that it doesn't promise to keep; a failure here says which Ray broke them."""

import contextlib
import dataclasses
import importlib
import inspect
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import PreemptionError, PreemptionInfo, WorkerGroupError
from ray.train.torch import TorchTrainer

from infnet_dist.errors import UserError
from ray_jobs import _cluster, _ray_internals
from ray_jobs._ray_failures import workers_failed
from ray_jobs._ray_internals import (
    CLEANER_CALLBACK,
    LOST_WORKER_ERRORS,
    PRINTS_WORKER_LINES,
    TESTED_WITH,
)
from ray_jobs._ray_train import failure_config
from ray_jobs._worker_errors import WorkerLostError
from tests.unit.test_structure import imports

RAY = version("ray")
BROKEN = f"Ray {RAY} changed it; ray_jobs/_ray_internals.py works with Ray {TESTED_WITH}"


def part(module: str, name: str) -> object:
    """A part of Ray; fails with the version that lacks it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.fail(f"{module}.{name}: {BROKEN}")


def test_it_is_the_installed_ray_that_is_named() -> None:
    assert RAY == TESTED_WITH, f"run the tests of tests/faults on Ray {RAY}, then set TESTED_WITH"


def test_resources_of_nodes_are_found() -> None:
    assert callable(part("ray._private.state", "available_resources_per_node"))
    assert hasattr(part("ray._private.state", "state"), "get_draining_nodes"), BROKEN


def test_notices_of_preemption_are_found() -> None:
    contexts = "ray.train.v2._internal.execution.context"
    names = {field.name for field in dataclasses.fields(part(contexts, "TrainContext"))}  # type: ignore[arg-type]
    assert callable(part(contexts, "get_train_context")) and "preemption_context" in names, BROKEN
    kind = part("ray.train.v2._internal.execution.preemption", "PreemptionContext")
    assert kind().preemption_info is None, BROKEN  # type: ignore[operator]
    assert _ray_internals.preemption_info() is None, "outside of a worker"


def test_ray_is_kept_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = importlib.import_module("ray._private.ray_constants")
    part("ray._private.ray_constants", "ENABLE_RAY_CLUSTER")
    monkeypatch.setattr(constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    _ray_internals.keep_to_loopback()
    assert constants.ENABLE_RAY_CLUSTER is False
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    taken = inspect.getsource(inspect.unwrap(ray.init))  # by **kwargs
    assert '"_node_ip_address"' in taken and '"_temp_dir"' in taken, BROKEN


def test_lines_of_workers_are_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = inspect.getsource(importlib.import_module("ray._private.worker").connect)
    assert f'"{PRINTS_WORKER_LINES}"' in connecting, BROKEN
    part("ray._private.ray_constants", "RAY_DISABLE_WORKER_LOG_PREFIX")
    kind = type(part("ray._private.ray_logging", "global_worker_stdstream_dispatcher"))
    dispatcher = kind()
    monkeypatch.setattr("ray._private.ray_logging.global_worker_stdstream_dispatcher", dispatcher)
    printed: list[object] = []
    dispatcher.add_handler(PRINTS_WORKER_LINES, printed.append)
    _ray_internals.filter_worker_lines(lambda line: line.startswith("#"), contextlib.nullcontext)
    dispatcher.emit({"lines": ["#1", "a", "#2", "b"], "is_err": True})
    dispatcher.emit({"lines": ["#3"], "is_err": True})
    assert printed == [{"lines": ["a", "b"], "is_err": True}], BROKEN


def test_the_cleaner_is_left_out() -> None:
    assert CLEANER_CALLBACK in callbacks(TorchTrainer), BROKEN
    own = callbacks(_ray_internals.without_cleaner(TorchTrainer))
    assert own == [name for name in callbacks(TorchTrainer) if name != CLEANER_CALLBACK]


def callbacks(kind: type) -> list[str]:
    return [type(c).__name__ for c in kind(print)._create_default_callbacks()]


def test_a_worker_that_does_not_answer_is_a_lost_worker() -> None:
    for name in LOST_WORKER_ERRORS:
        kind = part("ray.train.v2._internal.exceptions", name)
        error = kind.__new__(kind)  # type: ignore[attr-defined]
        Exception.__init__(error, "no answer")
        error._message, error.health_check_failure = "no answer", RayActorError()
        assert isinstance(workers_failed({1: error}), WorkerLostError), name


def test_ray_train_restarts_nothing_by_itself() -> None:
    """By Ray's own policy: a lost worker and a drained node are for the supervisor to count."""
    policies = "ray.train.v2._internal.execution.failure_handling"
    policy_of = part(f"{policies}.default", "DefaultFailurePolicy")
    decision = part(policies, "FailureDecision")
    drain = PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]}))
    gone = WorkerGroupError("gone", {1: RayActorError(error_msg="gone")})
    reclaimed = WorkerGroupError("gone", {1: RayActorError(error_msg="gone", preempted=True)})
    for elastic in (False, True):
        for error in (drain, gone, reclaimed):
            policy = policy_of(failure_config(elastic=elastic))  # type: ignore[operator]
            assert policy.make_decision(error) is decision.RAISE, error  # type: ignore[attr-defined]
    names = {field.name for field in dataclasses.fields(failure_config(elastic=True))}
    assert names >= {"max_failures", "max_preemption_failures", "controller_failure_limit"}, BROKEN


def test_a_part_that_is_missing_is_named() -> None:
    with pytest.raises(UserError) as missing:
        _ray_internals._find("ray._private.state", "no_such_part")
    for named in (RAY, TESTED_WITH, "ray._private.state.no_such_part"):
        assert named in str(missing.value)


def test_only_one_module_names_private_parts() -> None:
    """An import elsewhere would fail without a word on which Ray lacks it."""
    jobs = Path(_cluster.__file__).parent
    found = {
        f"{path.name}:{line} imports {name}"
        for path in jobs.glob("*.py")
        for line, name in imports(path)
        if name.startswith("ray.") and re.search(r"\._(private|internal|raylet)\b|\.v2\.", name)
    }
    assert not found
