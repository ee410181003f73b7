"""Login: passwords, failed attempts, sessions, the login page, and the commands for accounts."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MODELS, ROOT
from trainer.errors import TrainerError
from ui.access import accounts
from ui.access.accounts import (
    AccountError,
    Accounts,
    LoginThrottle,
    add_user,
    hash_password,
    user_name,
    verify_password,
)
from ui.access.allowlist import own_endpoints
from ui.access.hosts import Hosts
from ui.access.sessions import COOKIE, IDLE_SECONDS, Sessions, open_database
from ui.guard import Guard
from ui.launch import studio
from ui.routes import login, static
from ui.server import only_server
from ui.text import LANGUAGES, Words
from ui.workspace import Studio

HERE = "http://127.0.0.1:7860"
BROWSER = {"accept": "text/html,*/*", "origin": HERE, "sec-fetch-site": "same-origin"}
ANA = {"username": "Ana", "password": "vermilion & ink"}


def door(home: Path) -> Guard:
    """The login of a studio, without the page behind it."""
    studio = Studio(home / "datasets", home / "outputs", MODELS, users=home / "users.toml")
    app = FastAPI()
    static.add_routes(app)
    login.add_routes(app, studio)

    @app.get("/mine")
    def mine() -> str:
        return "private"

    return Guard(app, studio, own_endpoints(app.routes), Hosts.of("127.0.0.1"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        accounts, "SCRYPT_N", 2**10
    )  # the hash says its own cost; a quarter of a second each is for attackers
    accounts.unknown_user_hash.cache_clear()
    add_user(tmp_path / "users.toml", "ana", ANA["password"])
    return tmp_path


@pytest.fixture
def client(home: Path) -> TestClient:
    return TestClient(door(home), base_url=HERE, follow_redirects=False)


def test_a_password_is_kept_as_scrypt_of_a_salt_of_its_own():
    one, two = hash_password("vermilion"), hash_password("vermilion")
    _, n, r, p, salt, kept = one.split("$")
    assert one != two
    assert "vermilion" not in one
    assert int(n) * int(r) * 128 >= 32 * 2**20
    made = hashlib.scrypt(
        b"vermilion", salt=base64.b64decode(salt), n=int(n), r=int(r), p=int(p), maxmem=2**27, dklen=32
    )
    assert base64.b64decode(kept) == made
    assert verify_password("vermilion", one)


@pytest.mark.parametrize(
    "kept",
    ["", "plain", "md5$1$2$3$4$5", "scrypt$3$8$1$AA==$AA==", "scrypt$x$8$1$AA==$AA==", "scrypt$1024$8$1$*$*"],
)
def test_a_damaged_hash_lets_nobody_in(kept: str):
    assert not verify_password("", kept)
    assert not verify_password("plain", kept)


@given(st.text(max_size=60))
def test_a_users_name_is_a_safe_folder_name_or_refused(text: str):
    try:
        name = user_name(text)
    except AccountError:
        return
    assert not set(name) & set('/\\:*?"<>|\0\n ')
    assert name[0] not in "._-"
    assert user_name(name) == name
    assert len(name) <= 40


def test_a_user_is_one_in_any_spelling(home: Path):
    assert add_user(home / "users.toml", "ＡＮＡ", "another password") == "ana"
    users = Accounts(home / "users.toml")
    assert users.check("aNa", "another password") == "ana"
    assert users.check("ana", ANA["password"]) is None
    assert list(tomllib.loads((home / "users.toml").read_text())["users"]) == ["ana"]
    if os.name != "nt":
        assert (home / "users.toml").stat().st_mode & 0o077 == 0


def test_an_unknown_user_costs_as_much_as_a_wrong_password(home: Path, monkeypatch: pytest.MonkeyPatch):
    users, spent = Accounts(home / "users.toml"), []
    monkeypatch.setattr(
        hashlib,
        "scrypt",
        lambda *a, real=hashlib.scrypt, **k: spent.append((k["n"], k["r"], k["p"])) or real(*a, **k),
    )
    for name in ("ana", "nobody", "", "a/b", "x" * 500):
        accounts.unknown_user_hash()
        spent.clear()
        assert users.check(name, "wrong") is None
        assert spent == [(2**10, 8, 3)], name


def test_a_removed_user_is_out_and_a_broken_file_locks_nobody_out(home: Path):
    users = Accounts(home / "users.toml")
    add_user(home / "users.toml", "ben", "a long password")
    assert users.fingerprint("ben")
    (home / "users.toml").write_text("no toml [")
    assert users.fingerprint("ben")
    assert users.fingerprint("ana")
    add_again = home / "other.toml"
    add_user(add_again, "ana", ANA["password"])
    add_again.replace(home / "users.toml")
    assert users.fingerprint("ben") is None
    with pytest.raises(AccountError, match="add-user"):
        Accounts(home / "none.toml")


def test_of_a_thousand_guesses_a_minute_at_most_ten_reach_the_hash():
    clock = [0.0]
    throttle, reached = LoginThrottle(now=lambda: clock[0]), 0
    for _ in range(1000):
        clock[0] += 60 / 1000
        reached += throttle.start_attempt("ana", "a") == 0
    assert reached <= 10


def test_guesses_that_must_wait_are_not_compared(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    reached = []
    monkeypatch.setattr(Accounts, "check", lambda self, name, password: reached.append(name))
    said = [client.post("/login", data={"username": "ana", "password": f"guess {i}"}) for i in range(12)]
    assert len(reached) == 5
    assert [answer.status_code for answer in said] == [401] * 5 + [429] * 7
    assert int(said[-1].headers["retry-after"]) > 20
    assert "Wait" in said[-1].json()["message"]
    others = [
        client.post("/login", data={"username": f"user{i}", "password": "guess"}).status_code
        for i in range(50)
    ]
    assert others.count(401) <= 20  # nor does going through the names help


def test_waiting_grows_and_ends():
    clock = [0.0]
    throttle = LoginThrottle(now=lambda: clock[0])
    assert [throttle.start_attempt("ana", "a") for _ in range(6)] == [0, 0, 0, 0, 0, 30.0]
    clock[0] = 30
    assert throttle.start_attempt("ana", "a") == 0
    assert throttle.start_attempt("ana", "a") == 60
    assert throttle.start_attempt("ana", "another address") == 0
    assert throttle.start_attempt("ben", "a") == 0
    for _ in range(30):
        clock[0] += throttle.start_attempt("ana", "a")
    assert throttle.start_attempt("ana", "a") <= 3600
    clock[0] += 8000
    assert [throttle.start_attempt("ana", "a") for _ in range(5)] == [0] * 5
    throttle.record_success("ana", "a")
    assert throttle.start_attempt("ana", "a") == 0


def test_guesses_at_the_same_time_are_counted_too():
    throttle = LoginThrottle()
    with ThreadPoolExecutor(16) as guessers:
        waits = list(guessers.map(lambda _: throttle.start_attempt("ana", "a"), range(200)))
    assert waits.count(0) == LoginThrottle.FREE_ATTEMPTS


def test_a_session_outlives_the_server_and_only_its_hash_is_kept(tmp_path: Path):
    token = Sessions(tmp_path / "s.sqlite3").open("ana", "f")
    assert Sessions(tmp_path / "s.sqlite3").user(token) == ("ana", "f")
    assert token.encode() not in (tmp_path / "s.sqlite3").read_bytes()
    with sqlite3.connect(tmp_path / "s.sqlite3") as rows:
        assert (
            rows.execute("SELECT token FROM sessions").fetchone()[0]
            == hashlib.sha256(token.encode()).digest()
        )
    assert open_database(tmp_path / "s.sqlite3").execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_a_session_ends_when_it_is_not_used_and_stays_while_it_is(tmp_path: Path):
    clock = [1e9]
    sessions = Sessions(tmp_path / "s.sqlite3", now=lambda: clock[0])
    token = sessions.open("ana", "f")
    for _ in range(10):
        clock[0] += IDLE_SECONDS - 10
        assert sessions.user(token)
    clock[0] += IDLE_SECONDS + 10
    assert sessions.user(token) is None


def test_a_clock_that_jumps_back_neither_ends_sessions_nor_makes_them_last_for_ever(tmp_path: Path):
    clock = [1e9]
    sessions = Sessions(tmp_path / "s.sqlite3", now=lambda: clock[0])
    token = sessions.open("ana", "f")
    clock[0] = 0
    assert sessions.user(token)
    clock[0] = IDLE_SECONDS + 10
    assert sessions.user(token) is None


@pytest.mark.parametrize("token", ["", "x", "é", "\0", "' OR 1=1 --", "\ud800", "x" * 100_000])
def test_no_cookie_is_a_fault(tmp_path: Path, token: str):
    assert Sessions(tmp_path / "s.sqlite3").user(token) is None


def test_a_user_logs_in_by_a_form_and_out_by_a_post(client: TestClient, home: Path):
    assert client.get("/mine").status_code == 401
    answer = client.post("/login", data=ANA, headers=BROWSER)
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "Secure" not in cookie
    assert "Path=/" in cookie
    assert client.get("/mine").text == '"private"'
    token = client.cookies[COOKIE]
    assert (
        TestClient(door(home), base_url=HERE, cookies={COOKIE: token}).get("/mine").status_code == 200
    )  # the server was started anew
    assert client.get("/logout").status_code == 404
    assert client.get("/mine").status_code == 200
    assert client.post("/logout", headers=BROWSER).headers["location"] == "/login"
    assert client.get("/mine").status_code == 401
    assert (
        TestClient(door(home), base_url=HERE, cookies={COOKIE: token}).get("/mine").status_code == 401
    )  # not by an old copy either


def test_the_cookie_keeps_to_https_where_there_is_https(home: Path):
    safe = TestClient(door(home), base_url="https://127.0.0.1", follow_redirects=False)
    assert "Secure" in safe.post("/login", data=ANA).headers["set-cookie"]


def test_logging_in_again_gives_another_session(client: TestClient):
    client.post("/login", data=ANA)
    first = client.cookies[COOKIE]
    client.post("/login", data=ANA)
    assert client.cookies[COOKIE] != first
    assert TestClient(client.app, base_url=HERE, cookies={COOKIE: first}).get("/mine").status_code == 401


def test_a_new_password_ends_the_sessions_of_the_old_one(client: TestClient, home: Path):
    client.post("/login", data=ANA)
    assert client.get("/mine").status_code == 200
    add_user(home / "users.toml", "ana", "another password")
    assert client.get("/mine").status_code == 401


def test_a_wrong_password_and_an_unknown_name_are_answered_alike(client: TestClient):
    wrong, unknown = (
        client.post("/login", data={"username": name, "password": "wrong"}, headers=BROWSER)
        for name in ("ana", "eve")
    )
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.replace("ana", "eve") == unknown.text
    assert 'role="alert"' in wrong.text
    assert COOKIE not in wrong.cookies


def test_another_site_logs_nobody_in(client: TestClient):
    assert client.post("/login", data=ANA, headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_form_speaks_the_browsers_language(client: TestClient, language: str):
    page = client.get("/login", headers={"accept-language": f"{language},en;q=0.5"})
    assert f'<html lang="{language}">' in page.text
    assert Words(language)("login.lead") in page.text
    assert "<script" not in page.text
    assert "unsafe" not in page.headers["content-security-policy"]


def test_markup_in_a_name_is_shown_as_text(client: TestClient):
    page = client.post(
        "/login", data={"username": '"><img src=x onerror=alert(1)>', "password": "x"}, headers=BROWSER
    )
    assert "<img" not in page.text
    assert "&lt;img" in page.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"username=ana",
        b"password=x",
        b"username=%00&password=%00",
        b"username=ana&username=ben",
        b"{}",
    ],
)
def test_no_form_is_a_fault(client: TestClient, body: bytes):
    assert client.post("/login", content=body).status_code == 401


def test_what_everybody_sees_is_this_and_no_more(home: Path):
    """A new route is private unless it is added here as well."""
    doors = door(home).endpoints
    assert {path.path.pattern for path in doors if path.public} == {
        f"^{re.escape(path)}$"
        for path in (
            "/healthz",
            "/studio.js",
            "/login.css",
            "/icon.svg",
            "/favicon.ico",
            "/manifest.json",
            "/robots.txt",
            "/login",
            "/logout",
        )
    }


def test_a_user_is_added_by_what_is_piped_in(tmp_path: Path):
    command = [sys.executable, "app.py", "add-user", "ana", "--auth", str(tmp_path / "users.toml")]
    done = subprocess.run(command, cwd=ROOT, input="vermilion & ink\n", capture_output=True, text=True)
    assert done.returncode == 0
    assert "ana can log in" in done.stdout
    kept = tomllib.loads((tmp_path / "users.toml").read_text())["users"]["ana"]
    assert kept.startswith("scrypt$32768$8$3$")
    assert verify_password("vermilion & ink", kept)
    refused = subprocess.run(command, cwd=ROOT, input="short\n", capture_output=True, text=True)
    assert refused.returncode == 2
    assert "at least 8" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--share"], "--host 0.0.0.0 --auth"),
        (["--share", "--auth", "u.toml"], "not supported"),
        (["--host", "0.0.0.0"], "--open"),
        (["--host", "::"], "add-user"),
        (["--host", "192.168.1.5"], "--auth"),
    ],
)
def test_nobody_opens_a_studio_to_the_network_by_mistake(
    capsys: pytest.CaptureFixture, flags: list[str], said: str
):
    assert studio(flags, program="python app.py") == 2
    assert said in capsys.readouterr().err


def test_the_second_server_of_a_folder_names_the_first(tmp_path: Path):
    told = pytest.raises(TrainerError, match=rf"by process {os.getpid()} at http://127\.0\.0\.1:7860")
    with only_server(tmp_path, "http://127.0.0.1:7860"), told, only_server(tmp_path, "http://127.0.0.1:7861"):
        pass
    with only_server(tmp_path, "http://127.0.0.1:7861"):  # the first has ended
        pass


def test_a_dead_servers_place_is_taken_and_a_reused_number_is_no_server(tmp_path: Path):
    place = tmp_path / ".cache" / "server"
    place.mkdir(parents=True)
    for owner in (
        '{"pid": 999999999, "started": 1}',
        f'{{"pid": {os.getpid()}, "started": {psutil.Process().create_time() - 9999}}}',
        "half writ",
    ):
        (place / "owner.json").write_text(owner)
        with only_server(tmp_path, "http://127.0.0.1:7860"):
            pass


@pytest.mark.parametrize("name", ["हिन्दी", "தமிழ்", "ana-maría", "猫"])
def test_user_names_are_written_in_any_script(name: str):
    assert user_name(name) == name


@pytest.mark.parametrize("name", ["", "_ana", ".ana", "ana.", "a/b", "a b", "\u0301a", "x" * 41])
def test_unsafe_user_names_are_refused(name: str):
    with pytest.raises(AccountError):
        user_name(name)
