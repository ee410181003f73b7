"""End of a worker process: whatever happens, the last event of its run says how the work ended.

`train`, captioning and the LoRA tools use it. Three endings are recorded as an `ended` event: the result of
the work ("finished", "stopped"), an error ("failed", with a message) and Ctrl+C ("stopped").
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from typing import Any

from trainer.errors import TrainerError
from trainer.runs.run import Run


def message_only(error: BaseException) -> dict[str, Any]:
    """Fields of the `ended` event for jobs without a remedy: the error's message alone."""
    if isinstance(error, TrainerError):
        return {"message": str(error)}
    return {"message": f"Unexpected error ({type(error).__name__}); see trainer.log in the job's folder"}


def run_to_end(
    run: Run,
    work: Callable[[], str],
    *,
    interrupted: str,
    failure_fields: Callable[[BaseException], dict[str, Any]] = message_only,
) -> str:
    """Calls `work` and appends the `ended` event, then returns the result of `work` or raises its error.

    An error that is no TrainerError is written to `trainer.log` with its traceback and raised as a
    TrainerError, so that the user reads a sentence.

    Args:
        work: returns "finished" or "stopped".
        interrupted: message for Ctrl+C, which says what remains on disk.
        failure_fields: from an error to the fields of the event, of which `message` is one.
    """
    try:
        ending = work()
    except TrainerError as error:
        run.emit("ended", sync=True, how="failed", **failure_fields(error))
        raise
    except KeyboardInterrupt:
        run.emit("ended", sync=True, how="stopped", message=interrupted)
        raise
    except Exception as error:  # the edge of the process: every library error must reach the run's events
        with contextlib.suppress(OSError), (run.path / "trainer.log").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)  # a full disk must not hide the error itself
        fields = failure_fields(error)
        run.emit("ended", sync=True, how="failed", **fields)
        raise TrainerError(fields["message"]) from error
    run.emit("ended", sync=True, how=ending)
    return ending
