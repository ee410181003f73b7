"""Gradio's scripts and styles: the same bytes as Gradio would send, kept by browsers, and named to the next page; nothing else."""

from __future__ import annotations

from pathlib import Path

import gradio
import pytest
from fastapi.testclient import TestClient

from tests.conftest import MODELS
from tests.ui.conftest import sample_home
from ui.access.accounts import add_user
from ui.server import build_app

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
SCRIPT = min((path for path in FOLDER.glob("*.js")), key=lambda path: path.stat().st_size).name
STYLE = min((path for path in FOLDER.glob("*.css")), key=lambda path: path.stat().st_size).name
HERE = "http://127.0.0.1:7860"


def client_of(home: Path, users: Path | None = None) -> TestClient:
    sample_home(home)
    app = build_app(
        host="127.0.0.1", datasets=home / "datasets", outputs=home / "outputs", models=MODELS, users=users
    )
    return TestClient(app, base_url=HERE)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(tmp_path_factory.mktemp("assets"))


@pytest.mark.parametrize("name", [SCRIPT, STYLE])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_file_is_gradios_own_and_kept_for_good(client: TestClient, name: str, encoding: str):
    answer = client.get(f"/assets/{name}", headers={"accept-encoding": encoding})
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers.get("content-encoding", "identity") == encoding
    assert "immutable" in answer.headers["cache-control"]
    assert "private" in answer.headers["cache-control"]
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["content-type"].split(";")[0] in (
        "text/javascript",
        "application/javascript",
        "text/css",
    )


@pytest.mark.parametrize(
    "name", ["none.js", "..%2findex.html", "%2e%2e%2findex.html", "%2fetc%2fpasswd", ".", "a%00b.js"]
)
def test_nothing_else_is_found_there(client: TestClient, name: str):
    assert client.get(f"/assets/{name}").status_code in (400, 404)


def test_what_pages_asked_for_the_next_page_names_in_its_head(client: TestClient):
    client.get(f"/assets/{SCRIPT}")
    client.get(f"/assets/{STYLE}")
    answer = client.get("/")
    head = answer.text.partition("</head>")[0]
    assert f'<link rel="modulepreload" href="./assets/{SCRIPT}">' in head
    assert f'href="./assets/{STYLE}" crossorigin>' in head
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_with_accounts_they_are_for_who_has_logged_in(tmp_path: Path):
    users = tmp_path / "users.toml"
    add_user(users, "ana", "a long enough password")
    client = client_of(tmp_path, users)
    refused = client.get(f"/assets/{SCRIPT}", follow_redirects=False)
    assert refused.status_code != 200
    assert "immutable" not in refused.headers.get("cache-control", "")
    client.post(
        "/login", data={"username": "ana", "password": "a long enough password"}, headers={"origin": HERE}
    )
    assert client.get(f"/assets/{SCRIPT}").status_code == 200
