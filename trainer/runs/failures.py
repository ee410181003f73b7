"""How a training failed, for the page: a sentence, its cause, and the one setting whose change would mend it."""

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

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CAUSES = ("memory", "not-finite", "base", "pictures", "settings", "disk", "fault")


def failure(error: BaseException, config: TrainConfig | None) -> dict[str, Any]:
    """Facts for the `ended` event: `message`, `cause` (one of CAUSES), and `remedy`, {setting: value}.

    A remedy's value is None where the artist must choose; the remedy is empty where no setting would help.
    """
    cause = _cause(error)
    remedy: dict[str, Any] = {}
    if cause == "base":
        remedy = {"base": None}
    elif config and cause == "memory":
        remedy = reduced_memory_settings(config)
    elif config and cause == "not-finite":
        remedy = {"learning_rate": config.learning_rate / 2}
    elif config and cause == "settings" and "precision fp16" in str(error):
        remedy = {"precision": "auto"}
    return {"message": _message(error, cause), "cause": cause, "remedy": remedy}


def reduced_memory_settings(config: TrainConfig) -> dict[str, Any]:
    """The cheapest change that needs notably less memory: what costs only time comes before what costs quality."""
    if config.gradient_checkpointing not in ("auto", "all"):
        return {"gradient_checkpointing": "auto"}
    if config.batch > 1:
        return {"batch": config.batch // 2, "accumulation": config.accumulation * 2}
    if config.quantised_base not in ("auto", "nf4"):
        return {"quantised_base": "auto"}
    # Memory falls with the area: three quarters of the side are 56 % of it. Sides are multiples of 64.
    side = config.resolution or 1024
    return {"resolution": max(64, int(side * 0.75) // 64 * 64)}


def _cause(error: BaseException) -> str:
    if isinstance(error, MemoryShortError) or lacks_memory(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in _FULL:
        return "disk"
    kinds = (
        (NotFiniteError, "not-finite"),
        (BaseError, "base"),
        (DatasetError, "pictures"),
        (ConfigError, "settings"),
    )
    return next((cause for kind, cause in kinds if isinstance(error, kind)), "fault")


def _message(error: BaseException, cause: str) -> str:
    if isinstance(error, TrainerError):
        return str(error)
    if cause == "memory":
        return (
            "memory ran out; the caches and every checkpoint are kept: close other programs and go on, "
            "or train again with a smaller batch or resolution, gradient_checkpointing all, or quantised_base int8"
        )
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "the disk takes no file as large as this one; choose another disk, or a smaller rank: the last checkpoint is kept"
    if cause == "disk":
        return "the disk is full; free some space and go on: the last checkpoint is kept"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"a file can't be written or read ({error.strerror}{where}); mend that and go on: the last checkpoint is kept"
    return f"an unexpected fault ({type(error).__name__}); trainer.log in the run's folder says where"
