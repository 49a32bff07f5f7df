"""The heartbeat of this process: code that may take long beats, and the watchdog counts the beats.

There is one per process, so nothing needs to be passed to the code that beats.
"""

_beats, _step, _activity = 0, 0, "start"


def beat(activity: str | None = None, step: int | None = None) -> None:
    """Report progress, from any thread.

    Args:
        activity: what the main thread begins to do, e.g. "saving"; None: no change.
        step: the training step that it begins, from 1; None: no change.
    """
    global _beats, _step, _activity
    _activity = _activity if activity is None else activity
    _step = _step if step is None else step
    _beats += 1


def current() -> tuple[int, int, str]:
    """The number of beats, the step and the activity."""
    return _beats, _step, _activity
