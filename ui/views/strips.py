"""HTML of images at several strengths: a strip with a slider, a comparison, a grid of checkpoints.

An image is {"url", "prompt", "strength"}; an image of a grid has "step" too. No gradio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ui.store.drawings import Drawing
from ui.store.library import LoraEntry
from ui.text import Words
from ui.views.html import element, escape, json_attribute, page_url, picture_url, text_element

Pictures = Sequence[dict[str, Any]]


def run_pictures(run: str, pictures: Pictures) -> list[dict[str, Any]]:
    """Returns the images at the end of a training, with their addresses."""
    return [{**picture, "url": page_url(picture_url(run, picture))} for picture in pictures]


def drawn_pictures(drawing: Drawing) -> list[dict[str, Any]]:
    """Returns the images that were generated under Try it, with their addresses."""
    return [
        {**picture, "url": page_url(f"/drawn/{drawing.id}/{quote(picture['file'])}")}
        for picture in drawing.pictures()
    ]


def strip_html(words: Words, pictures: Pictures, *, prefer: str = "") -> str:
    """Returns one image for each prompt and a slider that switches the strength of all; 0 is the base model.

    Args:
        prefer: key of the LoRA whose preferred strength can be set; "" leaves that button out.
    """
    if not pictures:
        return text_element("p", words("try_it.no_strip"), class_="hint")
    prompts, strengths = _axes(pictures)
    at = _start(strengths)
    urls = {(picture["prompt"], picture["strength"]): picture["url"] for picture in pictures}
    labels = [_strength_words(words, strength) for strength in strengths]
    slider = element(
        "input",
        type="range",
        aria_label=words("try_it.strength_label"),
        min=0,
        max=len(strengths) - 1,
        step=1,
        value=at,
        data_labels=json_attribute(labels),
        aria_valuetext=labels[at],
    )
    figures = "".join(
        _figure(prompt, [urls[prompt, strength] for strength in strengths], at) for prompt in prompts
    )
    content = (
        element("div", slider + text_element("output", labels[at]), class_="strength")
        + element("div", figures, class_="strip")
        + (_prefer_button(words, prefer) if prefer else "")
    )
    return element("div", content, class_="tryout", data_strengths=json_attribute(strengths))


def _prefer_button(words: Words, key: str) -> str:
    button = text_element(
        "button", words("try_it.prefer"), type="button", class_="plain prefer", data_key=quote(key)
    )
    unreachable = words("try_it.unreachable")
    message = element("span", class_="message", role="status", data_unreachable=unreachable)
    return element("p", button + message, class_="row")


def compare_html(words: Words, pictures: Pictures) -> str:
    """Returns two strengths of one prompt over each other, with a divider that a slider moves."""
    if not pictures:
        return ""
    prompts, strengths = _axes(pictures)
    by_axes = {(picture["prompt"], picture["strength"]): picture["url"] for picture in pictures}
    urls = [[by_axes[prompt, strength] for strength in strengths] for prompt in prompts]
    before, after = 0, _start(strengths)
    selects = "".join(
        _select(words(f"try_it.{side}"), side, [_strength_words(words, s) for s in strengths], chosen)
        for side, chosen in (("before", before), ("after", after))
    )
    if len(prompts) > 1:
        selects += _select(words("try_it.picture"), "which", [prompt[:80] for prompt in prompts])
    images = "".join(
        element(
            "img",
            class_=layer,
            src=urls[0][n],
            alt=words("try_it.picture_at", prompt=prompts[0], strength=f"{strengths[n]:g}"),
        )
        for layer, n in (("under", before), ("over", after))
    )
    slider = element(
        "input",
        type="range",
        class_="reveal",
        min=0,
        max=100,
        value=50,
        aria_label=words("try_it.reveal"),
        aria_valuetext="50%",
    )
    content = (
        element("div", selects, class_="row")
        + element("div", images, class_="pair")
        + element("div", slider, class_="strength")
    )
    return element("div", content, class_="compare", data_urls=json_attribute(urls))


def _select(label: str, kind: str, options: Sequence[str], chosen: int | None = None) -> str:
    content = "".join(
        text_element("option", option, value=n, selected=n == chosen) for n, option in enumerate(options)
    )
    return element("label", f"{escape(label)} {element('select', content, class_=kind)}")


def grid_html(words: Words, pictures: Pictures, key: str, choice: dict[str, Any]) -> str:
    """Returns a table with a row for each checkpoint and a column for each strength.

    A button below each image makes its checkpoint the LoRA file.

    Args:
        key: of the LoRA.
        choice: {"step", "strength"} of the present file, {} if none was chosen.
    """
    if not pictures:
        return ""
    strengths = sorted({picture["strength"] for picture in pictures})
    cells = {(picture["step"], picture["strength"]): picture for picture in pictures}
    heads = "".join(text_element("th", _strength_words(words, each), scope="col") for each in strengths)
    rows = []
    for step in sorted({picture["step"] for picture in pictures}):
        row = text_element("th", words("try_it.step", step=step), scope="row")
        row += "".join(_grid_cell(words, cells[step, each], key, choice) for each in strengths)
        rows.append(element("tr", row))
    head = element("thead", element("tr", f"<td></td>{heads}"))
    table = element("table", head + element("tbody", "".join(rows)), class_="grid")
    label = words("try_it.grid")
    region = element("div", table, class_="scroll", role="region", tabindex=0, aria_label=label)
    chosen = words("try_it.is_chosen", step=choice["step"], value=f"{choice['strength']:g}") if choice else ""
    unreachable = words("try_it.unreachable")
    return region + text_element("p", chosen, class_="message", role="status", data_unreachable=unreachable)


def _grid_cell(words: Words, picture: dict[str, Any], key: str, choice: dict[str, Any]) -> str:
    step, strength = picture["step"], picture["strength"]
    position = words("try_it.cell", step=step, strength=f"{strength:g}")
    image = element("img", loading="lazy", src=picture["url"], alt=position)
    if not strength:  # strength 0 is the base model, whatever the checkpoint
        return element("td", image)
    is_chosen = choice.get("step") == step and choice.get("strength") == strength
    button = text_element(
        "button",
        words("try_it.use_this"),
        type="button",
        class_="plain choose",
        data_key=quote(key),
        data_step=step,
        data_strength=f"{strength:g}",
        aria_pressed="true" if is_chosen else "false",
        aria_label=f"{words('try_it.use_this')}: {position}",
    )
    return element("td", image + button)


def drawing_html(words: Words, drawing: Drawing | None) -> str:
    """Returns the progress of images that are being generated, or the reason why there are none."""
    if drawing is None:
        return ""
    notes = "".join(text_element("p", note) for note in drawing.notes)
    if drawing.state == "drawn":
        return notes
    if drawing.state == "failed":
        return text_element("div", drawing.message, role="alert", class_="alert")
    line = text_element(
        "div", words(f"try_it.is_{drawing.state}", done=drawing.done, total=drawing.total), role="status"
    )
    bar = preview = ""
    if drawing.is_open:
        label = words("try_it.drawing")
        bar = element("progress", aria_label=label, value=drawing.done, max=max(1, drawing.total))
    # There is no preview before the first step, nor of images that a training generates between its steps.
    if drawing.frame:
        source = page_url(f"/drawn/{drawing.id}/frame.png?at={drawing.done}")
        preview = element("img", class_="rough-preview", alt=words("try_it.rough_preview"), src=source)
    return line + bar + preview + notes


def download_html(words: Words, entry: LoraEntry | None) -> str:
    """Returns the link to a LoRA file and its preferred strength."""
    if entry is None:
        return ""
    name, weight = f"{entry.stem}.safetensors", entry.label.weight
    link = text_element(
        "a",
        words("try_it.download", name=name),
        class_="download",
        href=page_url(f"/download/{quote(entry.key)}"),
        download=name,
    )
    preferred = words("try_it.is_preferred", value=f"{weight:g}") if weight is not None else ""
    return link + text_element("p", preferred, class_="hint")


def _axes(pictures: Pictures) -> tuple[list[str], list[float]]:
    """Returns the prompts in the order of the images and the strengths in ascending order."""
    prompts = list(dict.fromkeys(picture["prompt"] for picture in pictures))
    return prompts, sorted({picture["strength"] for picture in pictures})


def _start(strengths: list[float]) -> int:
    """Returns the index of strength 1, or of the highest strength if 1 is not among them."""
    return strengths.index(1.0) if 1.0 in strengths else len(strengths) - 1


def _figure(prompt: str, urls: list[str], at: int) -> str:
    image = element("img", src=urls[at], data_sources=json_attribute(urls), alt=prompt)
    return element("figure", image + text_element("figcaption", prompt))


def _strength_words(words: Words, strength: float) -> str:
    return words("try_it.base_itself") if strength == 0 else words("try_it.strength", value=f"{strength:g}")
