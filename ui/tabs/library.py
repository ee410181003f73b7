"""Library: every finished LoRA, what its file says of itself, others made of it, and its end."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from trainer.errors import TrainerError
from trainer.headers.edit_metadata import MAX_TEXT
from ui.store.library import OUTSIDE, Library
from ui.tabs import PRIVATE, QUIET, Shared, rows_of_others
from ui.updates import made_mark
from ui.views.library import cards_html, size_words
from ui.workspace import Workspace

_NO_QUESTION = "() => ['', {__type__: 'update', visible: false}, {__type__: 'update', visible: false}]"
TEXTS = ("title", "author", "licence", "description", "tags", "trigger")


def build(shared: Shared) -> None:
    label = shared.label
    drop = gr.File(
        label=label("library.drop"),
        file_count="multiple",
        file_types=[".safetensors"],
        height=140,
        elem_id="import",
    )
    told = gr.HTML(elem_id="library-told")
    cards = gr.HTML(elem_id="shelf")
    lora = gr.Dropdown([], label=label("library.change"), allow_custom_value=True, elem_id="lora")
    with gr.Accordion(label("library.file_details"), open=False, elem_id="label-box"):
        fields = _label_fields(shared)
        save = gr.Button(label("library.save"), variant="primary", elem_id="save-label")
    with gr.Accordion(label("library.modified_copy"), open=False, elem_id="make-box"):
        tool, others = _make_fields(shared)
        start = gr.Button(label("library.start"), elem_id="make")
    with gr.Accordion(label("library.delete"), open=False, elem_id="delete-lora-box"):
        ask_delete = gr.Button(label("library.delete"), elem_id="delete-lora")
        question = gr.HTML(elem_id="delete-lora-question")
        with gr.Row():
            sure = gr.Button(
                label("library.delete_sure"), variant="stop", visible=False, elem_id="delete-lora-sure"
            )
            keep = gr.Button(label("library.keep"), visible=False, elem_id="delete-lora-keep")
    works, labelled = gr.State(()), gr.State("")  # labelled: which file, as of when, the label is of
    chosen_lists = [lora, *(which for which, _ in others)]

    def show(workspace: Workspace, current: str | None):
        library, made = Library(workspace.runs), made_mark(workspace)
        entries = library.entries()
        keys = [entry.key for entry in entries]
        found = [(entry.name, entry.key) for entry in entries]
        more = [("—", ""), *found]
        # A choice that holds is not sent back: another one may have been made meanwhile.
        first = (
            gr.update(choices=found)
            if current in keys
            else gr.update(choices=found, value=next(iter(keys), None))
        )
        lists = [first, *(gr.update(choices=more) for _ in others)]
        return [f'<div data-made="{made}">{cards_html(workspace.words, library, entries)}</div>', *lists]

    def take_in(workspace: Workspace, files: Any):
        good, bad = [], []
        names = [
            str((one.get("orig_name") if isinstance(one, dict) else one.orig_name) or "lora")
            for one in (getattr(files, "root", files) or [])
        ]
        for path, name in zip(workspace.uploaded(files), names, strict=True):
            try:
                workspace.limits.check_free_space(workspace.runs.outputs, path.stat().st_size)
                key = Library(workspace.runs).import_file(path, name)
                good.append(workspace.words("library.taken_in", name=key.removeprefix(OUTSIDE)))
            except TrainerError as error:
                bad.append(str(error))
            finally:
                path.unlink(missing_ok=True)  # nothing of an artist's stays in Gradio's cache
        return None, _told(good) + _alert(bad)

    def read_label(workspace: Workspace, key: str | None, last: str):
        """Anew for another file or one that was changed; else what is being written stays."""
        if not key:
            return [*(gr.update(value=None) for _ in fields), ""]
        entry = Library(workspace.runs).entry(key)
        now = f"{key} {entry.file.stat().st_mtime_ns}"
        if now == last:
            return [gr.skip()] * (len(fields) + 1)
        return [*(getattr(entry.label, name) for name in fields), now]

    def write_label(workspace: Workspace, values: dict[Any, Any]):
        key = _chosen(workspace, values[lora])
        entry = Library(workspace.runs).relabel(key, {name: values[part] for name, part in fields.items()})
        return _told([workspace.words("library.saved", name=entry.file.name)])

    def make(workspace: Workspace, values: dict[Any, Any]):
        key = _chosen(workspace, values[lora])
        kind, more = (
            values[tool["tool"]],
            [(values[which], values[weight]) for which, weight in others if values[which]],
        )
        merges = kind == "merge"
        work = Library(workspace.runs).make(
            kind,
            [key, *(which for which, _ in more)] if merges else [key],
            weights=[values[tool["weight"]], *(weight for _, weight in more)] if merges else [],
            rank=values[tool["rank"]] or 0,
            form=values[tool["form"]],
            name=str(values[tool["name"]] or "")[:200],
        )
        return (*values[works], work), _told([workspace.words("library.working")])

    def follow(workspace: Workspace, open_works: tuple[str, ...]):
        if not open_works:
            return gr.skip(), gr.skip()
        standings = {work: Library(workspace.runs).job_status(work) for work in open_works}
        left = tuple(work for work, (state, _) in standings.items() if state == "working")
        if left == tuple(open_works):
            return gr.skip(), gr.skip()
        failed = [message for state, message in standings.values() if state == "failed"]
        done = (
            [workspace.words("library.finished")]
            if any(state == "finished" for state, _ in standings.values())
            else []
        )
        return left, _told(done) + _alert(failed)

    def which_tool(workspace: Workspace, kind: str):
        shown = {"rank": kind in ("merge", "resize"), "form": kind == "convert"}
        merging = [gr.update(visible=kind == "merge") for _ in range(1 + 2 * len(others))]
        return [*(gr.update(visible=visible) for visible in shown.values()), *merging]

    def confirm(workspace: Workspace, key: str | None):
        library, key = Library(workspace.runs), _chosen(workspace, key)
        files, size = library.size_of(key)
        words = workspace.words(
            "library.delete_ask", name=library.entry(key).name, files=files, size=size_words(size)
        )
        return (
            f'<p role="alert" class="alert">{html.escape(words)}</p>',
            gr.update(visible=True),
            gr.update(visible=True),
            key,
        )

    def delete(workspace: Workspace, key: str | None):
        library, key = Library(workspace.runs), _chosen(workspace, key)
        name = library.entry(key).name
        files, size = library.delete(key)
        words = workspace.words("library.deleted", name=name, files=files, size=size_words(size))
        return _told([words]), "", gr.update(visible=False), gr.update(visible=False)

    asked = gr.State(None)
    shared.draw([shared.project.change, shared.news["made"].click], show, lora, [cards, *chosen_lists])
    shared.draw([shared.news["library"].click], follow, works, [works, told])
    drop.upload(shared.on(take_in), drop, [drop, told], preprocess=False, **PRIVATE)
    # By the browser alone and first: an answer of the server's could come after the next question and take that away.
    lora.change(None, None, [question, sure, keep], js=_NO_QUESTION, **QUIET)
    shared.draw(
        [lora.change, shared.news["made"].click], read_label, [lora, labelled], [*fields.values(), labelled]
    )
    save.click(shared.on(write_label), {lora, *fields.values()}, told, **PRIVATE)
    tool["tool"].change(
        shared.on(which_tool),
        tool["tool"],
        [tool["rank"], tool["form"], tool["weight"], *(p for pair in others for p in pair)],
        **QUIET,
    )
    start.click(
        shared.on(make),
        {lora, works, *tool.values(), *(p for pair in others for p in pair)},
        [works, told],
        **PRIVATE,
    )
    ask_delete.click(shared.on(confirm), lora, [question, sure, keep, asked], **QUIET)
    sure.click(shared.on(delete), asked, [told, question, sure, keep], **PRIVATE)
    keep.click(None, None, [question, sure, keep], js=_NO_QUESTION, **QUIET)


def _label_fields(shared: Shared) -> dict[str, Any]:
    """Field of a Label -> component."""
    label = shared.label
    fields: dict[str, Any] = {}
    with gr.Row():
        for name in TEXTS:
            lines = 3 if name == "description" else 1
            fields[name] = gr.Textbox(
                label=label(f"library.{name}"),
                lines=lines,
                max_length=MAX_TEXT,
                min_width=240,
                elem_id=f"label-{name}",
            )
    fields["weight"] = gr.Number(
        None, label=label("library.weight"), minimum=-2, maximum=2, step=0.05, elem_id="label-weight"
    )
    fields["own_work"] = gr.Checkbox(False, label=label("library.own_work_ask"), elem_id="label-own-work")
    return fields


def _make_fields(shared: Shared) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """What can be made and how; (which, weight) of the others that are merged."""
    label = shared.label
    tools = [(label(f"library.{name}"), name) for name in ("resize", "convert", "merge")]
    forms = [
        (label("library.kohya"), "kohya"),
        (label("library.diffusers_blocks"), "kohya-diffusers"),
        (label("library.diffusers"), "diffusers"),
    ]
    tool: dict[str, Any] = {
        "tool": gr.Radio(tools, value="resize", label=label("library.tool"), elem_id="make-tool")
    }
    tool["weight"] = gr.Slider(
        -2, 2, 1, step=0.05, label=label("library.weight_here"), visible=False, elem_id="make-weight"
    )
    others = rows_of_others(shared, "library", prefix="make-", least=-2, visible=False)
    with gr.Row():
        tool["rank"] = gr.Number(
            8,
            label=label("library.rank"),
            info=label("library.rank_info"),
            precision=0,
            minimum=0,
            maximum=1024,
            elem_id="make-rank",
        )
        tool["form"] = gr.Dropdown(
            forms, value="kohya", label=label("library.form"), visible=False, elem_id="make-form"
        )
        tool["name"] = gr.Textbox(
            label=label("library.name"), info=label("library.name_info"), max_length=80, elem_id="make-name"
        )
    return tool, others


def _chosen(workspace: Workspace, key: str | None) -> str:
    if not key:
        raise TrainerError(workspace.words("library.choose_first"))
    return key


def _told(lines: list[str]) -> str:
    return (
        f'<div role="status">{"".join(f"<p>{html.escape(line)}</p>" for line in lines)}</div>'
        if lines
        else ""
    )


def _alert(lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div role="alert" class="alert"><ul>{items}</ul></div>' if lines else ""
