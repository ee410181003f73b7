"""HTML of the mask brush, a dialog that ui/script/artwork.js opens. All of it works by keyboard."""

from __future__ import annotations

from ui.text import Words
from ui.views.html import element, escape, text_element


def mask_dialog_html(words: Words) -> str:
    """Returns the closed dialog. The script puts the picture's name into `data-title`."""
    content = (
        element("h3", id="mask-title")
        + text_element("p", words("artwork.mask_hint"), class_="hint")
        + element("div", element("img", alt="") + element("canvas", tabindex=-1), class_="board")
        + _brush(words)
        + _rectangle(words)
        + _ending(words)
    )
    return element(
        "dialog",
        element("form", content, method="dialog"),
        id="mask-dialog",
        aria_labelledby="mask-title",
        data_title=words("artwork.mask_title", name="{name}"),
    )


def _brush(words: Words) -> str:
    brush = element("input", type="range", class_="mask-brush", min=1, max=30, value=6)
    label = element("label", f"{_text(words, 'brush')} {brush}")
    modes = "".join(
        element(
            "label",
            element("input", type="radio", name="mask-way", value=mode, checked=mode == "hide")
            + f" {_text(words, mode)}",
        )
        for mode in ("hide", "show")
    )
    buttons = "".join(_button(words, action) for action in ("all", "none", "invert"))
    return element("div", label + element("fieldset", modes) + buttons, class_="tools")


def _rectangle(words: Words) -> str:
    """Returns the fields of a rectangle in percent, for those who can't paint with a pointer."""
    fields = ""
    for side, value in (("left", 0), ("top", 0), ("width", 100), ("height", 100)):
        field = element("input", type="number", class_=f"mask-{side}", min=0, max=100, step=1, value=value)
        fields += element("label", f"{_text(words, side)} {field}")
    return element("div", fields + _button(words, "box"), class_="tools")


def _ending(words: Words) -> str:
    message = element("span", class_="message", role="status")
    buttons = _button(words, "save", class_="main") + _button(words, "cancel")
    return element("div", buttons + message, class_="tools")


def _button(words: Words, action: str, **attributes: str) -> str:
    return element("button", _text(words, action), type="button", data_do=action, **attributes)


def _text(words: Words, key: str) -> str:
    return escape(words(f"artwork.mask_{key}"))
