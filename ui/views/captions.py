"""HTML of the Captions tab: fields beside pictures, the preview of an edit, tags, and captioning."""

from __future__ import annotations

import difflib
import time

from ui.store.caption_edits import CaptionChange
from ui.store.caption_text import WINDOW_TOKENS, estimate_tokens, fused_tags, tag_counts
from ui.store.caption_undo import UndoEntry
from ui.store.captioning import CaptioningStatus
from ui.store.naming import MAX_CAPTION
from ui.store.picture_checks import PictureReport
from ui.store.projects import ProjectPicture
from ui.text import Words
from ui.views.artwork import fitted_size
from ui.views.html import element, escape, page_url, picture_path, text_element

_FIELD_ROWS = 4
_LINE_END = "↵"  # between the lines of a caption in the preview of an edit
_SIDE = 320  # px of a picture beside its caption
_MAX_SHOWN = 30  # changes in the preview, and tags that are joined to the trigger word
_MAX_TAGS = 400
_MAX_NOTES = 20


def captions_html(words: Words, project: str, pictures: list[ProjectPicture], report: PictureReport) -> str:
    """Returns a field beside each picture. ui/script/captions.js saves the fields and handles keys."""
    if not pictures:
        return text_element("p", words("captions.empty"), class_="hint empty")
    items = [
        _item(
            words,
            project,
            picture,
            fitted_size(report.sizes.get(picture.name), _SIDE),
            (number, len(pictures)),
        )
        for number, picture in enumerate(pictures, start=1)
    ]
    # The script puts unsaved text back whenever `data-rendered` changes.
    listed = element(
        "ul",
        "".join(items),
        class_="captions",
        data_rendered=time.time_ns(),
        data_failed=words("captions.unreachable"),
    )
    return text_element("p", words("captions.keys"), class_="hint") + listed


def _item(
    words: Words, project: str, picture: ProjectPicture, size: tuple[int, int], position: tuple[int, int]
) -> str:
    """
    Args:
        size: (width, height) of the shown picture in px.
        position: (number of the picture, number of all pictures).
    """
    path, (number, count) = picture_path(project, picture.name), position
    image = element(
        "img",
        src=page_url(f"/thumb/{path}?v={picture.version}"),
        alt=picture.name,
        loading="lazy",
        width=size[0],
        height=size[1],
    )
    field = text_element(
        "textarea",
        picture.text,
        class_="caption",
        rows=max(_FIELD_ROWS, len(picture.lines) + 1),
        maxlength=MAX_CAPTION,
        data_place=path,
        data_text=picture.text,
        aria_label=words("captions.of", name=picture.name, number=number, count=count),
        placeholder=words("captions.placeholder"),
    )
    label = element("label", text_element("span", picture.name, class_="file") + field)
    saved = element("span", class_="saved", role="status")
    hint = text_element("span", length_hint(words, picture.caption), class_="long")
    message = element("p", f"{saved} {hint}", class_="message")
    return element("li", image + element("div", label + message), class_="captioned")


def length_hint(words: Words, caption: str) -> str:
    """Returns a hint if a caption may have more tokens than training reads, otherwise ""."""
    tokens = estimate_tokens(caption)
    return words("captions.long", tokens=tokens) if tokens > WINDOW_TOKENS else ""


def summary_html(words: Words, pictures: list[ProjectPicture]) -> str:
    """Returns how many pictures have a caption."""
    if not pictures:
        return ""
    written = sum(1 for picture in pictures if picture.caption)
    return text_element("p", words("captions.summary", written=written, count=len(pictures)), role="status")


def tags_html(words: Words, captions: list[str], trigger: str) -> str:
    """Returns all tags with their counts, first those that are joined to the trigger word.

    Each is a button that puts the tag into the field of the chosen edit.
    """
    tags, fused = tag_counts(captions), fused_tags(captions, trigger)
    if not tags:
        return ""
    warning = ""
    if fused:
        listed = "".join(element("li", _tag(words, tag, count)) for tag, count in fused[:_MAX_SHOWN])
        line = text_element("p", words("captions.fused", trigger=trigger))
        warning = element("div", line + element("ul", listed, class_="tags"), class_="fused", role="status")
    listed = "".join(element("li", _tag(words, tag, count)) for tag, count in tags[:_MAX_TAGS])
    summary = text_element("summary", words("captions.tags", count=len(tags)))
    return warning + element("details", summary + element("ul", listed, class_="tags"), class_="all-tags")


def _tag(words: Words, tag: str, count: int) -> str:
    label = words("captions.tag_of", tag=tag, count=count)
    content = f"{escape(tag)} <b>{count}</b>"
    return element("button", content, type="button", class_="tag", data_tag=tag, aria_label=label)


def preview_html(words: Words, changes: list[CaptionChange], is_complete: bool) -> str:
    """Returns the number of captions that an edit would change and the first changes.

    Args:
        is_complete: whether the edit's fields are filled in; without them there is no preview.
    """
    if not is_complete:
        return ""
    rows = "".join(
        element(
            "li",
            f"<b>{escape(change.name)}</b> {_marked(change.before, change.after)}",
        )
        for change in changes[:_MAX_SHOWN]
    )
    if len(changes) > _MAX_SHOWN:
        rows += text_element("li", words("artwork.more", count=len(changes) - _MAX_SHOWN))
    count = text_element("b", words("captions.would", count=len(changes)))
    return element("p", count, role="status") + (element("ul", rows, class_="changes") if rows else "")


def _marked(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    """Returns the lines before and after as one text, word by word, with deletions and insertions marked."""
    old, new = (f" {_LINE_END} ".join(lines).split() for lines in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    parts = []
    for operation, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        deleted, inserted = " ".join(old[old_start:old_end]), " ".join(new[new_start:new_end])
        if operation == "equal":
            parts.append(escape(deleted))
            continue
        if deleted:
            parts.append(text_element("del", deleted))
        if inserted:
            parts.append(text_element("ins", inserted))
    return " ".join(parts)


def edit_words(words: Words, entry: UndoEntry) -> str:
    """Returns the description of an edit that can be or was undone."""
    return words(f"captions.did_{entry.kind}", find=entry.find, text=entry.text)


def progress_html(words: Words, status: CaptioningStatus, fresh: dict[str, str], project: str) -> str:
    """Returns the progress of captioning by a model.

    Args:
        fresh: picture -> caption since the last call, as a hidden list. ui/script/captions.js puts each
            caption into its field, unless somebody is editing that field.
    """
    view = status.view
    if status.is_waiting:
        return text_element("p", words("captions.model_waits"), role="status")
    if view.ended == "failed":
        message = words("captions.model_failed", message=view.message)
        return text_element("div", message, role="alert", class_="alert")
    bar = ""
    if view.ended or not status.is_running:
        key = "captions.model_done" if view.ended == "finished" else "captions.model_stopped"
        line = words(key, count=len(view.captions))
    else:
        line = words("captions.model_starting")
        if view.total:
            line = words("captions.model_at", done=view.done, total=view.total)
        bar = element("progress", aria_label=line, value=view.done, max=max(1, view.total))
    notes = "".join(text_element("li", problem) for problem in view.problems[:_MAX_NOTES])
    captions = "".join(
        text_element("li", caption, data_place=picture_path(project, name)) for name, caption in fresh.items()
    )
    return (
        text_element("p", line, role="status")
        + bar
        + (element("ul", notes, class_="hint") if notes else "")
        + (element("ul", captions, class_="fresh", hidden=True) if captions else "")
    )
