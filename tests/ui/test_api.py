"""The named endpoints: a script starts a training, follows it, fetches its file, and can't reach past its own workspace."""

from __future__ import annotations

import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.conftest import INK, MODELS, ROOT
from ui.access.accounts import add_user
from ui.server import build_app


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, ink_run: Path):
    """A studio with accounts, in this process: Ana has the sample set and a finished training; nothing is started."""
    home = tmp_path_factory.mktemp("api")
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    shutil.copytree(ink_run, home / "outputs" / "_users" / "ana" / "ink")
    users = home / "users.toml"
    for name in ("ana", "ben"):
        add_user(users, name, "a long enough password")
    app = build_app(
        host="127.0.0.1", datasets=home / "datasets", outputs=home / "outputs", models=MODELS, users=users
    )
    app.studio.queue.devices = ()
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def client_of(address: str, name: str) -> Client:
    answer = httpx.post(f"{address}/login", data={"username": name, "password": "a long enough password"})
    cookies = "; ".join(f"{key}={value}" for key, value in answer.cookies.items())
    return Client(address, headers={"Cookie": cookies}, verbose=False)


def test_the_documented_script_works_with_an_account(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    page = (ROOT / "docs" / "engineers" / "api.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert script
    monkeypatch.chdir(tmp_path)
    text = script[1].replace("http://127.0.0.1:7860", address)
    text = text.replace('NAME, PASSWORD = "", ""', 'NAME, PASSWORD = "ana", "a long enough password"')
    # The new training stays in the queue; a finished run stands for it, because training takes minutes.
    text = text.replace("\nwhile", "\nqueued, run = run, 'ink'\nwhile", 1)
    names: dict = {}
    exec(compile(text, "api.md", "exec"), names)
    assert names["queued"] == "ink-emoji"
    assert names["lora"]["name"] == "ink.safetensors"
    assert (tmp_path / "ink.safetensors").stat().st_size > 100_000


def test_only_four_endpoints_are_named(address: str):
    api: Any = client_of(address, "ana").view_api(return_format="dict")
    assert set(api["named_endpoints"]) == {"/start_training", "/status", "/preview", "/download"}


def test_what_a_script_sends_is_checked_like_everything_else(address: str):
    client = client_of(address, "ana")
    wrong = [
        ("../ana", {}),
        ("ink-emoji", {"rank": 5000}),
        ("ink-emoji", {"optimizer_class": "os.system"}),
        ("ink-emoji", {"unknown": 1}),
        ("ink-emoji", {"base": "/etc"}),
        ("ink-emoji", {"start_from": "/etc/passwd"}),
        ("ink-emoji", {"name": "a/b"}),
        ("ink-emoji", {"learning_rate": True}),
    ]
    for project, settings in wrong:
        with pytest.raises(AppError) as told:
            client.predict(project, settings, api_name="/start_training")
        assert "/etc" not in str(told.value).replace("'/etc'", "")
        assert "Traceback" not in str(told.value)
    with pytest.raises(AppError):
        client.predict("ink", "x" * 5000, [0.0], 0, api_name="/preview")


def test_no_user_reaches_anothers_training(address: str):
    ben = client_of(address, "ben")
    for endpoint in ("/status", "/download"):
        with pytest.raises(AppError, match="no longer exists"):
            ben.predict("ink", api_name=endpoint)
    assert client_of(address, "ana").predict("ink", api_name="/status")["state"] == "finished"
