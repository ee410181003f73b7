"""HTML of the Artwork tab: cards with crops and findings, removed pictures, and upload progress."""

from __future__ import annotations

from trainer.dataset.buckets import Placement
from trainer.dataset.checks import KINDS, Finding
from ui.store.intake import IntakeProgress
from ui.store.picture_checks import PictureReport
from ui.store.projects import ProjectPicture
from ui.text import Words
from ui.views.html import element, escape, page_url, picture_path, text_element

MIN_CROPPED = 0.005  # share of a picture's area: a smaller crop is not shown
_CARD_SIDE = 230  # px of a card's picture
_MAX_NAMED = 12  # pictures of one kind of finding that the list names; the cards name all
_MAX_ALT = 150  # characters


def cards_html(words: Words, project: str, pictures: list[ProjectPicture], report: PictureReport) -> str:
    """Returns the cards of all pictures. ui/script/artwork.js handles their buttons, crops and masks."""
    if not pictures:
        return text_element("p", words("artwork.empty"), class_="hint empty")
    findings: dict[str, list[Finding]] = {}
    for finding in report.findings:
        findings.setdefault(finding.picture, []).append(finding)
    cards = "".join(
        _card(words, project, picture, report, findings.get(picture.name, [])) for picture in pictures
    )
    unreachable, saved = words("artwork.no_answer"), words("artwork.saved")
    return element("ul", cards, class_="pictures", data_failed=unreachable, data_saved=saved)


def _card(
    words: Words, project: str, picture: ProjectPicture, report: PictureReport, findings: list[Finding]
) -> str:
    path, size = picture_path(project, picture.name), report.sizes.get(picture.name)
    name = escape(picture.name)
    pixels = f" <span>{size[0]} × {size[1]}</span>" if size else ""
    masked = text_element("span", words("artwork.masked"), class_="masked") if picture.mask else ""
    if picture.caption:
        caption = text_element("p", picture.caption, class_="words")
    else:
        caption = text_element("p", words("artwork.no_caption"), class_="words none")
    listed = "".join(text_element("li", finding_words(words, finding)) for finding in findings)
    content = (
        _frame(words, picture, path, size, report.placements.get(picture.name)),
        element("p", f"{name}{pixels} {masked}", class_="file"),
        caption,
        element("ul", listed, class_="faults") if listed else "",
        _actions(words, picture),
        element("span", class_="message", role="status"),
    )
    kind = "picture faulty" if findings else "picture"
    return element("li", "".join(content), class_=kind, data_place=path, data_name=picture.name)


def _frame(
    words: Words,
    picture: ProjectPicture,
    path: str,
    size: tuple[int, int] | None,
    placement: Placement | None,
) -> str:
    """Returns the picture with its crop drawn over it."""
    width, height = fitted_size(size, _CARD_SIDE)
    alt = f"{picture.name}: {picture.caption}"[:_MAX_ALT] if picture.caption else picture.name
    source = page_url(f"/thumb/{path}?v={picture.version}")
    image = element("img", src=source, alt=alt, width=width, height=height, loading="lazy")
    return element("div", image + _crop(words, picture, path, size, placement), class_="frame")


def _actions(words: Words, picture: ProjectPicture) -> str:
    repeats, mask, remove = (
        words(f"artwork.{key}", name=picture.name) for key in ("repeats_of", "mask_of", "remove_of")
    )
    field = element(
        "input",
        type="number",
        class_="repeats",
        min=1,
        max=100,
        step=1,
        value=picture.override.repeats,
        aria_label=repeats,
    )
    label = element("label", f"{escape(words('artwork.repeats'))} {field}", title=repeats)
    mask_button = text_element(
        "button",
        words("artwork.mask"),
        type="button",
        class_="mask",
        data_mask=picture.mask,
        aria_label=mask,
    )
    remove_button = text_element(
        "button", words("artwork.remove"), type="button", class_="remove", aria_label=remove
    )
    return element("div", label + mask_button + remove_button, class_="acts")


def fitted_size(size: tuple[int, int] | None, side: int) -> tuple[int, int]:
    """Returns (width, height) scaled to fit into `side` px; a square if the size is not known yet."""
    width, height = size or (side, side)
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _crop(
    words: Words,
    picture: ProjectPicture,
    path: str,
    size: tuple[int, int] | None,
    placement: Placement | None,
) -> str:
    """Returns the area that the bucket uses, drawn over the picture in the picture's own pixels.

    It works like a slider along the axis on which it can move.
    """
    if size is None or placement is None or placement.cropped_share < MIN_CROPPED:
        return ""
    scale_x, scale_y = size[0] / placement.resized[0], size[1] / placement.resized[1]
    bucket_width, bucket_height = placement.bucket
    box = [
        round(value, 1)
        for value in (
            placement.crop_left * scale_x,
            placement.crop_top * scale_y,
            bucket_width * scale_x,
            bucket_height * scale_y,
        )
    ]
    spare = placement.resized[0] - bucket_width, placement.resized[1] - bucket_height
    axis = 0 if spare[0] >= spare[1] else 1
    share = (picture.override.crop or (0.5, 0.5))[axis]
    percent = max(1, round(100 * placement.cropped_share))
    cut = element("path", class_="cut", fill_rule="evenodd", d=crop_path(size, box))
    frame = element("rect", class_="kept", x=box[0], y=box[1], width=box[2], height=box[3])
    # `viewBox` keeps its capital letter, which keyword arguments of `element` allow.
    return element(
        "svg",
        cut + frame,
        class_="crop",
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="slider",
        tabindex=0,
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=round(100 * share),
        aria_orientation=("horizontal", "vertical")[axis],
        aria_label=words("artwork.crop_of", name=picture.name, percent=percent),
        data_place=path,
        data_axis="xy"[axis],
        data_share=share,
        data_box=" ".join(map(str, box)),
    )


