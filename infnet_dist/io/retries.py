"""Retries of storage operations, with exponential waits between them."""

from collections.abc import Callable

import tenacity


def retrying(
    seconds: float,
    may_pass: Callable[[BaseException], bool],
    *,
    longest_wait_s: float = 10.0,
    before_retry: Callable[[BaseException, float], None] = lambda error, wait_s: None,
) -> tenacity.Retrying:
    """A caller that repeats an action while it fails; `retrying(...)(action, *arguments)`.

    Args:
        seconds: after so many the last error is raised.
        may_pass: whether repeating may help after this error; otherwise it is raised at once.
        longest_wait_s: upper bound of the wait between two attempts.
        before_retry: called with the error and the seconds until the next attempt.
    """

    def before_sleep(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        before_retry(error, state.next_action.sleep)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_exponential(multiplier=0.5, max=longest_wait_s),
        before_sleep=before_sleep,
        reraise=True,
    )


def one_line(error: BaseException) -> str:
    """The error's message in one line; its representation if it has none."""
    return " ".join(str(error).split()) or repr(error)
