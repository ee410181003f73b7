"""The studio behind a reverse proxy: sub-paths, host names and ports."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.served import free_port
from tests.conftest import MODELS
from tests.ui.conftest import BROWSER, sample_home
from tests.ui.test_isolation import PICTURE, PROJECT, TRAINING, fill
from ui.access import accounts
from ui.access.hosts import Hosts, displayable_name, root_path_from
from ui.access.sessions import COOKIE
from ui.guard import Guard
from ui.launch import studio_options
from ui.server import build_app
from ui.store.limits import Limits
from ui.text import Words
from ui.theme import HEAD, SCRIPT

SITE = "https://studio.example.com:8443"
DECLARED = Hosts.of("127.0.0.1", ("studio.example.com",))


class StrippingProxy:
    """A reverse proxy that serves an application under a path, as `location /impasto/` of nginx does.

    It strips the path and drops the port from the Host header, which nginx does with `Host $host`.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; any other path does not exist."""
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{self.path}/"):
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b"another server"})
                return
            headers = [
                (key, value.split(b":")[0] if key == b"host" else value) for key, value in scope["headers"]
            ]
            path, raw_path = scope["path"][len(self.path) :], scope["raw_path"][len(self.path) :]
            scope = {**scope, "path": path, "raw_path": raw_path, "headers": headers}
        await self.app(scope, receive, send)


def studio_under(home: Path, root_path: str, **options: Any) -> Guard:
    """Builds the studio of a folder, served under a path of `studio.example.com`."""
    return build_app(
        host="127.0.0.1",
        datasets=home / "datasets",
        outputs=home / "outputs",
        models=MODELS,
        limits=Limits(free_bytes=0),
        names=("studio.example.com", "localhost"),
        root_path=root_path,
        **options,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sample_home(tmp_path_factory.mktemp("proxied"))
    fill(folder / "datasets" / PROJECT, folder / "outputs" / TRAINING)
    return folder


@pytest.fixture(scope="module")
def guard(home: Path) -> Guard:
    return studio_under(home, "/impasto")


@pytest.fixture(scope="module")
def client(guard: Guard) -> TestClient:
    headers = {"origin": SITE, "accept": "text/html"}
    return TestClient(
        StrippingProxy(guard, "/impasto"), base_url=SITE, headers=headers, follow_redirects=False
    )


def base_of(page: str, address: str) -> str:
    match = re.search(r'<base href="([^"]*)"', page)
    assert match
    return urljoin(address, match[1])


def addresses_in(html: str) -> set[str]:
    return {unescape(address) for address in re.findall(r'(?:src|href|action)="([^"#]+)"', html)}


@pytest.mark.parametrize("opened", ["/impasto/", "/impasto"])
def test_every_address_in_the_page_stays_below_the_root_path(client: TestClient, opened: str):
    page = client.get("/impasto/").text
    base = base_of(page, SITE + opened)
    assert base == f"{SITE}/impasto/"
    own = {a for a in addresses_in(page) if "://" not in a} - {base, "/impasto/"}
    assert "./manifest.json" in own
    for address in own | addresses_in(HEAD):
        answer = client.get(urljoin(base, address))
        assert answer.status_code == 200, address
    assert '"root":"https://studio.example.com/impasto"' in page.replace('": "', '":"')


def test_pictures_downloads_captions_and_live_updates_work_through_the_proxy(
    client: TestClient, guard: Guard
):
    for path in (f"thumb/{PROJECT}/{PICTURE}.png", f"download/{TRAINING}", f"pulse?project={PROJECT}"):
        assert client.get(f"/impasto/{path}").status_code == 200, path
    saved = client.put(f"/impasto/caption/{PROJECT}/{PICTURE}.png", content="typed behind a proxy")
    assert saved.status_code == 200
    caption = guard.studio.datasets / PROJECT / f"{PICTURE}.txt"
    assert caption.read_text() == "typed behind a proxy\n"


def test_uploads_work_through_the_proxy(client: TestClient):
    sent = client.post("/impasto/gradio_api/upload", files={"files": ("a.txt", b"a cat")})
    assert sent.status_code == 200
    assert client.get(f"/impasto/gradio_api/file={sent.json()[0]}").content == b"a cat"
    config = client.get("/impasto/config").json()
    assert config["root"].endswith("/impasto")


def test_a_proxy_that_keeps_the_prefix_and_direct_requests_work_too(guard: Guard):
    direct = TestClient(guard, base_url="http://127.0.0.1:7860", follow_redirects=False)
    for path in ("/", "/impasto", "/impasto/", "/impasto/healthz", "/healthz", "/impasto/studio.js"):
        assert direct.get(path).status_code == 200, path
    assert direct.get("/impastor/healthz").status_code == 404


def test_login_and_logout_stay_below_the_root_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser_headers: dict[str, str]
):
    monkeypatch.setattr(accounts, "SCRYPT_N", 2**10)
    accounts.add_user(tmp_path / "users.toml", "ana", "a long password")
    guarded = studio_under(tmp_path, "/impasto", users=tmp_path / "users.toml")
    client = TestClient(StrippingProxy(guarded, "/impasto"), base_url=SITE, headers=browser_headers)
    shown = client.get("/impasto/")
    assert shown.url.path == "/impasto/login"
    assert {urljoin(str(shown.url), a).split("?")[0] for a in addresses_in(shown.text)} == {
        f"{SITE}/impasto/login",
        f"{SITE}/impasto/login.css",
        f"{SITE}/impasto/icon.svg",
    }
    form = {"username": "ana", "password": "a long password"}
    entered = client.post("/impasto/login", data=form)
    assert (entered.url.path, entered.status_code) == ("/impasto/", 200)
    assert [cookie.path for cookie in client.cookies.jar if cookie.name == COOKIE] == ["/impasto"]
    assert client.post("/impasto/logout").url.path == "/impasto/login"
    assert client.get("/impasto/pulse").status_code == 401


@pytest.fixture
def browser_headers() -> dict[str, str]:
    return {"origin": SITE, "accept": "text/html"}


def test_no_script_has_an_address_that_begins_with_a_slash():
    assert not re.findall(r"""(?<!\.)["'`]/[a-z_]+/?[^"'`\n]*["'`]""", SCRIPT)


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), ("/", ""), ("/impasto", "/impasto"), ("impasto/", "/impasto"), ("/a/b.c-d_~/", "/a/b.c-d_~")],
)
def test_a_root_path_may_have_slashes_at_both_ends(text: str, path: str):
    assert root_path_from(text) == path
    assert studio_options("app.py").parse_args(["--root-path", text]).root_path == path


@pytest.mark.parametrize("text", ["https://a.b/c", "/a//b", "/../a", "/a b", '/a"b', "/a?b"])
def test_what_is_no_path_is_rejected(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        studio_options("app.py").parse_args(["--root-path", text])
    assert "is not a path such as /impasto" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["x-7860.proxy.runpod.net", "Studio.LOCAL:8080", "my_box", "10.0.0.7"])
def test_a_rejected_host_is_named_with_the_option_that_allows_it(
    guard: Guard, capsys: pytest.CaptureFixture[str], host: str
):
    name = host.split(":")[0].lower()
    for _ in range(2):
        answer = TestClient(guard).get("/", headers={"host": host})
        assert answer.status_code == 403
        assert f"--allow-host {name}" in answer.json()["message"]
    printed = capsys.readouterr().err
    assert printed.count(f"add --allow-host {name}") == 1
    assert Hosts.of("127.0.0.1", (name,)).allows(host)


@pytest.mark.parametrize(
    "host", ["<script>alert(1)</script>", "a;rm -rf", 'a"b', "$(x)", "a'b", "é.example", ""]
)
def test_an_unsafe_host_is_never_repeated(guard: Guard, capsys: pytest.CaptureFixture[str], host: str):
    answer = TestClient(guard).get("/", headers={b"host": host.encode()})
    assert answer.status_code == 403
    assert answer.json()["message"] == Words("en")("refused.address")
    assert displayable_name(host) == ""
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ["studio.example.com", "STUDIO.example.com:8443", "https://studio.example.com:8443/"]
)
def test_an_allowed_host_may_be_given_as_name_or_address(value: str):
    assert Hosts.of("127.0.0.1", (value,)).allows("studio.example.com")
    assert Hosts.of("127.0.0.1", ("fe80::1",)).allows("[fe80::1]:7860")


@pytest.mark.parametrize(
    ("origin", "host", "forwarded"),
    [
        (SITE, "studio.example.com:8443", ""),
        (SITE, "studio.example.com", ""),  # nginx: Host $host
        (SITE, "studio.example.com:443", ""),  # a container's port
        ("https://studio.example.com", "studio.example.com:443", ""),  # nginx: Host $host:$server_port
        ("http://STUDIO.example.com", "studio.example.com:80", ""),
        (SITE, "127.0.0.1:7860", ""),  # nginx without a Host header
        (SITE, "127.0.0.1:7860", "studio.example.com:8443"),
        ("http://127.0.0.1:7860", "127.0.0.1:7860", ""),
        ("http://localhost", "localhost", ""),
    ],
)
def test_origins_of_the_studio_are_accepted_without_the_port_that_a_proxy_drops(
    origin: str, host: str, forwarded: str
):
    assert DECLARED.is_own_origin(origin, host, forwarded)


@pytest.mark.parametrize(
    "host", ["studio.example.com", "studio.example.com:8443", "127.0.0.1:7860", "localhost"]
)
@pytest.mark.parametrize("forwarded", ["", "evil.example", "studio.example.com, evil.example"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://studio.example.com.evil.example",
        "https://evil.example:8443",
        "https://xstudio.example.com",
        "https://example.com",
        "https://studio.example.com@evil.example",
        "https://evil.example/studio.example.com",
        "https://studio.example.com:x",
        "http://127.0.0.1:1",
        "http://localhost:3000",
        "studio.example.com",
        "null",
        "http://[",
        "file://",
        "",
    ],
)
def test_foreign_origins_are_rejected(origin: str, host: str, forwarded: str):
    assert not DECLARED.is_own_origin(origin, host, forwarded)


def test_another_program_on_a_declared_host_is_a_foreign_origin():
    assert not DECLARED.is_own_origin("https://studio.example.com:9000", "studio.example.com:8443")
    assert not Hosts.of("0.0.0.0").is_own_origin("http://192.168.1.5:9000", "192.168.1.5")


def test_a_foreign_site_may_not_post_although_the_proxy_drops_the_port(client: TestClient):
    for origin in ("https://evil.example", "null", "https://studio.example.com.evil.example:8443"):
        assert client.post("/impasto/stop/x", headers={"origin": origin}).status_code == 403
    across = {"sec-fetch-site": "cross-site"}
    assert client.post("/impasto/stop/x", headers=across).status_code == 403
    assert client.post("/impasto/stop/x", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.fixture
def proxied_address(guard: Guard) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(StrippingProxy(guard, "/impasto"), port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://localhost:{port}/impasto/"
    server.should_exit = True
    thread.join(timeout=10)


class TestInTheBrowser:
    """The page in a browser that sees nothing but the proxy."""

    pytestmark = BROWSER

    def test_the_page_works_under_a_sub_path_and_requests_nothing_outside(
        self, proxied_address: str, browser: Any, tmp_path: Path, home: Path
    ):
        page = browser.new_page()
        page.set_default_timeout(60_000)
        outside: list[str] = []
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((proxied_address, "data:", "blob:"))
                else outside.append(request.url)
            ),
        )
        page.goto(f"{proxied_address}?project={PROJECT}")
        page.wait_for_function("document.querySelector('#cards .picture img')?.naturalWidth > 0")
        Image.new("RGB", (64, 64), "red").save(tmp_path / "fresh.png")
        page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / "fresh.png"))
        page.wait_for_selector('#cards li[data-name="fresh.png"]')
        page.locator("#tab-captions-button").click()
        field = page.locator(f'#caption-list textarea[data-place="{PROJECT}/fresh.png"]')
        field.fill("a red sheet")
        field.blur()
        page.wait_for_function("document.querySelector('#caption-list')?.innerText.includes('Saved')")
        assert (home / "datasets" / PROJECT / "fresh.txt").read_text() == "a red sheet\n"
        assert outside == []
