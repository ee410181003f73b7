"""Rules for the style sheets."""

from __future__ import annotations

import re
from pathlib import Path

STYLES = Path(__file__).resolve().parents[2] / "ui" / "style"


def test_only_paper_css_names_colours_so_that_dark_and_light_apply_to_every_part():
    for path in sorted(STYLES.glob("*.css")):
        if path.stem in ("paper", "login"):
            continue
        found = set(re.findall(r"#[0-9a-f]{3,6}\b(?=[^{}]*[;}])", path.read_text(encoding="utf-8")))
        assert found <= {"#fff"}, f"{path.name} names {found}"  # white is the background of pictures


def test_rules_for_phones_have_no_prefix_of_gradio():
    """Within `@media` Gradio adds its prefix also to a selector that has it, and the rule matches nothing."""
    for path in sorted(STYLES.glob("*.css")):
        for block in re.findall(r"@media[^{]*\{((?:[^{}]*\{[^{}]*\})*)", path.read_text(encoding="utf-8")):
            assert ".gradio-container" not in block, path.name