def crop_path(size: tuple[int, int], box: list[float]) -> str:
    """Returns an SVG path of the picture's outline with the crop's outline inside it."""
    return f"M0 0H{size[0]}V{size[1]}H0ZM{box[0]} {box[1]}h{box[2]}v{box[3]}h{-box[2]}Z"


def finding_words(words: Words, finding: Finding) -> str:
    """Returns the sentence of a finding in the visitor's language."""
    values = dict(finding.values)
    if "corner" in values:
        values["corner"] = words(f"artwork.corner_{values['corner'].replace(' ', '_')}")
    if "preset" in values and words.language != "en":  # the English sentence uses the name as it is
        values["preset"] = words(f"train.{values['preset']}")
    return words(f"artwork.found_{finding.kind}", **values)


def findings_html(words: Words, report: PictureReport, *, unfinished: bool = False) -> str:
    """Returns each kind of finding with its count and the names of its pictures.

    Without findings it says that there are none, once all pictures are measured.
    """
    rows = []
    for kind in KINDS:
        findings = [finding for finding in report.findings if finding.kind == kind]
        if not findings:
            continue
        if kind == "few":  # a finding about the set as a whole
            rows.append(text_element("li", finding_words(words, findings[0])))
        else:
            rows.append(_kind_row(words, kind, findings))
    if rows:
        title = text_element("h3", words("artwork.checks_title"))
        return title + element("ul", "".join(rows), class_="findings")
    if report.sizes and not unfinished:
        return text_element("p", words("artwork.checks_passed"), class_="passed")
    return ""


def _kind_row(words: Words, kind: str, findings: list[Finding]) -> str:
    named = "".join(
        element("li", f"<b>{escape(finding.picture)}</b> {escape(finding_words(words, finding))}")
        for finding in findings[:_MAX_NAMED]
    )
    if len(findings) > _MAX_NAMED:
        named += text_element("li", words("artwork.more", count=len(findings) - _MAX_NAMED))
    summary = text_element("summary", words(f"artwork.kind_{kind}", count=len(findings)))
    return element("li", element("details", summary + element("ul", named)))


def removed_html(words: Words, project: str, names: list[str]) -> str:
    """Returns the removed pictures, each with a button that restores it."""
    if not names:
        return ""
    items = []
    for name in names:
        path = picture_path(project, name)
        image = element(
            "img", src=page_url(f"/thumb-removed/{path}"), alt=name, width=96, height=96, loading="lazy"
        )
        button = text_element(
            "button",
            words("artwork.restore"),
            type="button",
            class_="restore",
            aria_label=words("artwork.restore_of", name=name),
        )
        items.append(element("li", image + text_element("span", name) + button, data_place=path))
    summary = text_element("summary", words("artwork.removed", count=len(names)))
    return element("details", summary + element("ul", "".join(items)), class_="removed")


def intake_html(words: Words, progress: IntakeProgress | None) -> str:
    """Returns the progress of an upload, and the files that could not be added with the reason for each."""
    if progress is None:
        return ""
    bar = ""
    if progress.ended:
        line = words("artwork.arrived", kept=progress.kept)
    else:
        line = words("artwork.arriving", done=progress.done, total=progress.total)
        bar = element("progress", aria_label=line, value=progress.done, max=max(1, progress.total))
    problems = list(progress.problems)
    alert = ""
    if problems:
        listed = element("ul", "".join(text_element("li", problem) for problem in problems))
        title = escape(words("artwork.left_out", count=len(problems)))
        alert = element("div", title + listed, role="alert", class_="alert")
    notes = ""
    if progress.notes:
        listed = element("ul", "".join(text_element("li", note) for note in list(progress.notes)))
        notes = element(
            "div", text_element("p", words("artwork.please_check", count=len(progress.notes))) + listed
        )
    return (
        text_element("p", line, role="status", class_="arrivals")
        + bar
        + alert
        + _replaced(words, progress)
        + notes
    )


def _replaced(words: Words, progress: IntakeProgress) -> str:
    """Returns which captions the upload replaced, and how to get them back."""
    names = list(progress.replaced)
    if not names:
        return ""
    listed = element("ul", "".join(text_element("li", name) for name in names[:_MAX_NAMED]))
    if len(names) > _MAX_NAMED:
        listed += text_element("p", words("artwork.more", count=len(names) - _MAX_NAMED))
    line = text_element("p", words("artwork.replaced", count=len(names)))
    return element("div", line + listed, role="status", class_="replaced")
