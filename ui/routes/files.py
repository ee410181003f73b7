"""Responses with a file, and the 404 that gives no reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastapi import HTTPException
from fastapi.responses import FileResponse

from trainer.errors import TrainerError

T = TypeVar("T")
CACHED = {"Cache-Control": "private, max-age=3600"}


def found_or_404(find: Callable[[], T]) -> T:
    """Returns the result of `find`, such as a path.

    Raises:
        HTTPException: 404 without a reason, so that a file that doesn't exist and one of another user look the same.
    """
    try:
        return find()
    except (TrainerError, OSError, ValueError):
        raise HTTPException(404, "not found") from None


def picture_response(find: Callable[[], Path], media_type: str) -> FileResponse:
    """Returns the picture that `find` returns; a browser may cache it for an hour. Raises HTTPException."""
    return FileResponse(found_or_404(find), media_type=media_type, headers=CACHED)
