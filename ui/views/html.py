"""Where the pictures of a run are. No gradio."""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import quote


def picture_url(run: str, picture: dict[str, Any]) -> str:
    """With the time it was made: a browser keeps pictures, and a continued run draws new ones under the same names."""
    return html.escape(
        f"/picture/{quote(run)}/{quote(picture['file'])}?v={picture.get('made', 0)}", quote=True
    )
