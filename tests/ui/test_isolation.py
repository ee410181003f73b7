"""Two users of one studio: whatever the one asks for, the other's work is as good as not there, and nobody sees nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import save_file
from starlette.routing import Match

from tests.conftest import MODELS
from tests.ui.conftest import routes_of, sample_home
from trainer.config import TrainConfig
from trainer.dataset.scan import scan
from trainer.runs import run
from ui.access import accounts
from ui.access.sessions import COOKIE
from ui.guard import Guard
from ui.server import build_app
from ui.store.limits import Limits

HERE = "http://127.0.0.1:7860"
JSON = {"content-type": "application/json"}
PROJECT, PICTURE, TRAINING, WORDS = "anas-project", "anas-picture", "anas-training", "anas own words"
PUBLIC = {
    "/healthz",
    "/studio.js",
    "/login.css",
    "/icon.svg",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/login",
    "/logout",
}


class House(NamedTuple):
    guard: Guard
    ana: TestClient
    ben: TestClient
    nobody: TestClient

    def __str__(self) -> str:
        return "house"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "SCRYPT_N", 2**10)
        home = sample_home(tmp_path_factory.mktemp("shared"))
        for name in ("ana", "ben"):
            accounts.add_user(home / "users.toml", name, "a long password")
        guard = build_app(
            host="127.0.0.1",
            datasets=home / "datasets",
            outputs=home / "outputs",
            models=MODELS,
            limits=Limits(free_bytes=0),
            users=home / "users.toml",
        )
        studio = guard.studio
        assert studio.accounts
        assert studio.sessions
        fill(home / "datasets" / "_users" / "ana" / PROJECT, home / "outputs" / "_users" / "ana" / TRAINING)
        tokens = {
            name: studio.sessions.open(name, studio.accounts.fingerprint(name) or "")
            for name in ("ana", "ben")
        }

        def client(cookies: dict[str, str]) -> TestClient:
            return TestClient(guard, base_url=HERE, cookies=cookies, follow_redirects=False)

        yield House(guard, client({COOKIE: tokens["ana"]}), client({COOKIE: tokens["ben"]}), client({}))


def fill(project: Path, training: Path) -> None:
    """Ana's pictures, captions, mask and training."""
    (project / "masks").mkdir(parents=True)
    for name in (PICTURE, f"{PICTURE}-2"):
        Image.new("RGB", (128, 128), "purple").save(project / f"{name}.png")
        (project / f"{name}.txt").write_text(WORDS)
    Image.new("L", (128, 128), 255).save(project / "masks" / f"{PICTURE}.png")
    made = run.create(training, TrainConfig(name=TRAINING, base="tiny-sdxl"), scan(project))
    (training / "project.json").write_text(json.dumps({"project": PROJECT}))
    Image.new("RGB", (64, 64), "purple").save(made.samples / "p00_s1.00.png")
    made.emit("sample", step=1, prompt=WORDS, file="p00_s1.00.png", strength=1.0, made=1)
    made.emit("finished")
    rank = {
        "ss_network_dim": "1",
        "ss_network_alpha": "1",
        "ss_output_name": TRAINING,
        "modelspec.title": WORDS,
    }
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    weights = {
        f"{stem}.lora_down.weight": np.zeros((1, 8), np.float16),
        f"{stem}.lora_up.weight": np.zeros((8, 1), np.float16),
    }
    save_file({**weights, f"{stem}.alpha": np.array(1, np.float16)}, made.lora_file, metadata=rank)


def fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def all_routes(routes: Any, seen: set[int] | None = None) -> Iterator[tuple[str, set[str]]]:
    """Every path that a route of the application serves, Gradio's included."""
    seen = seen if seen is not None else set()
    for route in routes:
        if id(route) in seen:
            continue
        seen.add(id(route))
        inner = (
            getattr(getattr(route, "app", None), "routes", None)
            or getattr(route, "routes", None)
            or getattr(getattr(route, "original_router", None), "routes", None)
        )
        if inner:
            yield from all_routes(inner, seen)
        elif hasattr(route, "path"):
            yield route.path, set(getattr(route, "methods", None) or {"GET"})


def own_routes(guard: Guard) -> list[tuple[str, str]]:
    """(method, path) of the studio's own routes that take a name."""
    found = [r for r in routes_of(guard) if "{" in getattr(r, "path", "") and hasattr(r, "methods")]
    return [(method, route.path) for route in found for method in sorted(route.methods or ())]


