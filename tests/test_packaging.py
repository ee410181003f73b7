"""The wheel contains everything: installed elsewhere, the commands work from any folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALLEST
from trainer import SOFTWARE


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Impasto as `pip install .` leaves it, without the dependencies, which this environment has."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheel"), str(ROOT)]
    subprocess.run(wheel, check=True)
    target = [*pip, "install", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*target, *map(str, (folder / "wheel").glob("*.whl"))], check=True)
    (folder / "elsewhere").mkdir()
    return folder


def impasto(installed: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """`impasto ARGUMENTS` in a folder that holds nothing, with a home folder of its own."""
    program = installed / "site" / "bin" / ("impasto.exe" if os.name == "nt" else "impasto")
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed / "site"),
        "IMPASTO_HOME": str(installed / "home"),
    }
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        cwd=installed / "elsewhere",
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def page_at(address: str, seconds: float = 60) -> str:
    """The page of a server that is starting: it prints its address shortly before it listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=seconds) as page:
                return page.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_impasto_prints_its_version(installed: Path):
    output, _ = impasto(installed, "--version").communicate(timeout=120)
    assert output.strip() == SOFTWARE


def test_impasto_trains_from_another_folder(installed: Path):
    output = installed / "elsewhere" / "run"
    # The first command copies the sample set that the training reads.
    assert impasto(installed, "base", "list").wait(timeout=120) == 0
    dataset = installed / "home" / "datasets" / "ink-emoji"
    training = impasto(installed, "train", dataset, "--output", output, "--steps", "1", *SMALLEST)
    printed, _ = training.communicate(timeout=300)
    assert training.returncode == 0, printed
    assert (output / "run.safetensors").is_file()


def test_impasto_studio_serves_the_page_from_another_folder(installed: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    server = impasto(installed, "studio", "--port", str(free_port))
    try:
        assert server.stdout is not None
        printed = ""
        for line in server.stdout:
            printed += line
            if address := re.search(r"http://\S+", line):
                break
        else:
            pytest.fail(printed)
        assert "Impasto" in page_at(address[0])
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_no_file_of_the_package_lands_outside_its_two_packages(installed: Path):
    scripts = Path(sysconfig.get_path("scripts")).name
    names = {path.name for path in (installed / "site").iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"trainer", "ui", scripts}
