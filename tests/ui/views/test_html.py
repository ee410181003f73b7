"""The HTML that all views share."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from ui.views.html import element, escape, picture_url, text_element


@given(st.text())
def test_no_text_ends_its_element_or_attribute(text: str):
    page = text_element("p", text, title=text)
    assert not set(escape(text)) & set("<>\"'")
    assert html.unescape(page) == f'<p title="{text}">{text}</p>'
    assert page.count("<") == 2


def test_attributes_have_their_names_in_html():
    assert element("label", "a", for_="b", class_="c", aria_label="d", data_of=0) == (
        '<label for="b" class="c" aria-label="d" data-of="0">a</label>'
    )
    assert element("input", checked=True, disabled=False, min=None) == "<input checked>"


def test_a_picture_has_a_new_address_after_it_was_written_again():
    before, after = ({"file": "p 0.png", "made": made} for made in (1, 2))
    assert picture_url("my run", before) == "/picture/my%20run/p%200.png?v=1"
    assert picture_url("my run", before) != picture_url("my run", after)