# nobody --------------------------------------------------------------------------------------------------------------------------


def test_who_is_not_logged_in_gets_nothing(house: House):
    routes = list(all_routes(routes_of(house.guard)))
    assert len(routes) > 80
    assert any("/gradio_api/queue/join" in path for path, _ in routes)
    open_to_all, refused = set(), 0
    for path, methods in routes:
        asked = re.sub(r"{[^}]*}", "x", path)
        for method in methods | {"GET"}:
            for spelled in {asked, asked + "/"}:
                answer = house.nobody.request(
                    method, spelled, content=b"{}" if method in ("POST", "PUT") else None, headers=JSON
                )
                if answer.status_code in (401, 403, 404) or (
                    answer.headers.get("location") == "/login" and path == "/"
                ):
                    refused += 1
                else:
                    open_to_all.add(path)
    assert open_to_all == PUBLIC
    assert refused > 250


@pytest.mark.parametrize("token", ["x", "../../sessions.sqlite3", "' OR 1=1 --", "\\ud800", "A" * 43])
def test_a_made_up_cookie_is_nobodys(house: House, token: str):
    assert TestClient(house.guard, base_url=HERE, cookies={COOKIE: token}).get("/config").status_code == 401


# the other ----------------------------------------------------------------------------------------------------------------------


def names(absent: bool = False) -> list[str]:
    """Names of things of user ana, or similar names of nothing."""
    found = {PROJECT, TRAINING, f"{PICTURE}.png", "p00_s1.00.png", "stop"}
    return sorted(name.replace("anas-", "gone-") if absent else name for name in found)


def test_the_one_can_open_what_is_hers(house: House):
    assert house.ana.get(f"/thumb/{PROJECT}/{PICTURE}.png").status_code == 200
    assert house.ana.get(f"/picture/{TRAINING}/p00_s1.00.png").status_code == 200
    assert house.ana.get(f"/download/{TRAINING}").status_code == 200
    assert house.ana.put(f"/caption/{PROJECT}/{PICTURE}-2.png", content=WORDS).status_code == 200


def test_no_route_tells_the_other_whether_a_thing_is_there(house: House):
    home = house.guard.studio.datasets.parent
    before = fingerprint(home / "datasets" / "_users" / "ana") + fingerprint(
        home / "outputs" / "_users" / "ana"
    )
    asked, wrong = 0, []
    for method, path in own_routes(house.guard):
        holes = re.findall(r"{[^}]*}", path)
        pairs = zip(
            itertools.product(names(), repeat=len(holes)),
            itertools.product(names(absent=True), repeat=len(holes)),
            strict=True,
        )
        for hers, nobodys in pairs:
            if not any("anas-" in name for name in hers):
                continue
            answers = []
            for filling in (hers, nobodys):
                parts = iter(filling)
                place = re.sub(r"{[^}]*}", lambda _, parts=parts: next(parts), path)
                content = b'{"strength": 0.5}' if method in ("POST", "PUT") else None
                answer = house.ben.request(method, place, content=content, headers=JSON if content else {})
                answers.append((answer.status_code, answer.text.replace("anas-", "gone-")))
                asked += 1
            if answers[0] != answers[1] or (
                answers[0][0] == 200 and method == "GET" and "/making/" not in path
            ):
                wrong.append((method, path, hers, answers))
    assert asked > 250
    assert not wrong, wrong[:3]
    assert before == fingerprint(home / "datasets" / "_users" / "ana") + fingerprint(
        home / "outputs" / "_users" / "ana"
    )


