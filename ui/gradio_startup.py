"""Keeps Gradio from writing editor stubs while it is imported, which takes half of the time to the first page.

`import gradio` calls `gradio.component_meta.create_or_modify_pyi` (6.31) for each of its component classes: it parses the
source file and writes a `.pyi` beside it, with the events of the component for editors to complete. A server has no use for
these files; parsing takes seconds, and writing fails or changes the package if the installation is read-only or shared.

Gradio has no setting for this, and the calls happen inside its `__init__`, so the function can't be replaced after the
import. An import hook replaces it between two moments of the import: `_StubWriterRemover` is put first into `sys.meta_path`,
finds `gradio.component_meta` with Python's own finder, and wraps the loader's `exec_module` so that the function becomes a
no-op as soon as the module is executed, before the first component uses it. The hook removes itself at that point and
affects no other module.

Without the hook everything works, but the start is slower and files appear in Gradio's folder. If a later Gradio renames
the module or the function, the hook does nothing; `tests/ui/test_workspace.py` fails then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODULE, _STUB_WRITER = "gradio.component_meta", "create_or_modify_pyi"


def without_editor_stubs() -> None:
    """Installs the hook. Must be called before Gradio is imported; afterwards it has no effect."""
    is_installed = any(isinstance(finder, _StubWriterRemover) for finder in sys.meta_path)
    if _MODULE not in sys.modules and not is_installed:
        sys.meta_path.insert(0, _StubWriterRemover())


class _StubWriterRemover(MetaPathFinder):
    """Loads one module as Python would and replaces its stub writer by a no-op."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)  # also keeps the next line from finding this finder again
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_without_stubs(module: ModuleType) -> None:
            execute(module)
            if hasattr(module, _STUB_WRITER):
                setattr(module, _STUB_WRITER, lambda *_: None)

        spec.loader.exec_module = execute_without_stubs
        return spec
