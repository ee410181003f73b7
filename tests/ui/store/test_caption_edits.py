"""Many captions changed at once: counted first, made as shown, and taken back byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.scan import scan
from trainer.errors import DatasetError
from ui.store.caption_edits import KINDS, CaptionEdit, apply_edit, changes, save_caption
from ui.store.caption_text import estimate_tokens, fused_tags, tag_counts
from ui.store.caption_undo import last_edit, record_captions, undo_last
from ui.store.picture_checks import PictureReport
from ui.store.projects import Projects
from ui.text import Words
from ui.views.captions import captions_html, preview_html, tags_html

WORDS = st.text(st.sampled_from("ab ,é猫\r\n\udcff"), max_size=12)
SIDECAR = st.none() | st.tuples(
    st.sampled_from([".txt", ".caption"]),
    st.binary(max_size=20) | WORDS.map(lambda t: t.encode("utf-8", "surrogateescape")),
)


def project(home: Path, captions: dict[str, bytes | None]) -> Projects:
    """A project “art” with a picture for each sidecar file that is named, or for each name that has none."""
    made = Projects(home / "datasets", home / "cache")
    made.create("art")
    for name, data in captions.items():
        Image.new("RGB", (20, 20)).save(home / "datasets" / "art" / f"{Path(name).stem}.png")
        if data is not None:
            (home / "datasets" / "art" / name).write_bytes(data)
    return made


def texts(projects: Projects) -> dict[str, str]:
    return {card.name.removesuffix(".png"): card.caption for card in projects.pictures("art")}


def sidecars(projects: Projects) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (projects.datasets / "art").iterdir()
        if path.suffix in (".txt", ".caption")
    }


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (CaptionEdit("replace", "cat", "dog"), "a cat, cats", "a dog, dogs"),
        (CaptionEdit("replace", "cat", ""), "a cat , ink", "a , ink"),
        (CaptionEdit("prepend", text="ink"), "a cat", "ink, a cat"),
        (CaptionEdit("prepend", text="A drawing:"), "a cat", "A drawing: a cat"),
        (CaptionEdit("prepend", text="ink"), "", "ink"),
        (CaptionEdit("append", text="ink"), "a cat", "a cat, ink"),
        (CaptionEdit("append", text=", ink"), "a cat", "a cat , ink"),
        (CaptionEdit("remove", "Ink"), "cat, ink, INK , inky", "cat, inky"),
        (CaptionEdit("remove", "dog"), "cat,  ink", "cat,  ink"),
        (
            CaptionEdit("apart", "inkstyle"),
            "inkstyle cat, a dog inkstyle, inkstyleowl",
            "inkstyle, cat, a dog, inkstyle, inkstyle, owl",
        ),
        (CaptionEdit("apart", "inkstyle"), "Inkstyle, a cat", "Inkstyle, a cat"),
        (CaptionEdit("replace"), "a cat", "a cat"),
        (CaptionEdit("apart"), "a cat", "a cat"),
    ],
)
def test_each_edit_does_what_it_says(edit: CaptionEdit, before: str, after: str):
    assert edit.of(before) == after


def test_the_count_shown_before_is_what_changes(tmp_path: Path):
    projects = project(
        tmp_path,
        {"one.txt": b"a cat\n", "two.txt": b"a dog\n", "three.caption": b"cat\ncat two\n", "four.txt": None},
    )
    edit = CaptionEdit("replace", "cat", "owl")
    shown = changes(projects, "art", edit)
    assert [change.name for change in shown] == ["one.png", "three.png"]
    assert apply_edit(projects, "art", edit) == 2
    assert changes(projects, "art", edit) == []
    assert texts(projects) == {"one": "a owl", "two": "a dog", "three": "owl owl two", "four": ""}
    assert sidecars(projects)["three.caption"] == b"owl\nowl two\n"  # a line stays a line


def test_a_caption_from_a_list_becomes_a_file_and_undo_removes_it(tmp_path: Path):
    projects = project(tmp_path, {"one.txt": None})
    (tmp_path / "datasets" / "art" / "metadata.jsonl").write_text(
        '{"file_name": "one.png", "text": "a cat"}\n'
    )
    assert apply_edit(projects, "art", CaptionEdit("append", text="ink")) == 1
    assert sidecars(projects) == {"one.txt": b"a cat, ink\n"}
    undo_last(projects, "art")
    assert sidecars(projects) == {}
    assert texts(projects) == {"one": "a cat"}


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), SIDECAR, min_size=1),
    st.lists(
        st.builds(
            CaptionEdit,
            st.sampled_from(KINDS),
            st.sampled_from(["a", "b,", "猫", ""]),
            st.sampled_from(["a", " x", "é,", ""]),
        ),
        max_size=4,
    ),
)
def test_undo_restores_every_byte_through_several_levels(
    tmp_path_factory: pytest.TempPathFactory, captions, edits: list[CaptionEdit]
):
    named = {
        f"{stem}{kept[0] if kept else '.txt'}": kept[1] if kept else None for stem, kept in captions.items()
    }
    projects, states = project(tmp_path_factory.mktemp("undo"), named), []
    for edit in edits:
        before = sidecars(projects)
        if apply_edit(projects, "art", edit):
            states.append(before)
    for state in reversed(states):
        undo_last(projects, "art")
        assert sidecars(projects) == state
    assert last_edit(projects, "art") is None
    with pytest.raises(DatasetError, match="no change"):
        undo_last(projects, "art")


def test_undo_survives_a_restart_and_spares_what_was_changed_since(tmp_path: Path):
    projects = project(tmp_path, {"one.txt": b"cat", "two.txt": b"cat"})
    apply_edit(projects, "art", CaptionEdit("replace", "cat", "dog"))
    (tmp_path / "datasets" / "art" / "two.txt").write_text("written elsewhere")
    again = Projects(tmp_path / "datasets", tmp_path / "cache")
    done = undo_last(again, "art")
    assert (done.count, done.kept) == (1, 1)
    assert sidecars(again) == {"one.txt": b"cat", "two.txt": b"written elsewhere"}


def test_a_typed_caption_keeps_its_lines_and_is_taken_back(tmp_path: Path):
    projects = project(tmp_path, {"one.txt": b"cat\r\n"})
    assert save_caption(projects, "art", "one.png", " a  wise\r\n\n\towl \x07") == 0
    assert sidecars(projects) == {"one.txt": b"a wise\nowl\n"}
    save_caption(projects, "art", "one.png", "a wise\nowl\n")  # nothing new to take back
    assert undo_last(projects, "art").kind == "typed"
    assert sidecars(projects) == {"one.txt": b"cat\r\n"}
    with pytest.raises(DatasetError, match="at most 2000"):
        save_caption(projects, "art", "one.png", "x" * 2001)


def test_a_caption_of_several_lines_is_shown_and_edited_with_its_lines(tmp_path: Path):
    projects = project(tmp_path, {"one.caption": b"a cat\r\n\r\n a dog \r\n", "two.txt": b"an owl"})
    pictures = projects.pictures("art")
    assert [(picture.caption, picture.text) for picture in pictures] == [
        ("a cat a dog", "a cat\na dog"),
        ("an owl", "an owl"),
    ]
    page = captions_html(Words(), "art", pictures, PictureReport({}, {}, []))
    assert ">a cat\na dog</textarea>" in page
    assert 'data-text="a cat\na dog"' in page
    save_caption(projects, "art", "one.png", "a cat\na dog")  # what the field shows: nothing changes
    assert sidecars(projects)["one.caption"] == b"a cat\r\n\r\n a dog \r\n"
    save_caption(projects, "art", "one.png", "a cat\na dog\na fox")
    assert sidecars(projects)["one.caption"] == b"a cat\na dog\na fox\n"
    apply_edit(projects, "art", CaptionEdit("prepend", text="ink"))
    assert sidecars(projects)["one.caption"] == b"ink, a cat\nink, a dog\nink, a fox\n"
    found = changes(projects, "art", CaptionEdit("replace", "fox", "owl"))
    assert "a dog ↵ ink, a <del>fox</del> <ins>owl</ins>" in preview_html(Words(), found, True)
    assert [item.captions for item in scan(tmp_path / "datasets" / "art").items] == [
        ("ink, a cat", "ink, a dog", "ink, a fox"),
        (),  # one line is no choice
    ]
    for _ in range(2):
        undo_last(projects, "art")
    assert sidecars(projects)["one.caption"] == b"a cat\r\n\r\n a dog \r\n"


def test_what_a_model_overwrites_comes_back(tmp_path: Path):
    projects = project(tmp_path, {"one.txt": b"mine", "two.txt": None})
    record_captions(projects, "art")
    for name in ("one", "two"):
        (tmp_path / "datasets" / "art" / f"{name}.txt").write_text("the model's")
    assert undo_last(projects, "art").kind == "model"
    assert sidecars(projects) == {"one.txt": b"mine"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"entries": 3}',
        '{"entries": [{}]}',
        "[[[[",
        '{"entries": [{"kind": "x", "find": "", "text": "", "files": [{"file": "../../out.txt", "before": "x", "after": null}]}]}',
    ],
)
def test_a_damaged_undo_file_undoes_nothing(tmp_path: Path, text: str):
    projects = project(tmp_path, {"one.txt": b"cat"})
    (tmp_path / "datasets" / "art" / ".impasto").mkdir()
    (tmp_path / "datasets" / "art" / ".impasto" / "captions-undo.json").write_text(text)
    with pytest.raises(DatasetError):
        undo_last(projects, "art")
    assert not (tmp_path / "out.txt").exists()
    assert apply_edit(projects, "art", CaptionEdit("append", text="ink")) == 1


def test_captions_that_would_grow_too_long_are_refused_whole(tmp_path: Path):
    projects = project(tmp_path, {"one.txt": b"cat", "two.txt": b"x" * 1999})
    with pytest.raises(DatasetError, match=r"caption of two\.png"):
        apply_edit(projects, "art", CaptionEdit("append", text="ink"))
    assert sidecars(projects)["one.txt"] == b"cat"


def test_tags_are_counted_and_those_that_ran_into_the_trigger_are_told():
    captions = [
        "inkstyle, a cat",
        "inkstyle cat, a cat",
        "inkstyledog",
        "a small drawing of a cat in inkstyle, on a table",
        "my_inkstyle",
    ]
    assert tag_counts(captions)[0] == ("a cat", 2)
    assert [tag for tag, _ in fused_tags(captions, "InkStyle")] == [
        "inkstyle cat",
        "inkstyledog",
        "my_inkstyle",
    ]
    assert fused_tags(captions, "") == []


@given(st.text(max_size=200))
def test_tokens_are_estimated_for_any_text(text: str):
    assert 0 <= estimate_tokens(text) <= 3 * len(text)


@pytest.mark.parametrize(
    ("text", "counted"),  # by CLIP's own tokenizer, without start and end
    [
        (
            "a wise owl sitting on a branch, drawn in ink with bold outlines and fine hatching, on white paper, full moon behind it",
            27,
        ),
        (
            "1girl, solo, long hair, looking at viewer, masterpiece, best quality, absurdres, highres, outdoors, night sky, stars",
            29,
        ),
    ],
)
def test_the_estimate_of_tokens_is_near_what_clip_counts(text: str, counted: int):
    assert abs(estimate_tokens(text) - counted) <= 0.2 * counted


def test_markup_in_captions_and_names_is_shown_as_text(tmp_path: Path):
    evil = '<img src=x onerror="alert(1)">'
    projects = project(tmp_path, {"one.txt": f"{evil}, {evil[:12]}".encode()})
    cards = projects.pictures("art")
    pages = [
        captions_html(Words(), "art", cards, PictureReport({}, {}, [])),
        tags_html(Words(), [evil, f"ink{evil}"], "ink"),
        preview_html(Words(), changes(projects, "art", CaptionEdit("append", text=evil)), True),
    ]
    assert all("<img src=x" not in page and "onerror=&quot;" in page for page in pages)