def test_no_handler_tells_the_other_whether_a_thing_is_there(house: House):
    """Every function behind the page, by its number and by its name, with ana's names in every place of its arguments."""
    home = house.guard.studio.datasets.parent
    before = fingerprint(home / "datasets" / "_users" / "ana") + fingerprint(
        home / "outputs" / "_users" / "ana"
    )
    config = house.ben.get("/config").json()
    wrong, asked = [], 0
    for function in config["dependencies"]:
        count, name = len(function["inputs"]), function["api_name"]
        if name == "new_project":  # ben may call a project of his own as ana calls hers
            continue
        for hers in (
            TRAINING if asked % 3 else PROJECT,
            {"project": PROJECT, "run": TRAINING, "names": [f"{PICTURE}.png"]},
        ):
            said = []
            for value in (hers, json.loads(json.dumps(hers).replace("anas-", "gone-"))):
                session = f"bens-{len(said)}"  # two that have seen the same: a poll says nothing when nothing has changed
                call: dict[str, Any] = {
                    "data": [value] * count,
                    "session_hash": session,
                    "fn_index": function["id"],
                }
                if asked % 2 and isinstance(name, str):
                    answer = house.ben.post(f"/gradio_api/run/{name}", content=json.dumps(call), headers=JSON)
                else:
                    answer = house.ben.post("/gradio_api/run/predict", content=json.dumps(call), headers=JSON)
                said.append(
                    (
                        answer.status_code,
                        re.sub(r'"(average_)?duration":[\d.]+', "", answer.text.replace("anas-", "gone-")),
                    )
                )
            asked += 1
            if said[0] != said[1] or WORDS in said[0][1]:
                wrong.append((function["id"], name, hers, said))
    assert asked > 30
    assert not wrong, wrong[:2]
    assert before == fingerprint(home / "datasets" / "_users" / "ana") + fingerprint(
        home / "outputs" / "_users" / "ana"
    )


def test_the_page_itself_names_nobodys_things(house: House):
    for place in ("/", "/config", "/gradio_api/info"):
        for client in (house.ana, house.ben):
            text = client.get(place).text
            assert "anas-" not in text
            assert "_users" not in text
            assert str(house.guard.studio.outputs) not in text


def test_an_upload_is_its_senders_and_of_no_use_to_others(house: House):
    (path,) = house.ana.post(
        "/gradio_api/upload?upload_id=u", files={"files": ("a.png", b"anas own bytes")}
    ).json()
    assert house.ana.get(f"/gradio_api/file={path}").content == b"anas own bytes"
    for spelled in (
        path,
        path.replace("/a.png", "/./a.png"),
        path.replace("/a.png", "/../" + Path(path).parent.name + "/a.png"),
    ):
        assert house.ben.get(f"/gradio_api/file={spelled}").status_code == 404
        assert house.nobody.get(f"/gradio_api/file={spelled}").status_code == 401
    upload = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    for function in house.ben.get("/config").json()["dependencies"]:
        call = {
            "data": [[upload]] * len(function["inputs"]),
            "session_hash": "bens",
            "fn_index": function["id"],
        }
        assert (
            "anas own bytes"
            not in house.ben.post("/gradio_api/run/predict", content=json.dumps(call), headers=JSON).text
        )
    assert Path(path).read_bytes() == b"anas own bytes"
    assert not list((house.guard.studio.datasets / "_users" / "ben").rglob("a.png"))
    # The same file sent by both is both's.
    assert house.ben.post("/gradio_api/upload", files={"files": ("a.png", b"anas own bytes")}).json() == [
        path
    ]
    assert (
        house.ben.get(f"/gradio_api/file={path}").status_code
        == house.ana.get(f"/gradio_api/file={path}").status_code
        == 200
    )


def test_a_handler_reads_no_path_that_a_browser_makes_up(house: House):
    home = house.guard.studio.datasets.parent
    places = [
        "users.toml",
        f"datasets/_users/ana/{PROJECT}/{PICTURE}.png",
        f"outputs/_users/ana/{TRAINING}/{TRAINING}.safetensors",
    ]
    real = [Path("/etc/passwd"), *(home / place for place in places)]
    before = [path.read_bytes() for path in real]
    uploads = [
        {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}} for path in real
    ]
    for function in house.ben.get("/config").json()["dependencies"]:
        for said in (uploads, uploads[0]):
            call = {
                "data": [said] * len(function["inputs"]),
                "session_hash": "bens",
                "fn_index": function["id"],
            }
            house.ben.post("/gradio_api/run/predict", content=json.dumps(call), headers=JSON)
    assert [path.read_bytes() for path in real] == before
    assert not [
        path
        for path in (home / "datasets" / "_users" / "ben").rglob("*")
        if path.name in [p.name for p in real]
    ]


