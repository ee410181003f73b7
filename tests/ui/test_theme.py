"""How the page looks is decided in one place."""

from __future__ import annotations

import re
from pathlib import Path

STYLES = Path(__file__).resolve().parents[2] / "ui" / "style"


def test_dark_and_light_reach_every_part_because_only_paper_names_colours():
    for path in sorted(STYLES.glob("*.css")):
        if path.stem in ("paper", "login"):
            continue
        found = set(re.findall(r"#[0-9a-f]{3,6}\b(?=[^{}]*[;}])", path.read_text(encoding="utf-8")))
        assert found <= {"#fff"}, f"{path.name} names {found}"  # white lies behind pictures


def test_what_is_for_phones_is_not_hidden_behind_gradios_second_prefix():
    """Within `@media` Gradio puts its prefix before a selector that has it already, and the rule matches nothing."""
    for path in sorted(STYLES.glob("*.css")):
        for block in re.findall(r"@media[^{]*\{((?:[^{}]*\{[^{}]*\})*)", path.read_text(encoding="utf-8")):
            assert ".gradio-container" not in block, path.name
