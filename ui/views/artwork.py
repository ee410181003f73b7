"""What the Artwork tab shows, as HTML: pictures as cards with their crop and findings; every name and caption escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping
from urllib.parse import quote

from trainer.dataset.buckets import Placement
from trainer.dataset.checks import KINDS, Finding
from ui.store.intake import IntakeProgress
from ui.store.picture_checks import PictureReport
from ui.store.projects import ProjectPicture
from ui.text import Words

SPARE = 0.005  # share of a picture's area: less is no crop worth showing
_SIDE = 230  # px of a card's picture
_NAMED = 12  # pictures of a finding that are named in the list; the cards name all


def escaped(text: str) -> str:
    return html.escape(text, quote=True)


def place_of(project: str, name: str) -> str:
    """A picture's part of an address."""
    return f"{quote(project, safe='')}/{quote(name)}"


def cards_html(words: Words, project: str, cards: list[ProjectPicture], report: PictureReport) -> str:
    """All pictures; the page's script removes them, moves their crops, counts their repeats and opens the mask brush."""
    if not cards:
        return f'<p class="hint empty">{escaped(words("artwork.empty"))}</p>'
    faults: dict[str, list[Finding]] = {}
    for finding in report.findings:
        faults.setdefault(finding.picture, []).append(finding)
    items = "".join(_card(words, project, card, report, faults.get(card.name, [])) for card in cards)
    said = {"failed": words("artwork.no_answer"), "saved": words("artwork.saved")}
    return f'<ul class="pictures" {_data(said)}>{items}</ul>'


def _data(values: Mapping[str, str]) -> str:
    return " ".join(f'data-{key}="{escaped(value)}"' for key, value in values.items())


def _card(
    words: Words, project: str, card: ProjectPicture, report: PictureReport, faults: list[Finding]
) -> str:
    name, place, size = escaped(card.name), escaped(place_of(project, card.name)), report.sizes.get(card.name)
    width, height = shown_size(size, _SIDE)
    alt = escaped(f"{card.name}: {card.caption}"[:150] if card.caption else card.name)
    crop = _crop(words, card, place, size, report.placements.get(card.name))
    pixels = f" <span>{size[0]} × {size[1]}</span>" if size else ""
    caption = (
        f'<p class="words">{escaped(card.caption)}</p>'
        if card.caption
        else f'<p class="words none">{escaped(words("artwork.no_caption"))}</p>'
    )
    listed = "".join(f"<li>{escaped(finding_words(words, finding))}</li>" for finding in faults)
    masked = f'<span class="masked">{escaped(words("artwork.masked"))}</span>' if card.mask else ""
    times, mask, remove = (
        escaped(words(f"artwork.{key}", name=card.name)) for key in ("repeats_of", "mask_of", "remove_of")
    )
    return (
        f'<li class="picture{" faulty" if faults else ""}" data-place="{place}" data-name="{name}">'
        f'<div class="frame"><img src="/thumb/{place}?v={card.version}" alt="{alt}" width="{width}" height="{height}" loading="lazy">{crop}</div>'
        f'<p class="file">{name}{pixels} {masked}</p>{caption}'
        + (f'<ul class="faults">{listed}</ul>' if listed else "")
        + f'<div class="acts"><label title="{times}">{escaped(words("artwork.repeats"))} '
        f'<input type="number" class="repeats" min="1" max="100" step="1" value="{card.choice.repeats}" aria-label="{times}"></label>'
        f'<button type="button" class="mask" data-mask="{card.mask}" aria-label="{mask}">{escaped(words("artwork.mask"))}</button>'
        f'<button type="button" class="remove" aria-label="{remove}">{escaped(words("artwork.remove"))}</button></div>'
        f'<span class="said" role="status"></span></li>'
    )


