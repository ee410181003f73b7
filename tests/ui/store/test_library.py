"""The Library without a browser: labels, files from elsewhere, others made of them, what goes out with one, and its end."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import INK, MODELS
from tests.trainer.lora_file.lora_samples import ATTENTION, shape_of, write_lora
from trainer.errors import LoraFileError, RunError, TrainerError
from trainer.workers.lora_tools import work
from ui.server import build_app
from ui.store.file_jobs import FileJobs
from ui.store.library import Library
from ui.store.lora_edits import LoraEdit, start_edit
from ui.store.lora_pictures import embedded_picture, thumbnail
from ui.store.runs import Runs
from ui.text import Words
from ui.views.library import cards_html

PLACE = {("unet", ATTENTION): shape_of(ATTENTION)}
EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def library(tmp_path: Path, ink_run: Path) -> Library:
    shutil.copytree(ink_run, tmp_path / "outputs" / "ink")
    return Library(Runs(tmp_path / "outputs", MODELS))  # nobody serves its line: the tests do the work


def done(library: Library, made: str | None) -> tuple[str, str]:
    """Does started work here."""
    assert made
    assert FileJobs(library.runs).status(made) == ("working", "")
    work(library.runs.outputs / f".making-{made}", MODELS)
    return FileJobs(library.runs).status(made)


def test_a_training_is_a_card_with_all_that_its_file_says(library: Library):
    (entry,) = library.entries()
    assert (entry.key, entry.stem, entry.base, entry.label.trigger) == (
        "ink",
        "ink-12",
        "tiny-sdxl",
        "ink",
    )
    assert any(tool.startswith("ComfyUI") for tool in entry.compatible_tools)
    page = cards_html(Words(), library, [entry])
    assert 'href="./download/ink"' in page
    assert 'download="ink-12.safetensors"' in page
    assert "/download/ink/zip" in page


def test_what_an_artist_says_is_written_into_the_file_and_shown_as_text(library: Library):
    before = load_file(library.entry("ink").file)
    said = {
        "title": EVIL,
        "author": "A & B",
        "licence": "CC0-1.0",
        "description": "two\nlines",
        "trigger": "inkk",
        "weight": 0.75,
        "own_work": True,
    }
    entry = library.relabel("ink", said)
    after = load_file(entry.file)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {name: value for name, value in dataclasses.asdict(entry.label).items() if name in said} == said
    assert "<img src=x" not in cards_html(Words(), library, [entry])
    for wrong in ({"weight": float("nan")}, {"weight": 9}, {"title": "x" * 3000}, {"author": "\0"}):
        with pytest.raises(TrainerError):
            library.relabel("ink", wrong)


def test_a_marked_checkpoint_is_what_is_downloaded_from_then_on(library: Library):
    assert library.checkpoints("ink") == [5, 10, 12]
    assert library.prefer("ink", 0.5) is None
    assert library.entry("ink").label.weight == 0.5
    assert done(library, library.prefer("ink", 0.8, 10)) == ("finished", "")
    entry = library.entry("ink")
    assert entry.stem == "ink-10"
    assert entry.label.weight == 0.8
    assert library.choice("ink")["step"] == 10
    with pytest.raises(RunError):
        library.prefer("ink", 0.8, 11)


def test_a_lora_from_elsewhere_is_kept_and_checked(library: Library, tmp_path: Path):
    write_lora(tmp_path / "upload", PLACE)
    key = library.import_file(tmp_path / "upload", "../../Ma lora.safetensors")
    entry = library.entry(key)
    assert entry.name == "Ma lora"
    assert entry.file.is_relative_to(library.runs.outputs)
    assert not entry.compatible_tools
    job = next(library.runs.outputs.glob(".making-*")).name.removeprefix(".making-")
    assert done(library, job) == ("finished", "")
    assert "Forge" in library.entry(key).compatible_tools
    assert library.import_file(tmp_path / "upload", "Ma lora.safetensors") != key  # nothing is overwritten


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + b"x" * 200,
        b"\x80\4cos\nsystem\n(S'id'\ntR.",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        header("{"),
        header("[" * 50_000),
        header('{"a":1}'),
        struct.pack("<Q", 2**62) + b"{}",
        header('{"__metadata__":{"x":"y"}}'),
        header('{"lora_unet_x.lora_down.weight":{"dtype":"F16","shape":[4,4],"data_offsets":[0,99999]}}'),
        header('{"lora_unet_x.lora_down.weight":{"dtype":"F16","shape":[-4,4],"data_offsets":[0,0]}}'),
        header(
            "{"
            + ",".join(
                f'"lora_unet_{n}.alpha":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'
                for n in range(20_001)
            )
            + "}"
        ),
        header('{"model.diffusion_model.x":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'),
    ],
)
def test_a_hostile_file_is_refused_in_one_sentence_and_leaves_nothing(
    library: Library, tmp_path: Path, content: bytes
):
    (tmp_path / "4f7d").write_bytes(content)
    with pytest.raises(LoraFileError) as refused:
        library.import_file(tmp_path / "4f7d", "evil.safetensors")
    assert str(refused.value).startswith("evil.safetensors")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert library.all() == ["ink"]
    assert not list(library.runs.outputs.rglob("evil*"))


def test_two_loras_are_merged_into_a_new_entry(library: Library, tmp_path: Path):
    write_lora(tmp_path / "upload", PLACE)
    other = library.import_file(tmp_path / "upload", "b.safetensors")
    both = LoraEdit(tool="merge", keys=("ink", other), weights=(1.0, 0.5), name="both")
    assert done(library, start_edit(library, both)) == ("finished", "")
    entry = library.entry("library:both")
    assert entry.origin == "merge"
    assert entry.made_from == ("ink", "b")
    assert entry.stem == "both"
    for wrong in (["ink"], ["ink", "ink"], []):
        with pytest.raises(TrainerError):
            start_edit(library, LoraEdit(tool="merge", keys=tuple(wrong), weights=(1.0,) * len(wrong)))
    with pytest.raises(TrainerError, match="rank"):
        start_edit(library, LoraEdit(tool="resize", keys=("ink",), rank=2000))


def test_keys_are_looked_up_never_joined(library: Library):
    for key in (
        "..",
        "",
        "/etc/passwd",
        "library:",
        "library:..",
        "library:../ink",
        "gone",
        "ink/../ink",
        "ink\0",
    ):
        with pytest.raises(RunError):
            library.entry(key)
        with pytest.raises(RunError):
            library.delete(key)


def test_deleting_removes_all_that_came_of_a_lora(library: Library, tmp_path: Path):
    outputs = library.runs.outputs
    thumbnail(library, "ink")
    for name, keys in (("one", ["ink"]), ("two", ["library:other"])):
        folder = outputs / ".drawing" / "drawn" / name
        folder.mkdir(parents=True)
        (folder / "asked.json").write_text(
            json.dumps({"kind": "draw", "files": [[key, 1.0] for key in keys]})
        )
    files, size = library.delete("ink")
    assert files > 10
    assert size > 100_000
    assert library.all() == []
    assert not (outputs / "ink").exists()
    assert not (outputs / ".drawing" / "drawn" / "one").exists()
    assert not list(outputs.rglob("*.webp"))
    assert (outputs / ".drawing" / "drawn" / "two").exists()
    assert not list(outputs.glob(".removing-*"))


@pytest.fixture
def client(library: Library, tmp_path: Path) -> TestClient:
    shutil.copytree(INK, tmp_path / "datasets" / "ink-emoji")
    app = build_app(
        host="127.0.0.1", datasets=tmp_path / "datasets", outputs=library.runs.outputs, models=MODELS
    )
    return TestClient(app, base_url="http://127.0.0.1:7860")


def test_what_goes_out_is_what_other_tools_and_the_hub_read(library: Library, client: TestClient):
    library.relabel(
        "ink",
        {
            "trigger": "inkk",
            "weight": 0.8,
            "licence": "My own: ask",
            "title": "Ink\n---\nevil: yes",
            "tags": "ink, wash",
            "own_work": True,
        },
    )
    assert 'filename="ink-12.safetensors"' in client.get("/download/ink").headers["content-disposition"]
    words = client.get("/download/ink/json").json()
    assert words["activation text"] == "inkk"
    assert words["preferred weight"] == 0.8
    assert words["sd version"] == "SDXL"
    assert Image.open(io.BytesIO(client.get("/download/ink/png").content)).format == "PNG"
    cover = client.get("/cover/ink")
    assert cover.headers["content-type"] == "image/webp"
    assert len(cover.content) < 60_000
    answer = client.get("/download/ink/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert {
            "ink-12.safetensors",
            "ink-12.json",
            "ink-12.png",
            "README.md",
            "images/p00_s0.00.png",
        } <= set(names)
        assert archive.read("ink-12.safetensors") == library.entry("ink").file.read_bytes()
        text = archive.read("README.md").decode()
    head = dict(line.split(": ", 1) for line in text.split("---\n")[1].splitlines())
    assert head["license"] == '"other"'
    assert head["license_name"] == '"My own: ask"'
    assert json.loads(head["tags"])[-2:] == ["ink", "wash"]
    assert json.loads(head["instance_prompt"]) == "inkk"
    assert "the author's own work" in text
    assert "images/p00_s1.00.png" in text


def test_a_strength_is_preferred_by_its_route_and_nonsense_is_refused(library: Library, client: TestClient):
    assert client.put("/prefer/ink", content=b'{"strength": 0.25}').status_code == 200
    assert library.entry("ink").label.weight == 0.25
    for body in (
        b"",
        b"[]",
        b'{"strength": "1"}',
        b'{"strength": 1e999}',
        b'{"strength": 1, "step": "x"}',
        b'{"strength": 1, "step": 11}',
        b"{}",
    ):
        assert client.put("/prefer/ink", content=body).status_code == 400, body
    assert client.put("/prefer/gone", content=b'{"strength": 1}').status_code == 400
    for path in (
        "/download/gone",
        "/download/ink/exe",
        "/cover/%2e%2e",
        "/drawn/x/y.png",
        "/download/library:..%2fink",
    ):
        assert client.get(path).status_code == 404, path


def test_a_thumbnail_inside_a_file_that_is_no_picture_is_no_picture(library: Library, tmp_path: Path):
    write_lora(tmp_path / "upload", PLACE)
    tensors = load_file(tmp_path / "upload")
    for said in (
        "data:image/png;base64,AAAA",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "http://example.org/x.png",
    ):
        save_file(tensors, tmp_path / "upload", metadata={"modelspec.thumbnail": said})
        key = library.import_file(tmp_path / "upload", "x.safetensors")
        assert embedded_picture(library, key) is None
        with pytest.raises(RunError):
            thumbnail(library, key)
