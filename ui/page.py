"""The page: a head that is visible above every tab, and the tabs."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from trainer.errors import TrainerError
from ui import api
from ui.tabs import (
    PRIVATE,
    QUIET,
    PageContext,
    Updates,
    artwork,
    captions,
    hidden_button,
    hidden_field,
    library,
    train,
    try_it,
)
from ui.text import LANGUAGES, sentences
from ui.updates import SECTIONS
from ui.views.login import account_html
from ui.workspace import Studio, Workspace

TABS = {"artwork": artwork, "captions": captions, "train": train, "try_it": try_it, "library": library}


def translations() -> gr.I18n:
    """Returns the labels of components by language, in English where a translation is missing.

    The advanced settings are left out: the server renders them in the visitor's language.
    """

    def labels(language: str) -> dict[str, str]:
        return {key: text for key, text in sentences(language).items() if not key.startswith("settings.")}

    return gr.I18n(**{language: {**labels("en"), **labels(language)} for language in LANGUAGES})


@dataclasses.dataclass(frozen=True)
class Head:
    """The components above the tabs; its methods are the callbacks."""

    studio: Studio
    project: gr.Dropdown
    new_name: gr.Textbox
    create: gr.Button
    account: gr.HTML

    def open_page(self, request: gr.Request) -> Any:
        """Returns updates of the project and the tabs, as the page's address names them."""
        try:
            workspace = self.studio.workspace_of(request)
        except TrainerError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        names, query = workspace.projects.names(), dict(request.query_params)
        project = query.get("project") if query.get("project") in names else workspace.projects.latest()
        tab = gr.update(selected=query["tab"]) if query.get("tab") in TABS else gr.skip()
        return gr.update(choices=names, value=project), tab

    def new_project(self, workspace: Workspace, name: str) -> Updates:
        """Creates a project and chooses it."""
        project = workspace.projects.create(name)
        return {
            self.project: gr.update(choices=workspace.projects.names(), value=project),
            self.new_name: "",
        }

    def show_account(self, workspace: Workspace) -> Updates:
        """Shows the user's name and the button that logs out."""
        return {self.account: account_html(workspace)}


def build_page(studio: Studio, label: gr.I18n) -> gr.Blocks:
    """Builds the page with all tabs.

    Args:
        label: of `translations()`.
    """
    with gr.Blocks(title="Impasto", analytics_enabled=False) as page:
        head = _head(studio, label)
        gr.HTML('<div role="status"></div>', elem_id="status")  # ui/script/refresh.js fills it
        context = PageContext(
            studio=studio,
            label=label,
            project=head.project,
            data_changed=hidden_field(elem_id="data-changed"),
            refresh_buttons={section: hidden_button(section, f"refresh-{section}") for section in SECTIONS},
            triggers=gr.Column(elem_id="triggers", elem_classes="unseen"),
        )
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for name, tab in TABS.items():
                with context.triggers:
                    shown_button = hidden_button(name, f"shown-{name}")
                with gr.Tab(label(f"page.{name}"), id=name, elem_id=f"tab-{name}"):
                    tab.build(dataclasses.replace(context, tab=name, shown_button=shown_button))
        api.build(context)
        page.load(head.open_page, None, [head.project, tabs], **QUIET)
        if studio.accounts:
            page.load(context.on(head.show_account), None, head.account, **QUIET)
        created = [head.project, head.new_name]
        head.create.click(context.on(head.new_project), head.new_name, created, **PRIVATE)
    return page


def _head(studio: Studio, label: gr.I18n) -> Head:
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
    return Head(studio, project, new_name, create, account)
