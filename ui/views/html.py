"""HTML that all views share: the one escape, elements, and addresses of pictures. No gradio."""

from __future__ import annotations

import html
import json
from typing import Any
from urllib.parse import quote

_VOID = frozenset({"img", "input"})  # elements without content and end tag


def escape(text: str) -> str:
    """Escapes text for use between tags and in quoted attributes."""
    return html.escape(text, quote=True)


def element(name: str, content: str = "", /, **attributes: str | float | bool | None) -> str:
    """Returns an element as HTML.

    Args:
        content: HTML, so text in it must be escaped already.
        attributes: escaped here. `class_` and `for_` lose their underscore, in other names `_` becomes `-`.
            True stands for an attribute without a value; None and False leave the attribute out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    tag = f"<{' '.join(parts)}>"
    return tag if name in _VOID else f"{tag}{content}</{name}>"


def text_element(name: str, text: str, /, **attributes: str | float | bool | None) -> str:
    """Returns an element that contains only `text`, which is escaped here."""
    return element(name, escape(text), **attributes)


def json_attribute(value: Any) -> str:
    """Returns a value as JSON for a `data-` attribute, which the page's script parses."""
    return json.dumps(value, ensure_ascii=False)


def picture_path(project: str, name: str) -> str:
    """Returns the part of an address that names a picture of a project; `name` may have folders."""
    return f"{quote(project, safe='')}/{quote(name)}"


def page_url(path: str) -> str:
    """Returns an address for use in the page, from a path of the studio such as `/icon.svg`.

    Browsers resolve it against the page's `<base>`, which the guard sets, so that the studio also works under a
    sub-path of another server. No page, script or style may use an address that begins with a slash.
    """
    return f".{path}"


def picture_url(run: str, picture: dict[str, Any]) -> str:
    """Returns the path of a run's picture in the studio, not escaped.

    It contains the time when the file was written: browsers cache pictures, and a continued run writes new
    ones under the same names.
    """
    return f"/picture/{quote(run)}/{quote(picture['file'])}?v={picture.get('made', 0)}"