def test_a_session_of_the_page_belongs_to_its_user(house: House):
    """One session name, sent by two users, means two sessions."""
    function = next(f for f in house.ana.get("/config").json()["dependencies"] if not f["inputs"])
    call = {"data": [], "session_hash": "stolen", "fn_index": function["id"]}
    event = house.ana.post("/gradio_api/queue/join", content=json.dumps(call), headers=JSON).json()[
        "event_id"
    ]
    page = next(
        r.app.get_blocks() for r in routes_of(house.guard) if hasattr(getattr(r, "app", None), "get_blocks")
    )
    assert house.guard.private_id("ana", "stolen") in page._queue.pending_messages_per_session
    assert house.guard.private_id("ben", "stolen") not in page._queue.pending_messages_per_session
    assert "stolen" not in page._queue.pending_messages_per_session
    cancel = {"session_hash": "stolen", "fn_index": function["id"], "event_id": event}
    assert house.ben.post("/gradio_api/cancel", content=json.dumps(cancel), headers=JSON).status_code == 404
    assert house.ben.get(f"/gradio_api/call/anything/{event}").status_code == 404
    assert house.ben.get("/gradio_api/deep_link?session_hash=stolen").status_code == 404
    assert house.ana.post("/gradio_api/cancel", content=json.dumps(cancel), headers=JSON).status_code == 200


def test_a_new_user_begins_with_the_sample_set_of_their_own(house: House):
    house.ben.put("/caption/ink-emoji/owl.png", content="bens owl")
    root = house.guard.studio.datasets
    assert (root / "_users" / "ben" / "ink-emoji" / "owl.txt").read_text() == "bens owl\n"
    assert "bens owl" not in (root / "ink-emoji" / "owl.txt").read_text()
    assert house.guard.studio.initial.projects.names() == []  # what is in the page before anybody asks


def test_routes_and_doors_agree(house: House):
    """The guard admits exactly the paths that the router serves: a path can't mean two things."""
    for path in ("/thumb/a/b", "/thumb/a/b/c", "/thumb//b", "/download/a", "/caption/a/../b", "/login"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        routed = any(
            r.matches(scope)[0] == Match.FULL for r in routes_of(house.guard) if hasattr(r, "methods")
        )
        opened = any(
            endpoint.match("GET", path) for endpoint in house.guard.endpoints if endpoint.kind == "ours"
        )
        assert routed == opened, path


def test_what_is_new_and_the_fields_of_advanced_are_each_ones_own(house: House):
    kept = house.guard.studio.datasets / "_users" / "ana" / PROJECT / ".impasto" / "settings.json"
    assert house.ana.post(f"/settings/{PROJECT}", json={"rank": "8"}).status_code == 200
    before = kept.read_bytes()
    assert json.loads(before)["advanced"] == {"rank": 8}
    answers = [house.ben.post(f"/settings/{name}", json={"rank": "9"}) for name in (PROJECT, "gone")]
    assert {answer.status_code for answer in answers} == {400}
    assert answers[0].text == answers[1].text
    for wrong in (
        [],
        {"rank": 8},
        {"rank": "many"},
        {"rank": "8.5"},
        {"no_such": "1"},
        {"optimizer_class": "os.system"},
        {"title": "x" * 5000},
    ):
        answer = house.ana.post(f"/settings/{PROJECT}", json=wrong)
        assert answer.status_code == 400
        assert len(answer.json()["message"]) < 120
    assert house.ana.post(f"/settings/{PROJECT}", content=b"{", headers=JSON).status_code == 400
    assert kept.read_bytes() == before
    hers, his, nothing = (
        user.get("/pulse", params={"project": name}).json()
        for user, name in ((house.ana, PROJECT), (house.ben, PROJECT), (house.ben, "gone"))
    )
    assert hers["project"] == PROJECT
    assert TRAINING in hers["status"]
    assert his == nothing
    assert his["project"] == ""
    assert TRAINING not in his["status"]


def test_the_mark_of_a_section_changes_with_what_it_shows(house: House):
    def marks() -> dict[str, str]:
        return house.ana.get("/pulse", params={"project": PROJECT}).json()["marks"]

    before = marks()
    assert marks() == before
    made = run.create(
        house.guard.studio.outputs / "_users" / "ana" / "anas-second",
        TrainConfig(name="x", base="tiny-sdxl"),
        [],
    )
    assert {name for name, mark in marks().items() if mark != before[name]} >= {"made", "try_it", "library"}
    (made.path / "project.json").write_text(json.dumps({"project": PROJECT}))
    made.emit("step", step=1, steps=9, loss=0.1)
    started = marks()
    made.emit("step", step=2, steps=9, loss=0.1)
    assert {name for name, mark in marks().items() if mark != started[name]} == {"train"}
