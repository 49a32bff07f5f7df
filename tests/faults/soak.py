"""Injects faults at random into one long run, and compares its end with an undisturbed run.

    python -m tests.faults.soak [--minutes 30] [--seed 0] [--folder DIR]     (make soak MINUTES=30)

The faults, one every few seconds: a worker or the main process killed, a worker stopped so that it
hangs, a signal to stop, the newest checkpoint damaged. Once the minutes are over the run may end.
Then no row may be lost or doubled, every checkpoint must be intact, and weights, optimizer state
and log must be those of the undisturbed run, bit for bit.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from infnet_dist import checkpoint
from tests.faults.kit import Ended, Job, Running
from tests.runs import make_tiny_set

EPOCHS_PER_MINUTE = 12
FAULTS = ("kill a worker", "kill the main process", "stop a worker", "signal", "damage")
WEIGHTS = (6, 2, 1, 2, 2)


def main() -> None:
    """Make the data, soak, compare, print what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        data = make_tiny_set(folder / "data")
        epochs = max(1, int(arguments.minutes * EPOCHS_PER_MINUTE))
        training = {"log_every_steps": 7, "epochs": epochs}
        # Faults may come before any progress: only an end without progress at all would be wrong.
        scaling = {"num_workers": 2, "hang_timeout_s": 5.0, "max_failures": 50}
        undisturbed = Job(folder / "undisturbed", data, training=training, scaling=scaling)
        undisturbed.check(undisturbed.start().wait(timeout_s=3_600))
        print("the undisturbed run has ended; the faults begin", flush=True)
        job = Job(folder / "disturbed", data, training=training, scaling=scaling)
        done, ended = soak(job, random.Random(arguments.seed), 60 * arguments.minutes)
        job.check(ended)
        job.assert_same(undisturbed)
        steps, exact = len(job.ledger_lines()) // 2, len(undisturbed.ledger_lines()) // 2
        print(f"faults: {sum(done.values())}: " + ", ".join(f"{n} x {k}" for k, n in done.items()))
        print(f"steps: {exact:,} in the undisturbed run, {steps:,} here (the lost are made again)")
        print("rows lost or doubled: 0; weights, optimizer state and log: equal bit for bit")


def soak(job: Job, chance: random.Random, seconds: float) -> tuple[Counter[str], Ended]:
    """Disturb the run for so long; start it again whenever it has ended; until it is done."""
    done: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while True:
        running = job.start()
        while running.process.poll() is None and time.monotonic() < deadline:
            time.sleep(chance.uniform(1.0, 9.0))
            if running.process.poll() is None and job.workers():
                fault = chance.choices(FAULTS, WEIGHTS)[0]
                if inject(fault, job, running, chance):
                    done[fault] += 1
                    print(f"{fault}: {sum(done.values())} so far", flush=True)
        ended = running.wait(timeout_s=3_600)
        if ended.code == 0:
            return done, ended
        assert ended.code in (-9, 130, 143), ended.text[-3_000:]


def inject(fault: str, job: Job, running: Running, chance: random.Random) -> bool:
    """Do it; False if there was nothing to do it to."""
    try:
        if fault == "kill a worker":
            chance.choice(job.workers()).kill()
        elif fault == "stop a worker":
            chance.choice(job.workers()).suspend()
        elif fault == "kill the main process":
            running.send(signal.SIGKILL)
        elif fault == "signal":
            running.send(chance.choice((signal.SIGINT, signal.SIGTERM)))
        else:
            return damage(job, chance)
    except (psutil.Error, IndexError):
        return False
    return True


def damage(job: Job, chance: random.Random) -> bool:
    """Flip a bit in a tensor file of the newest checkpoint, unless it is the only one."""
    complete = checkpoint.complete_checkpoints(job.checkpoints)
    if len(complete) < 2:
        return False
    path = chance.choice(sorted(Path(complete[-1].url).glob("*.safetensors")))
    try:
        content = bytearray(path.read_bytes())
        content[-1 - chance.randrange(len(content) // 2)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        job.damaged.add(path.parent.name)
    except OSError:  # it went meanwhile
        return False
    return True


if __name__ == "__main__":
    main()
