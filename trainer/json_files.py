"""JSON files that other programs or earlier versions may have damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file; {} if the file is missing, unreadable or holds no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: brackets nested thousands of levels deep
        return {}
    return value if isinstance(value, dict) else {}