def shown_size(size: tuple[int, int] | None, side: int) -> tuple[int, int]:
    """(width, height) within a square of `side` px; the square itself for a picture whose own size is not known."""
    width, height = size or (side, side)
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _crop(
    words: Words, card: ProjectPicture, place: str, size: tuple[int, int] | None, at: Placement | None
) -> str:
    """What the bucket keeps, drawn over the picture in its own pixels, and moved like a slider along the side that has room."""
    if size is None or at is None or at.cropped_share < SPARE:
        return ""
    scale = size[0] / at.resized[0], size[1] / at.resized[1]
    box = [
        round(value, 1)
        for value in (
            at.crop_left * scale[0],
            at.crop_top * scale[1],
            at.bucket[0] * scale[0],
            at.bucket[1] * scale[1],
        )
    ]
    spare = at.resized[0] - at.bucket[0], at.resized[1] - at.bucket[1]
    axis = 0 if spare[0] >= spare[1] else 1
    share = card.choice.crop or (0.5, 0.5)
    return (
        f'<svg class="crop" viewBox="0 0 {size[0]} {size[1]}" role="slider" tabindex="0" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{round(100 * share[axis])}" aria-orientation="{("horizontal", "vertical")[axis]}" '
        f'aria-label="{escaped(words("artwork.crop_of", name=card.name, percent=max(1, round(100 * at.cropped_share))))}" '
        f'data-place="{place}" data-axis="{"xy"[axis]}" data-share="{share[axis]}" data-box="{" ".join(map(str, box))}">'
        f'<path class="cut" fill-rule="evenodd" d="{crop_path(size, box)}"/>'
        f'<rect class="kept" x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}"/></svg>'
    )


def crop_path(size: tuple[int, int], box: list[float]) -> str:
    """The picture's outline and the kept part's within it."""
    return f"M0 0H{size[0]}V{size[1]}H0ZM{box[0]} {box[1]}h{box[2]}v{box[3]}h{-box[2]}Z"


def finding_words(words: Words, finding: Finding) -> str:
    """What the doctor found, in the visitor's language."""
    values = dict(finding.values)
    if "corner" in values:
        values["corner"] = words(f"artwork.corner_{values['corner'].replace(' ', '_')}")
    return words(f"artwork.found_{finding.kind}", **values)


def findings_html(words: Words, report: PictureReport, *, unfinished: bool = False) -> str:
    """Every kind of finding with its count, the pictures' names folded below it; 'fine' only once all are looked at."""
    rows = []
    for kind in KINDS:
        of_kind = [finding for finding in report.findings if finding.kind == kind]
        if not of_kind:
            continue
        if kind == "few":
            rows.append(f"<li>{escaped(finding_words(words, of_kind[0]))}</li>")
            continue
        named = "".join(
            f"<li><b>{escaped(f.picture)}</b> {escaped(finding_words(words, f))}</li>"
            for f in of_kind[:_NAMED]
        )
        more = (
            f"<li>{escaped(words('artwork.more', count=len(of_kind) - _NAMED))}</li>"
            if len(of_kind) > _NAMED
            else ""
        )
        rows.append(
            f"<li><details><summary>{escaped(words(f'artwork.kind_{kind}', count=len(of_kind)))}</summary><ul>{named}{more}</ul></details></li>"
        )
    if rows:
        return f'<h3>{escaped(words("artwork.checks_title"))}</h3><ul class="findings">{"".join(rows)}</ul>'
    return (
        f'<p class="sound">{escaped(words("artwork.checks_passed"))}</p>'
        if report.sizes and not unfinished
        else ""
    )


def removed_html(words: Words, project: str, names: list[str]) -> str:
    """Pictures taken out, each with a button that brings it back."""
    if not names:
        return ""
    items = []
    for name in names:
        place = escaped(place_of(project, name))
        label = escaped(words("artwork.restore_of", name=name))
        items.append(
            f'<li data-place="{place}"><img src="/thumb-removed/{place}" alt="{escaped(name)}" width="96" height="96" loading="lazy">'
            f"<span>{escaped(name)}</span>"
            f'<button type="button" class="restore" aria-label="{label}">{escaped(words("artwork.restore"))}</button></li>'
        )
    title = escaped(words("artwork.removed", count=len(names)))
    return f'<details class="removed"><summary>{title}</summary><ul>{"".join(items)}</ul></details>'


def arrivals_html(words: Words, arrivals: IntakeProgress | None) -> str:
    """How a drop stands, and what of it was left out and why."""
    if arrivals is None:
        return ""
    if arrivals.ended:
        line = words("artwork.arrived", kept=arrivals.kept)
    else:
        line = words("artwork.arriving", done=arrivals.done, total=arrivals.total)
    bar = (
        ""
        if arrivals.ended
        else f'<progress aria-label="{escaped(line)}" value="{arrivals.done}" max="{max(1, arrivals.total)}"></progress>'
    )
    problems = list(arrivals.problems)
    listed = "".join(f"<li>{escaped(problem)}</li>" for problem in problems)
    left_out = (
        f'<div role="alert" class="alert">{escaped(words("artwork.left_out", count=len(problems)))}<ul>{listed}</ul></div>'
        if problems
        else ""
    )
    return f'<p role="status" class="arrivals">{escaped(line)}</p>{bar}{left_out}'
