"""The page: a head that every tab keeps in sight, and the tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.errors import TrainerError
from ui import api
from ui.form import declared_sentences
from ui.progress import status_html
from ui.routes.login import account_html
from ui.studio import Desk, Studio
from ui.tabs import PRIVATE, QUIET, Shared, artwork, captions, library, train, try_it
from ui.text import LANGUAGES, Words, sentences
from ui.training import shown_run

TABS = (artwork, captions, train, try_it, library)


def translations() -> gr.I18n:
    """Labels by language, English where a language lacks one."""
    english = {**declared_sentences(), **sentences("en")}
    return gr.I18n(**{language: {**english, **sentences(language)} for language in LANGUAGES})


def build_page(studio: Studio, label: gr.I18n) -> gr.Blocks:
    with gr.Blocks(title="Impasto", analytics_enabled=False) as page:
        with gr.Row(elem_id="head"):
            gr.Markdown("# Impasto", elem_id="impasto")
            project = gr.Dropdown([], label=label("page.project"), elem_id="project", scale=2, allow_custom_value=True)
            new_name = gr.Textbox(label=label("page.project_new"), placeholder="my-style", max_length=80, elem_id="new-name", scale=2)
            create = gr.Button(label("page.project_create"), elem_id="create", scale=1)
            account = gr.HTML(elem_id="account", visible=bool(studio.accounts))
        status = gr.HTML(status_html(None, Words()), elem_id="status")
        shared = Shared(studio=studio, label=label, project=project, touched=gr.State(0), made=gr.State(0))
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for tab in TABS:
                name = tab.__name__.rsplit(".", 1)[-1]
                with gr.Tab(label(f"page.{name}"), id=name, elem_id=f"tab-{name}"):
                    tab.build(shared)
        api.build(shared)

        seen = gr.State("")
        timer = gr.Timer(1.5)

        def opened(request: gr.Request) -> Any:
            """The project and the tab that the address names, which the page's script keeps true."""
            try:
                desk = studio.of(request)
            except TrainerError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from None
            names, asked = desk.projects.names(), dict(request.query_params)
            chosen = asked.get("project") if asked.get("project") in names else desk.projects.latest()
            known = [tab.__name__.rsplit(".", 1)[-1] for tab in TABS]
            return gr.update(choices=names, value=chosen), gr.update(selected=asked["tab"]) if asked.get("tab") in known else gr.skip()

        def new_project(desk: Desk, wanted: str):
            made = desk.projects.create(wanted)
            return gr.update(choices=desk.projects.names(), value=made), ""

        def follow(desk: Desk, chosen: str | None, last: str) -> Any:
            run = shown_run(desk, chosen)
            active = desk.jobs.active(chosen) if chosen else None
            run = run if active else desk.jobs.busy() or run  # what trains is told, whatever project is chosen
            standing = desk.jobs.standing(run) if run else None
            queue = desk.jobs.queue
            others = standing is None and queue.busy() is not None
            now = repr((chosen, run, standing.key if standing else None, queue.is_paused, others))
            if last == now:
                return gr.skip(), gr.skip()
            return status_html(standing, desk.words, name=run or "", project=chosen or "", paused=queue.is_paused, others=others), now

        page.load(opened, None, [project, tabs], **QUIET)
        if studio.accounts:
            page.load(shared.on(lambda desk: account_html(desk)), None, account, **QUIET)
        create.click(shared.on(new_project), new_name, [project, new_name], **PRIVATE)
        for event in (timer.tick, shared.made.change, project.change):
            event(shared.on(follow), [project, seen], [status, seen], **QUIET)
    return page
