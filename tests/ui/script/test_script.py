"""The page's JavaScript without a browser: node runs `*.test.mjs` of this folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="tests of the page's script need node 18 or newer on the PATH")
@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name)
def test_the_script_passes_its_own_tests(path: Path):
    assert NODE is not None
    done = subprocess.run([NODE, "--test", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
