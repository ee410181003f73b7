"""What the Captions tab shows, as HTML: a picture beside its words, what an edit would change, tags with their counts."""

from __future__ import annotations

import difflib
import time

from ui.store.caption_edits import TOKENS, CaptionChange, UndoEntry, estimate_tokens, fused_tags, tag_counts
from ui.store.captioning import CaptioningStatus
from ui.store.naming import MAX_CAPTION
from ui.store.picture_checks import PictureReport
from ui.store.projects import ProjectPicture
from ui.text import Words
from ui.views.artwork import escaped, place_of, shown_size

_SIDE = 320  # px of a picture beside its caption
_SHOWN = 30  # changes, and tags in the open list
_MOST_TAGS = 400


def captions_html(words: Words, project: str, cards: list[ProjectPicture], report: PictureReport) -> str:
    """Every picture beside a field that is saved when it is left; the page's script moves between them by keys."""
    if not cards:
        return f'<p class="hint empty">{escaped(words("captions.empty"))}</p>'
    items = []
    for number, card in enumerate(cards, start=1):
        place, name = escaped(place_of(project, card.name)), escaped(card.name)
        width, height = shown_size(report.sizes.get(card.name), _SIDE)
        label = escaped(words("captions.of", name=card.name, number=number, count=len(cards)))
        hint = escaped(long_words(words, card.caption))
        items.append(
            f'<li class="captioned"><img src="/thumb/{place}?v={card.version}" alt="{name}" loading="lazy" '
            f'width="{width}" height="{height}">'
            f'<div><label><span class="file">{name}</span><textarea class="caption" rows="4" maxlength="{MAX_CAPTION}" data-place="{place}" data-text="{escaped(card.caption)}" '
            f'aria-label="{label}" placeholder="{escaped(words("captions.placeholder"))}">{escaped(card.caption)}</textarea></label>'
            f'<p class="said"><span class="saved" role="status"></span> <span class="long">{hint}</span></p></div></li>'
        )
    failed = escaped(words("artwork.no_answer"))
    return f'<p class="hint">{escaped(words("captions.keys"))}</p><ul class="captions" data-drawn="{time.time_ns()}" data-failed="{failed}">{"".join(items)}</ul>'


def long_words(words: Words, caption: str) -> str:
    """A hint where a caption may be longer than a training reads."""
    tokens = estimate_tokens(caption)
    return words("captions.long", tokens=tokens) if tokens > TOKENS else ""


def summary_html(words: Words, cards: list[ProjectPicture]) -> str:
    if not cards:
        return ""
    written = sum(1 for card in cards if card.caption)
    return f'<p role="status">{escaped(words("captions.summary", written=written, count=len(cards)))}</p>'


def tags_html(words: Words, captions: list[str], trigger: str) -> str:
    """Tags with their counts, each a button that fills the field above; those that fused with the trigger word first."""
    tags, fused = tag_counts(captions), fused_tags(captions, trigger)
    if not tags:
        return ""
    told = ""
    if fused:
        named = "".join(f"<li>{_tag(words, tag, count)}</li>" for tag, count in fused[:_SHOWN])
        told = f'<div class="fused" role="status"><p>{escaped(words("captions.fused", trigger=trigger))}</p><ul class="tags">{named}</ul></div>'
    listed = "".join(f"<li>{_tag(words, tag, count)}</li>" for tag, count in tags[:_MOST_TAGS])
    title = escaped(words("captions.tags", count=len(tags)))
    return (
        f'{told}<details class="all-tags"><summary>{title}</summary><ul class="tags">{listed}</ul></details>'
    )


def _tag(words: Words, tag: str, count: int) -> str:
    label = escaped(words("captions.tag_of", tag=tag, count=count))
    return f'<button type="button" class="tag" data-tag="{escaped(tag)}" aria-label="{label}">{escaped(tag)} <b>{count}</b></button>'


def preview_html(words: Words, changes: list[CaptionChange], asked: bool) -> str:
    """How many captions an edit would change, and what would stand there; nothing while nothing is asked."""
    if not asked:
        return ""
    rows = "".join(
        f"<li><b>{escaped(change.name)}</b> {_marked(' '.join(change.before), ' '.join(change.after))}</li>"
        for change in changes[:_SHOWN]
    )
    more = (
        f"<li>{escaped(words('artwork.more', count=len(changes) - _SHOWN))}</li>"
        if len(changes) > _SHOWN
        else ""
    )
    line = escaped(words("captions.would", count=len(changes)))
    return f'<p role="status"><b>{line}</b></p>' + (f'<ul class="changes">{rows}{more}</ul>' if rows else "")


def _marked(before: str, after: str) -> str:
    """Both texts in one, word by word: what goes is struck, what comes is marked."""
    old, new = before.split(), after.split()
    parts = []
    for kind, start, end, then, last in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = escaped(" ".join(old[start:end])), escaped(" ".join(new[then:last]))
        if kind == "equal":
            parts.append(gone)
            continue
        parts += [f"<del>{gone}</del>"] * bool(gone) + [f"<ins>{come}</ins>"] * bool(come)
    return " ".join(parts)


def undone_words(words: Words, undone: UndoEntry) -> str:
    """What a change was, in words."""
    return words(f"captions.did_{undone.kind}", find=undone.find, text=undone.text)


def progress_html(words: Words, stands: CaptioningStatus, fresh: dict[str, str], project: str) -> str:
    """How a model's captioning stands; `fresh` captions travel hidden, and the page's script puts them into fields that are not being written in."""
    view = stands.view
    if stands.waits:
        return f'<p role="status">{escaped(words("captions.model_waits"))}</p>'
    if view.ended == "failed":
        return f'<div role="alert" class="alert">{escaped(words("captions.model_failed", message=view.message))}</div>'
    count = len(view.captions)
    if view.ended or not stands.alive:
        key = "captions.model_done" if view.ended == "finished" else "captions.model_stopped"
        line, bar = words(key, count=count), ""
    else:
        line = (
            words("captions.model_at", done=view.done, total=view.total)
            if view.total
            else words("captions.model_starting")
        )
        bar = f'<progress aria-label="{escaped(line)}" value="{view.done}" max="{max(1, view.total)}"></progress>'
    notes = "".join(f"<li>{escaped(problem)}</li>" for problem in view.problems[:20])
    hidden = "".join(
        f'<li data-place="{escaped(place_of(project, name))}">{escaped(caption)}</li>'
        for name, caption in fresh.items()
    )
    return (
        f'<p role="status">{escaped(line)}</p>{bar}'
        + (f'<ul class="hint">{notes}</ul>' if notes else "")
        + (f'<ul class="fresh" hidden>{hidden}</ul>' if hidden else "")
    )
