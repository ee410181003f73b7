"""Pictures of a project by their routes: shown, cropped, counted, masked, removed, restored; and the project deleted."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.conftest import INK, MODELS
from trainer.config import config_from
from trainer.dataset.folder import mask_file
from trainer.dataset.scan import scan
from trainer.errors import DatasetError
from trainer.runs import run
from ui.server import build_app
from ui.store.deletion import DeletionReceipt, delete_project
from ui.store.limits import Limits
from ui.store.picture_checks import PictureChecks, picture_report
from ui.store.project_settings import write_settings
from ui.store.projects import Projects
from ui.store.training_goal import training_goal
from ui.store.uploads import UploadedFiles
from ui.text import Words
from ui.views.artwork import cards_html, findings_html, removed_html
from ui.workspace import Workspace


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("house")
    (home / "outputs").mkdir()
    art = home / "datasets" / "art"
    (art / "10_sks cat").mkdir(parents=True)
    Image.new("RGB", (700, 100), "red").save(art / "wide.png")
    shutil.copy(INK / "owl.png", art / "owl.png")
    shutil.copy(INK / "owl.png", art / "10_sks cat" / "tom.png")
    (art / "owl.txt").write_text("an owl")
    app = build_app(host="127.0.0.1", datasets=home / "datasets", outputs=home / "outputs", models=MODELS)
    return home, TestClient(app, base_url="http://127.0.0.1:7860")


def drawn(size: tuple[int, int], value: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("L", size, value).save(data, format="PNG")
    return data.getvalue()


def workspace_at(home: Path) -> Workspace:
    outputs = home / "outputs"
    uploads = UploadedFiles(outputs / "uploads")
    return Workspace.open(home / "datasets", outputs, MODELS, limits=Limits(), uploads=uploads)


def test_pictures_come_small_and_large(house):
    _, client = house
    for name in ("owl.png", "10_sks%20cat/tom.png"):
        small = client.get(f"/thumb/art/{name}")
        assert small.headers["content-type"] == "image/webp"
        assert len(small.content) <= 60_000
        assert Image.open(io.BytesIO(small.content)).size == (384, 384)
    assert Image.open(io.BytesIO(client.get("/large/art/wide.png").content)).size == (700, 100)


@pytest.mark.parametrize("route", ["thumb", "large", "mask", "thumb-removed"])
@pytest.mark.parametrize(
    "name",
    [
        "owl.txt",
        "gone.png",
        "..%2f..%2fapp.py",
        ".impasto/pictures.json",
        "%2e%2e/art/owl.png",
        "owl%00.png",
        "10_sks%20cat",
        "masks/owl.png",
        "..\\owl.png",
    ],
)
def test_only_pictures_are_shown(house, route: str, name: str):
    assert house[1].get(f"/{route}/art/{name}").status_code == 404


def test_a_link_out_of_the_project_is_no_picture(house, tmp_path: Path):
    home, client = house
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    link = home / "datasets" / "art" / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    try:
        assert client.get("/thumb/art/link.png").status_code == 404
    finally:
        link.unlink()


def test_repeats_and_crops_are_kept_and_reach_the_training(house):
    home, client = house
    assert client.put("/choice/art/wide.png", json={"repeats": 3}).status_code == 200
    assert client.put("/choice/art/wide.png", json={"crop": [0.25, 0.5]}).json()["message"] == "Saved"
    item = next(item for item in scan(home / "datasets" / "art").items if item.name == "wide.png")
    assert item.repeats == 3
    assert item.crop == (0.25, 0.5)
    for body in (
        '{"repeats": 0}',
        '{"repeats": true}',
        '{"repeats": 1e9}',
        '{"crop": [2, 0]}',
        '{"crop": [NaN, 0]}',
        "{}",
        "[]",
        "x",
        '{"path": "/"}',
    ):
        assert client.put("/choice/art/wide.png", content=body).status_code == 400, body
    assert client.put("/choice/art/gone.png", json={"repeats": 3}).status_code == 400
    assert client.put("/choice/art/wide.png", json={"crop": None, "repeats": 1}).status_code == 200
    assert json.loads((home / "datasets" / "art" / ".impasto" / "pictures.json").read_text()) == {}


def test_a_drawn_mask_is_kept_shown_and_taken_away(house):
    home, client = house
    assert client.put("/mask/art/owl.png", content=drawn((256, 256))).status_code == 200
    assert Image.open(io.BytesIO(client.get("/mask/art/owl.png").content)).size == (512, 512)
    assert client.put("/mask/art/owl.png", content=b"no mask").status_code == 400
    assert client.put("/mask/art/owl.png", content=bytes(25_000_000)).status_code in (400, 413)
    assert client.put("/mask/art/owl.png", content=drawn((512, 512), 255)).status_code == 200
    assert mask_file(home / "datasets" / "art" / "owl.png") is None


def test_the_brush_shows_a_mask_as_the_training_reads_it(house):
    home, client = house
    page = Image.new("RGBA", (512, 512), (255, 255, 255, 0))
    page.paste((255, 255, 255, 255), (0, 0, 256, 512))
    page.save(home / "datasets" / "art" / "owl.mask.png")
    shown = Image.open(io.BytesIO(client.get("/mask/art/owl.png").content))
    assert shown.mode == "L"
    assert (shown.getpixel((100, 100)), shown.getpixel((400, 100))) == (255, 0)


def test_a_removed_picture_takes_its_caption_and_mask_along_and_brings_them_back(house):
    home, client = house
    art = home / "datasets" / "art"
    client.put("/mask/art/owl.png", content=drawn((512, 512)))
    before = {
        path.relative_to(art).as_posix(): path.read_bytes()
        for path in art.rglob("*.*")
        if path.is_file() and ".impasto" not in path.parts
    }
    assert client.post("/remove/art/owl.png").status_code == 200
    assert client.post("/remove/art/10_sks%20cat/tom.png").status_code == 200
    assert [item.name for item in scan(art).items] == ["wide.png"]
    assert not (art / "owl.txt").exists()
    assert client.get("/thumb-removed/art/owl.png").status_code == 200
    assert client.post("/restore/art/owl.png").json()["name"] == "owl.png"
    assert client.post("/restore/art/10_sks%20cat/tom.png").json()["name"] == "10_sks cat/tom.png"
    after = {
        path.relative_to(art).as_posix(): path.read_bytes()
        for path in art.rglob("*.*")
        if path.is_file() and ".impasto" not in path.parts
    }
    assert after == before
    assert client.post("/restore/art/owl.png").status_code == 400


def test_a_restored_picture_does_not_overwrite_a_new_one_of_its_name(tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    art = tmp_path / "datasets" / projects.create("art")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 40), colour).save(art / "a.png")
        (art / "a.txt").write_text(colour)
        if colour == "red":
            projects.remove("art", "a.png")
    assert projects.restore("art", "a.png") == "a-2.png"
    assert {card.name: card.caption for card in projects.pictures("art")} == {
        "a.png": "blue",
        "a-2.png": "red",
    }


def test_the_crop_is_drawn_in_the_buckets_of_the_chosen_base(tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    art = tmp_path / "datasets" / projects.create("art")
    Image.new("RGB", (1000, 100), "red").save(art / "wide.png")
    for resolution, kept in ((128, 400), (512, 400)):
        write_settings(art, {"preset": "style", "trigger": "ink"}, {"resolution": resolution})
        cards, aims = projects.pictures("art"), training_goal(art, MODELS)
        found = picture_report(PictureChecks(projects), "art", cards, aims)
        at = found.placements["wide.png"]
        assert at.bucket[0] <= 2 * resolution
        assert aims.trigger == "ink"
        page = cards_html(Words(), "art", cards, found)
        assert 'viewBox="0 0 1000 100"' in page
        assert 'role="slider"' in page
        assert f'width="{float(kept)}"' in page
    assert "are few for a" in findings_html(Words(), found)


def test_names_with_markup_are_shown_as_text(tmp_path: Path):
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    art = tmp_path / "datasets" / projects.create("art")
    Image.new("RGB", (40, 40)).save(art / "<b onclick=x>&.png")
    (art / "<b onclick=x>&.txt").write_text("<i>caption</i>")
    page = cards_html(
        Words(),
        "art",
        projects.pictures("art"),
        picture_report(PictureChecks(projects), "art", projects.pictures("art"), training_goal(art, MODELS)),
    )
    page += removed_html(Words(), "art", ["<b onclick=x>&.png"])
    assert "<b onclick" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;caption" in page


def trained(home: Path) -> None:
    """A run “ink” of the project “art”, as far as the studio knows runs."""
    config = config_from({"name": "ink", "steps": 2})
    made = run.create(home / "outputs" / "ink", config, scan(INK))
    (made.path / "project.json").write_text('{"project": "art"}')


def delete(workspace: Workspace, project: str, *, with_trainings: bool) -> DeletionReceipt:
    return delete_project(
        workspace.projects, workspace.runs, workspace.words, project, with_trainings=with_trainings
    )


def test_deleting_a_project_leaves_no_file_of_it(tmp_path: Path):
    here = workspace_at(tmp_path)
    here.projects.create("art")
    shutil.copy(INK / "owl.png", tmp_path / "datasets" / "art" / "secret-owl.png")
    (tmp_path / "datasets" / "art" / "secret-owl.txt").write_text("secret words")
    here.projects.thumbnail("art", "secret-owl.png")
    trained(tmp_path)
    (tmp_path / "outputs" / ".cache" / "latents").mkdir(parents=True)
    (tmp_path / "outputs" / ".cache" / "latents" / "x.safetensors").write_text("x")
    receipt = delete(here, "art", with_trainings=True)
    assert receipt.files == 3
    assert receipt.trainings == 1
    assert [
        path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".queue")
    ] == []


def test_deleting_a_project_can_keep_its_trainings(tmp_path: Path):
    here = workspace_at(tmp_path)
    here.projects.create("art")
    trained(tmp_path)
    assert delete(here, "art", with_trainings=False).trainings == 0
    assert here.runs.names() == ["ink"]
    assert here.projects.names() == []


@pytest.mark.parametrize("name", ["ink-emoji", "..", "", "gone", "/"])
def test_only_projects_of_ones_own_are_deleted(tmp_path: Path, name: str):
    here = workspace_at(tmp_path)
    shutil.copytree(INK, tmp_path / "datasets" / "ink-emoji")
    with pytest.raises(DatasetError):
        delete(here, name, with_trainings=True)
    assert len(here.projects.pictures("ink-emoji")) == 24


def test_a_thousand_pictures_are_listed_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opening a project must not open its pictures."""
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    art = tmp_path / "datasets" / projects.create("art")
    for number in range(1000):
        (art / f"{number}.png").write_bytes(b"not even a picture")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was opened"))
    assert len(projects.pictures("art")) == 1000
