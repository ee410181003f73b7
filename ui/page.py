"""The page: a head that every tab keeps in sight, and the tabs."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from trainer.errors import TrainerError
from ui import api
from ui.routes.login import account_html
from ui.tabs import PRIVATE, QUIET, Shared, artwork, captions, library, train, try_it
from ui.text import LANGUAGES, sentences
from ui.updates import SECTIONS
from ui.workspace import Studio, Workspace

TABS = (artwork, captions, train, try_it, library)


def translations() -> gr.I18n:
    """Labels by language, English where a language lacks one; those of Advanced come with its HTML."""

    def labels(language: str) -> dict[str, str]:
        return {key: text for key, text in sentences(language).items() if not key.startswith("settings.")}

    return gr.I18n(**{language: {**labels("en"), **labels(language)} for language in LANGUAGES})


def build_page(studio: Studio, label: gr.I18n) -> gr.Blocks:
    with gr.Blocks(title="Impasto", analytics_enabled=False) as page:
        with gr.Row(elem_id="head"):
            gr.Markdown("# Impasto", elem_id="impasto")
            project = gr.Dropdown(
                [], label=label("page.project"), elem_id="project", scale=2, allow_custom_value=True
            )
            new_name = gr.Textbox(
                label=label("page.project_new"),
                placeholder="my-style",
                max_length=80,
                elem_id="new-name",
                scale=2,
            )
            create = gr.Button(label("page.project_create"), elem_id="create", scale=1)
            account = gr.HTML(elem_id="account", visible=bool(studio.accounts))
        gr.HTML('<div role="status"></div>', elem_id="status")  # filled by the script
        news = {
            section: gr.Button(section, elem_id=f"news-{section}", elem_classes="unseen")
            for section in SECTIONS
        }
        shared = Shared(
            studio=studio,
            label=label,
            project=project,
            touched=gr.Textbox(elem_id="touched", elem_classes="unseen", show_label=False),
            news=news,
            bells=gr.Column(elem_id="bells", elem_classes="unseen"),
        )
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for tab in TABS:
                name = tab.__name__.rsplit(".", 1)[-1]
                with shared.bells:
                    turned = gr.Button(name, elem_id=f"turned-{name}", elem_classes="unseen")
                with gr.Tab(label(f"page.{name}"), id=name, elem_id=f"tab-{name}"):
                    tab.build(dataclasses.replace(shared, tab=name, turned=turned))
        api.build(shared)

        def opened(request: gr.Request) -> Any:
            """The project and the tab that the address names, which the page's script keeps true."""
            try:
                workspace = studio.workspace_of(request)
            except TrainerError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from None
            names, asked = workspace.projects.names(), dict(request.query_params)
            chosen = asked.get("project") if asked.get("project") in names else workspace.projects.latest()
            known = [tab.__name__.rsplit(".", 1)[-1] for tab in TABS]
            return gr.update(choices=names, value=chosen), gr.update(selected=asked["tab"]) if asked.get(
                "tab"
            ) in known else gr.skip()

        def new_project(workspace: Workspace, wanted: str):
            made = workspace.projects.create(wanted)
            return gr.update(choices=workspace.projects.names(), value=made), ""

        page.load(opened, None, [project, tabs], **QUIET)
        if studio.accounts:
            page.load(shared.on(lambda workspace: account_html(workspace)), None, account, **QUIET)
        create.click(shared.on(new_project), new_name, [project, new_name], **PRIVATE)
    return page
