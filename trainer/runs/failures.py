"""Classification of failed trainings: a message for the user, a cause, and the setting that would prevent the
failure.

cause        remedy (a change of settings that the page offers as a button)
memory       the cheapest change that saves memory (`reduced_memory_settings`)
not-finite   half the learning rate
base         {"base": None}: the artist chooses another base model
settings     {"precision": "auto"} if fp16 is the reason; otherwise none
pictures     none
disk         none
fault        none; an error that is not foreseen here
"""

from __future__ import annotations

import errno
from typing import Any

from trainer.config import TrainConfig
from trainer.errors import (
    BaseError,
    ConfigError,
    DatasetError,
    MemoryShortError,
    NotFiniteError,
    TrainerError,
    lacks_memory,
)

CAUSES = ("memory", "not-finite", "base", "pictures", "settings", "disk", "fault")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CAUSE_OF_ERROR = (
    (NotFiniteError, "not-finite"),
    (BaseError, "base"),
    (DatasetError, "pictures"),
    (ConfigError, "settings"),
)


def failure_fields(error: BaseException, config: TrainConfig | None) -> dict[str, Any]:
    """Returns the fields `message`, `cause` and `remedy` of the `ended` event.

    The remedy is {setting: value}: {} if no setting would help, and the value None where the artist must
    choose.

    Args:
        config: the settings of the run; None if they can't be read.
    """
    cause = _cause(error)
    return {"message": _message(error, cause), "cause": cause, "remedy": _remedy(error, cause, config)}


def _remedy(error: BaseException, cause: str, config: TrainConfig | None) -> dict[str, Any]:
    if cause == "base":
        return {"base": None}
    if config is None:
        return {}
    if cause == "memory":
        return reduced_memory_settings(config)
    if cause == "not-finite":
        return {"learning_rate": config.learning_rate / 2}
    if cause == "settings" and "precision fp16" in str(error):
        return {"precision": "auto"}
    return {}


def reduced_memory_settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the cheapest change of settings that saves much memory; changes that only cost time come
    first.
    """
    if config.gradient_checkpointing not in ("auto", "all"):
        return {"gradient_checkpointing": "auto"}
    if config.batch > 1:
        return {"batch": config.batch // 2, "accumulation": config.accumulation * 2}
    if config.quantised_base not in ("auto", "nf4"):
        return {"quantised_base": "auto"}
    # Activation memory is proportional to the area: three quarters of the side leave 56 %. Sides are
    # multiples of 64.
    side = config.resolution or 1024
    return {"resolution": max(64, int(side * 0.75) // 64 * 64)}


def _cause(error: BaseException) -> str:
    if isinstance(error, MemoryShortError) or lacks_memory(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "disk"
    return next((cause for kind, cause in _CAUSE_OF_ERROR if isinstance(error, kind)), "fault")


def _message(error: BaseException, cause: str) -> str:
    if isinstance(error, TrainerError):
        return str(error)
    if cause == "memory":
        return (
            "not enough memory; the caches and every checkpoint are kept: close other programs and "
            "resume, or train again with a smaller batch or resolution, gradient_checkpointing all, or "
            "quantised_base int8"
        )
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return (
            "the disk takes no file as large as this one; choose another disk, or a smaller rank: "
            "the last checkpoint is kept"
        )
    if cause == "disk":
        return "the disk is full; free some space and resume: the last checkpoint is kept"
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return (
            f"a file can't be written or read ({error.strerror}{name}); "
            "repair that and resume: the last checkpoint is kept"
        )
    return f"unexpected error ({type(error).__name__}); see trainer.log in the run's folder"
