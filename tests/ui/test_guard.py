"""The outermost layer: who may speak to a studio, of what, and how much. Without accounts; those are in test_isolation.py."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MODELS
from tests.ui.conftest import routes_of, sample_home
from ui.access.body_limits import MultipartInspector, RequestRejected
from ui.access.hosts import Hosts, is_loopback, url
from ui.guard import Guard
from ui.server import build_app
from ui.store.limits import GB, Limits

HERE = "http://127.0.0.1:7860"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    home = sample_home(tmp_path_factory.mktemp("guarded"))
    return build_app(
        host="127.0.0.1",
        datasets=home / "datasets",
        outputs=home / "outputs",
        models=MODELS,
        limits=Limits(free_bytes=0),
    )


@pytest.fixture(scope="module")
def client(guard: Guard) -> TestClient:
    return TestClient(guard, base_url=HERE)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "LocalHost", "[::1]:7860"]
)
def test_the_studio_answers_to_its_own_names_in_any_spelling(client: TestClient, host: str):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.com",
        "127.0.0.1.",
        "localhost.evil.com:7860",
        "evil.example:7860",
        "127.0.0.1@evil.com",
        "",
        "[::1",
        "127.0.0.1:x",
        "127.0.0.1/evil.com",
        "2130706433",
        "0x7f.1",
    ],
)
def test_another_name_that_leads_here_is_refused(client: TestClient, host: str):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "gradio" not in answer.text


def test_what_is_turned_away_is_told_in_the_visitors_language(client: TestClient):
    answers = {
        tag: client.get("/nowhere", headers={"accept-language": tag}) for tag in ("en", "de", "ja", "xx")
    }
    assert {answer.status_code for answer in answers.values()} == {404}
    told = {tag: answer.json()["message"] for tag, answer in answers.items()}
    assert told == {
        "en": "Not found.",
        "de": "Nicht gefunden.",
        "ja": "見つかりません。",
        "xx": "Not found.",
    }


@pytest.mark.parametrize(
    "origin", [None, HERE, "https://evil.example", "null", "http://127.0.0.1:1", "http://[", "file://"]
)
@pytest.mark.parametrize("site", [None, "same-origin", "none", "same-site", "cross-site"])
@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/predict", "/logout"]
)
def test_only_the_studios_own_pages_may_post(
    client: TestClient, origin: str | None, site: str | None, path: str
):
    headers = {
        name: value for name, value in (("origin", origin), ("sec-fetch-site", site)) if value is not None
    }
    answer = client.post(path, content=b"{}", headers=headers, follow_redirects=False)
    allowed = origin in (None, HERE) and site in (None, "same-origin", "none")
    assert (answer.status_code != 403) == allowed
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_bound_to_every_address_the_studio_answers_to_numbers_and_named_names_only():
    hosts = Hosts.of("0.0.0.0", ("Studio.Example.com",))
    assert all(
        hosts.allows(host)
        for host in (
            "192.168.1.5:7860",
            "studio.example.com",
            "STUDIO.EXAMPLE.COM:443",
            "[fe80::1]:7860",
            "localhost",
        )
    )
    assert not any(
        hosts.allows(host)
        for host in ("evil.example", "192.168.1.5.evil.com", "studio.example.com.evil.com", "")
    )


def test_addresses_are_printed_as_a_browser_takes_them():
    assert url("::1", 7860) == "http://[::1]:7860"
    assert url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert is_loopback("::1")
    assert is_loopback("LOCALHOST")
    assert is_loopback("127.0.0.9")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("example.com")


@given(st.text(alphabet="127.0localhostevl:[]@/?#%x ", max_size=24))
def test_no_host_header_is_a_fault(text: str):
    assert Hosts.of("127.0.0.1").allows(text) == (
        text.lower().split(":")[0] in ("127.0.0.1", "localhost") and Hosts.of("127.0.0.1").allows(text)
    )


@pytest.mark.parametrize(
    "path",
    [
        "/pwa_icon",
        "/pwa_icon/4000",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/proxy=http://x.hf.space/",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/token",
        "/gradio_api/user",
        "/gradio_api/openapi.json",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/gradio_api/queue/status",
        "/gradio_api/file/etc/passwd",
        "/svelte/x.js",
        "/docs",
        "/openapi.json",
        "/gradio_api/custom_component/1/client/component/index.js",
        "/logout",
        "/gradio_api/profiling/traces",
        "/login_check",
        "/.env",
    ],
)
def test_gradios_other_routes_are_not_there(client: TestClient, path: str):
    assert client.get(path, follow_redirects=False).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/component_server",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/stream/x",
    ],
)
def test_gradios_other_posts_are_not_there(client: TestClient, path: str):
    assert client.post(path, content=b"{}", headers=JSON).status_code == 404


def spellings() -> Iterator[str]:
    for up in (
        "..",
        "%2e%2e",
        "..%2f..",
        "%2e%2e%2f%2e%2e",
        "....//",
        "..%5c..",
        "..;",
        "%252e%252e",
        "..%00",
        "%c0%ae%c0%ae",
    ):
        yield f"{up}/{up}/{up}/etc/passwd"
        yield f"{up}/{up}/config.toml"
        yield f"x/{up}/{up}/{up}/etc/passwd"
    yield from (
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:///etc/passwd",
        "C:%5cWindows%5cwin.ini",
        "%5c%5chost%5cshare",
        "~/.ssh/id_rsa",
        "leak.png",
    )


def test_no_spelling_of_a_path_leads_out(guard: Guard, client: TestClient):
    folder = guard.studio.datasets / "ink-emoji"
    (folder / "leak.png").symlink_to("/etc/passwd")
    wrong = []
    for spelling in spellings():
        for route in (
            "/thumb/ink-emoji/",
            "/thumb/",
            "/picture/ink/",
            "/picture/",
            "/download/",
            "/gradio_api/file=",
            "/static/",
            "/assets/",
        ):
            answer = client.get(route + spelling, follow_redirects=False)
            if (
                answer.status_code == 200
                or b"root:" in answer.content
                or str(folder).encode() in answer.content
            ):
                wrong.append(route + spelling)
    (folder / "leak.png").unlink()
    assert not wrong


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 65_536 + 1):
        yield b"x" * 65_536


@pytest.mark.parametrize("times", [2, 10, 100])
def test_a_body_is_counted_not_believed(client: TestClient, times: int):
    assert client.put("/caption/ink-emoji/owl.png", content=pieces(times * 64_000)).status_code == 413
    assert (
        client.post("/gradio_api/queue/join", content=pieces(times * 1_000_000), headers=JSON).status_code
        == 413
    )


def test_a_length_that_lies_gains_nothing(guard: Guard):
    said, _ = asyncio.run(
        ask(
            guard,
            "POST",
            "/gradio_api/queue/join",
            {"content-length": "10"},
            [b"x" * 900_000, b"x" * 900_000, b"x" * 900_000],
        )
    )
    assert said == 413
    said, taken = asyncio.run(
        ask(guard, "POST", "/gradio_api/queue/join", {"content-length": "99999999999"}, [b"x"])
    )
    assert (said, taken) == (413, 0)  # refused before a byte is read


def multipart(*parts: tuple[str, bytes]) -> tuple[dict[str, str], bytes]:
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return {"content-type": "multipart/form-data; boundary=b"}, body + b"--b--\r\n"


def test_text_within_an_upload_is_limited(client: TestClient):
    headers, body = multipart(('name="note"', b"x" * 200_000))
    assert client.post("/gradio_api/upload", content=body, headers=headers).status_code == 413
    headers, body = multipart(*[(f'name="f{i}"', b"") for i in range(1100)])
    assert client.post("/gradio_api/upload", content=body, headers=headers).status_code == 413
    headers, body = multipart((f'name="files"; filename="{"x" * 9000}.png"', b"x"))
    assert client.post("/gradio_api/upload", content=body, headers=headers).status_code in (400, 413)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary="])
def test_an_upload_that_is_none_is_refused(client: TestClient, kind: str):
    assert (
        client.post("/gradio_api/upload", content=b"x" * 100, headers={"content-type": kind}).status_code
        == 400
    )


@given(st.binary(max_size=300))
def test_damaged_uploads_are_refused_or_read_never_a_fault(body: bytes):
    parts = MultipartInspector("multipart/form-data; boundary=b")
    try:
        parts.inspect(b"--b\r\n" + body)
    except RequestRejected as refused:
        assert refused.status in (400, 413)


def test_an_upload_that_broke_off_is_swept_and_the_next_one_comes_in(guard: Guard, client: TestClient):
    headers, body = multipart(('name="files"; filename="a.png"', b"x" * 100_000))
    for cut in (200, 30_000, 90_000):
        asyncio.run(ask(guard, "POST", "/gradio_api/upload", headers, [body[:cut]], breaks_off=True))
    guard.studio.clean_up(0)
    assert not [path for path in guard.studio.uploads.folder.rglob("*") if path.is_file()]
    (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", b"small")}).json()
    assert Path(path).read_bytes() == b"small"
    assert client.get(f"/gradio_api/file={path}").content == b"small"


def test_a_nearly_full_disk_takes_no_upload(tmp_path: Path):
    from ui.workspace import Studio

    full = Studio(tmp_path, tmp_path, MODELS, Limits(free_bytes=10**9 * GB))
    app = Guard(None, full, build_doors(), Hosts.of("127.0.0.1"))  # pyright: ignore[reportArgumentType]
    answer = TestClient(app, base_url=HERE).post("/gradio_api/upload", files={"files": ("a.png", b"x")})
    assert answer.status_code == 507
    assert "no disk space left" in answer.json()["message"]


def test_the_studio_takes_no_more_than_its_limit(tmp_path: Path):
    from ui.workspace import Studio

    small = Studio(tmp_path, tmp_path, MODELS, Limits(free_bytes=0, studio_bytes=1000))
    app = Guard(None, small, build_doors(), Hosts.of("127.0.0.1"))  # pyright: ignore[reportArgumentType]
    answer = TestClient(app, base_url=HERE).post(
        "/gradio_api/upload", files={"files": ("a.png", b"x" * 2000)}
    )
    assert answer.status_code == 507
    assert "no disk space left" in answer.json()["message"]


def build_doors():
    from ui.access.allowlist import gradio_endpoints

    return gradio_endpoints(Limits())


async def ask(
    guard: Guard, method: str, path: str, headers: dict[str, str], body: list[bytes], breaks_off: bool = False
) -> tuple[int, int]:
    """A request as a hostile client sends it: (status, bytes that were taken of it)."""
    left, taken, status = list(body), 0, 0

    async def receive():
        nonlocal taken
        if left:
            taken += len(left[0])
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or breaks_off}
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal status
        status = message.get("status", status)

    said = {"host": "127.0.0.1:7860", **JSON, **headers}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 7860),
        "headers": [(k.encode(), v.encode()) for k, v in said.items()],
    }
    try:
        await guard(scope, receive, send)
    except Exception as error:  # noqa: BLE001 - what a server makes of an aborted request
        assert type(error).__name__ in ("ClientDisconnect", "ExceptionGroup"), error
    return status, taken


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/healthz",
        "/thumb/ink-emoji/owl.png",
        "/config",
        "/gone",
        "/login",
        "/gradio_api/info",
        "/studio.js",
    ],
)
def test_every_answer_says_how_it_must_be_treated(client: TestClient, path: str):
    headers = client.get(path, headers={"origin": "https://evil.example"}, follow_redirects=False).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert not [name for name in headers if name.startswith("access-control")]


def test_the_page_runs_no_script_but_the_studios_own(client: TestClient):
    answer = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    scripts = policy["script-src"].split()
    assert policy["default-src"] == "'none'"
    assert "'unsafe-inline'" not in scripts
    assert "*" not in answer.headers["content-security-policy"]
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", answer.text, re.DOTALL)
    hashed = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline
    }
    assert hashed
    assert hashed == {source for source in scripts if source.startswith("'sha256-")}
    assert not re.search(r"<[^>]+\son\w+\s*=", answer.text.split("<body")[1])


def test_nothing_is_told_to_anybody(guard: Guard, client: TestClient):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["show_error"] is False
    assert not config["footer_links"]
    assert not config.get("run_history")
    assert not config.get("is_space")
    page = next(
        route for route in routes_of(guard) if hasattr(route, "app") and hasattr(route.app, "get_blocks")
    ).app.get_blocks()
    assert page._queue.max_size == 100
    assert not page.enable_monitoring


def test_a_private_call_with_values_of_any_kind_tells_no_path(
    guard: Guard, client: TestClient, caplog: pytest.LogCaptureFixture
):
    functions = client.get("/config").json()["dependencies"]
    for junk in (None, True, "x" * 10_000, -1, 1e308, ["a"], {"a": 1}, "../../etc", "\0", "<script>"):
        for function in functions:
            data = [junk] * len(function["inputs"])
            call = {"fn_index": function["id"], "data": data, "session_hash": "junk"}
            answer = client.post("/gradio_api/run/predict", content=json.dumps(call), headers=JSON)
            assert "Traceback" not in answer.text
            assert str(guard.studio.outputs.parent) not in answer.text
    assert not [
        record.getMessage() for record in caplog.records if "the page's" in record.getMessage()
    ]  # each was refused in words
