"""Gradio without its editor stubs: half of the time to the first page.

While it is imported, Gradio parses its own sources and writes a `.pyi` beside each component for editors to read
(`gradio.component_meta.create_or_modify_pyi`, 6.31). A studio needs none, and an installation may be read-only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODULE, _WRITER = "gradio.component_meta", "create_or_modify_pyi"


def without_editor_stubs() -> None:
    """To be called before Gradio is imported; afterwards it has no effect."""
    if _MODULE not in sys.modules and not any(isinstance(finder, _Quiet) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Quiet())


class _Quiet(MetaPathFinder):
    """Loads one module as Python would and takes its stub writer away."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_quietly(module: ModuleType) -> None:
            load(module)
            if hasattr(module, _WRITER):
                setattr(module, _WRITER, lambda *_: None)

        spec.loader.exec_module = load_quietly
        return spec
