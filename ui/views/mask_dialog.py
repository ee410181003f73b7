"""The mask brush, as HTML: a dialog that the page's script opens over one picture. Everything in it works by keyboard."""

from __future__ import annotations

from ui.text import Words
from ui.views.artwork import escaped


def mask_dialog_html(words: Words) -> str:
    say = {
        key: escaped(words(f"artwork.mask_{key}"))
        for key in (
            "hint",
            "brush",
            "hide",
            "show",
            "all",
            "none",
            "invert",
            "left",
            "top",
            "width",
            "height",
            "box",
            "save",
            "cancel",
        )
    }
    title = escaped(words("artwork.mask_title", name="{name}"))
    fields = "".join(
        f'<label>{say[key]} <input type="number" class="mask-{key}" min="0" max="100" step="1" value="{value}"></label>'
        for key, value in (("left", 0), ("top", 0), ("width", 100), ("height", 100))
    )
    return (
        f'<dialog id="mask-dialog" aria-labelledby="mask-title" data-title="{title}"><form method="dialog">'
        f'<h3 id="mask-title"></h3><p class="hint">{say["hint"]}</p>'
        f'<div class="board"><img alt=""><canvas tabindex="-1"></canvas></div>'
        f'<div class="tools"><label>{say["brush"]} <input type="range" class="mask-brush" min="1" max="30" value="6"></label>'
        f'<fieldset><label><input type="radio" name="mask-way" value="hide" checked> {say["hide"]}</label>'
        f'<label><input type="radio" name="mask-way" value="show"> {say["show"]}</label></fieldset>'
        f'<button type="button" data-do="all">{say["all"]}</button><button type="button" data-do="none">{say["none"]}</button>'
        f'<button type="button" data-do="invert">{say["invert"]}</button></div>'
        f'<div class="tools">{fields}<button type="button" data-do="box">{say["box"]}</button></div>'
        f'<div class="tools"><button type="button" class="main" data-do="save">{say["save"]}</button>'
        f'<button type="button" data-do="cancel">{say["cancel"]}</button><span class="said" role="status"></span></div></form></dialog>'
    )
