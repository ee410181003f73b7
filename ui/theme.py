"""Style, script and Gradio theme of the page: `style/*.css` and `script/*.js` are joined into one file each.

Each file belongs to one tab; `paper.css` has the colours, `page.css` and `page.js` the head, `refresh.js` the
updates. The script is served as a file, because the Content Security Policy allows no inline script. Each
file runs once, in a block of its own, and listens on `document`, because Gradio replaces the elements inside.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import gradio as gr

_HERE = Path(__file__).resolve().parent


def _files(folder: str, suffix: str) -> dict[str, str]:
    """Returns name -> text of a folder's files."""
    paths = sorted((_HERE / folder).glob(f"*.{suffix}"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def _version(text: str) -> str:
    """Returns a hash for the address of a file, so that browsers can cache it without limit."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_STYLES = _files("style", "css")
LOGIN_CSS = _STYLES["paper"] + _STYLES.pop("login")
LOGIN_HREF = f"login.css?v={_version(LOGIN_CSS)}"
CSS = _STYLES.pop("paper") + "\n".join(_STYLES.values())
_BLOCKS = [f"{{\n{text}\n}}" for text in _files("script", "js").values()]
SCRIPT = '"use strict";\n' + "\n".join(_BLOCKS)
HEAD = (
    f'<script src="./studio.js?v={_version(SCRIPT)}" defer></script>'
    '<link rel="icon" href="./icon.svg" type="image/svg+xml">'
)
# A stroke of paint on paper.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
    '<rect width="64" height="64" rx="14" fill="#f5efe4"/>'
    '<path d="M12 42c6-16 16-26 26-27 8-1 14 4 14 10 0 9-11 8-18 10-9 2-10 8-22 7z" fill="#a4301b"/></svg>'
)

# Variables of Gradio's theme. The colours are variables of paper.css, which has a light and a dark value for
# each.
_COLOURS = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--faint-ink)",
    "background_fill_primary": "var(--sheet)",
    "background_fill_secondary": "var(--paper)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "border_color_accent_subdued": "var(--line)",
    "color_accent_soft": "var(--tint)",
    "link_text_color": "var(--accent)",
    "link_text_color_hover": "var(--accent-deep)",
    "link_text_color_active": "var(--accent)",
    "link_text_color_visited": "var(--accent)",
    "block_background_fill": "var(--sheet)",
    "block_border_color": "var(--line)",
    "block_label_background_fill": "var(--sheet)",
    "block_label_text_color": "var(--ink)",
    "block_label_border_color": "var(--line)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--faint-ink)",
    "panel_background_fill": "var(--sheet)",
    "panel_border_color": "var(--line)",
    "input_background_fill": "var(--sheet)",
    "input_background_fill_focus": "var(--sheet)",
    "input_border_color": "var(--field-line)",
    "input_border_color_focus": "var(--accent)",
    "input_placeholder_color": "var(--faint-ink)",
    "checkbox_background_color": "var(--sheet)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--field-line)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "var(--sheet)",
    "checkbox_label_background_fill_hover": "var(--tint)",
    "checkbox_label_background_fill_selected": "var(--tint)",
    "checkbox_label_border_color": "var(--field-line)",
    "checkbox_label_border_color_selected": "var(--accent)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent-deep)",
    "button_primary_text_color": "var(--on-accent)",
    "button_primary_text_color_hover": "var(--on-accent)",
    "button_primary_border_color": "var(--accent)",
    "button_primary_border_color_hover": "var(--accent-deep)",
    "button_secondary_background_fill": "var(--sheet)",
    "button_secondary_background_fill_hover": "var(--tint)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
    "button_secondary_border_color": "var(--field-line)",
    "button_secondary_border_color_hover": "var(--ink)",
    "button_cancel_background_fill": "var(--sheet)",
    "button_cancel_background_fill_hover": "var(--alarm-tint)",
    "button_cancel_text_color": "var(--alarm)",
    "button_cancel_text_color_hover": "var(--alarm)",
    "button_cancel_border_color": "var(--alarm)",
    "button_cancel_border_color_hover": "var(--alarm)",
    "error_background_fill": "var(--alarm-tint)",
    "error_border_color": "var(--alarm)",
    "error_text_color": "var(--alarm)",
    "slider_color": "var(--accent)",
    "loader_color": "var(--accent)",
    "accordion_text_color": "var(--ink)",
    "table_text_color": "var(--ink)",
    "code_background_fill": "var(--tint)",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
    "block_shadow": "none",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 2px var(--tint)",
}
_SHAPES = {
    "block_radius": "10px",
    "input_radius": "6px",
    "button_large_radius": "7px",
    "button_small_radius": "6px",
    "button_medium_radius": "7px",
    "layout_gap": "18px",
    "block_label_text_weight": "600",
    "block_title_text_weight": "600",
    "button_border_width": "1px",
    "input_border_width": "1px",
    "button_transition": "background-color .15s",
}


def theme() -> gr.Theme:
    """Returns Gradio's theme in the colours of `paper.css`."""
    base = gr.themes.Base(
        primary_hue="orange",
        secondary_hue="stone",
        neutral_hue="stone",
        radius_size="md",
        font=["var(--hand)", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # Some variables have a second one for the dark mode, `<name>_dark`, which must get the same value:
    # otherwise Gradio's own dark colour shows. The theme has no public list of them. `set` has a parameter
    # for each variable, so the names of its parameters are that list.
    known = frozenset(base.set.__code__.co_varnames)
    dark = {f"{name}_dark": value for name, value in _COLOURS.items() if f"{name}_dark" in known}
    return base.set(**{**_COLOURS, **dark, **_SHAPES})
