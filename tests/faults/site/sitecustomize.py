"""Injects one fault into a real job: Python runs this at the start of every process of the job.

INFNET_FAULTS holds JSON: a list of faults, each with
    point   where: see `_POINTS`
    action  kill (SIGKILL), sigterm, stop (SIGSTOP), sleep, nap (for `seconds`), exit, raise,
            memory (none left), full (no space left, for `seconds`), oom (the kernel kills it, for
            it takes more memory than the cgroup at `place` has), eat (3 GiB, and keep it)
    rank    of the worker; -1: any
    step    of training, the first is 1, or of the checkpoint; 0: any
    once    a file that is made when the fault strikes; it doesn't strike if the file is there
INFNET_LEDGER is a folder that gets a line for each step of each rank.
"""

import errno
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time

_FAULTS = json.loads(os.environ.get("INFNET_FAULTS", "[]"))
_LEDGER = os.environ.get("INFNET_LEDGER")
_now = {"rank": -1, "step": 0, "saving": 0}


def strike(point, clock="step"):
    """Do what the first fault of this point, rank and step says."""
    for fault in _FAULTS:
        here = fault["rank"] in (-1, _now["rank"]) and fault["step"] in (0, _now[clock])
        if fault["point"] != point or not here:
            continue
        try:
            os.close(os.open(fault["once"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if fault["action"] != "full":
                continue
            if time.time() - os.path.getmtime(fault["once"]) > fault["seconds"]:
                continue  # there is room again
        act(fault)


def act(fault):
    action = fault["action"]
    if action in ("kill", "sigterm", "stop"):
        signals = {"kill": signal.SIGKILL, "sigterm": signal.SIGTERM, "stop": signal.SIGSTOP}
        os.kill(os.getpid(), signals[action])
        time.sleep(0.2 if action == "sigterm" else 60)
    elif action == "sleep":
        time.sleep(600)
    elif action == "nap":
        time.sleep(fault["seconds"])
    elif action == "exit":
        os._exit(17)
    elif action == "memory":
        raise MemoryError("can't allocate 8 TiB")
    elif action == "oom":
        with open(f"{fault['place']}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
        take(2**30)
    elif action == "eat":
        take(3 * 2**30)
        time.sleep(60)
    elif action == "raise":
        raise KeyError("a bug")
    elif action == "full":
        raise OSError(errno.ENOSPC, "No space left on device")


def take(size):
    memory = bytearray(size)
    for page in range(0, size, 4096):
        memory[page] = 1
    _taken.append(memory)


def around(function, point, also=lambda *a, **k: None, clock="step"):
    def wrapped(*args, **kwargs):
        also(*args, **kwargs)
        strike(point, clock)
        return function(*args, **kwargs)

    return wrapped


def patch_trainer(module):
    import torch

    def enter(step):
        _now.update(rank=step._context.rank, step=step._next().step + 1)

    def note(step, batch):
        if _LEDGER:
            line = {key: _now[key] for key in ("rank", "step")} | {"epoch": batch.rows.epoch}
            line |= {"intervals": batch.rows.intervals, "attempt": _attempt()}
            line["time"] = time.time()
            with open(f"{_LEDGER}/{os.getpid()}.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    step = sys.modules["infnet_dist.training.step"].Step
    step.zero_grad = around(step.zero_grad, "step", enter)
    step.forward = around(step.forward, "", note)
    module.evaluate = around(module.evaluate, "evaluate")
    torch.Tensor.backward = around(torch.Tensor.backward, "backward")


def patch_saving(module):
    def enter(self, shards, metadata):
        _now.update(rank=self._context.rank, saving=metadata.progress.step)

    writer = module.CheckpointWriter
    writer.write = around(writer.write, "begin", enter, "saving")
    module.write_file = around(module.write_file, "save", clock="saving")
    module.prune = around(module.prune, "prune", clock="saving")
    put = module.Folder.put

    def putting(self, name, content):
        if name == "manifest.json":
            strike("manifest", "saving")
        return put(self, name, content)

    module.Folder.put = putting


def patch_loading(module):
    module.TensorReader.fill = around(module.TensorReader.fill, "load")


def _attempt():
    """When this worker began to train, and the port of its process group: one for all ranks."""
    if os.getpid() not in _starts:  # forked processes share all that was imported before
        from torch.distributed import distributed_c10d

        store = distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        _starts[os.getpid()] = time.time(), store.port
    return _starts[os.getpid()]


_starts = {}
_taken = []
_POINTS = {
    "infnet_dist.training.trainer": patch_trainer,  # step, backward, evaluate
    "infnet_dist.checkpoint.writing": patch_saving,  # save, manifest, prune
    "infnet_dist.checkpoint.loading": patch_loading,  # load
}


class _Finder(importlib.abc.MetaPathFinder):
    """Patches modules once they are imported."""

    def find_spec(self, name, path, target=None):
        if name not in _POINTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def patched(module):
            run(module)
            _POINTS[name](module)

        spec.loader.exec_module = patched
        return spec


if _FAULTS or _LEDGER:
    sys.meta_path.insert(0, _Finder())
