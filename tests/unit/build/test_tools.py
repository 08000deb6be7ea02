# SPDX-License-Identifier: Apache-2.0
"""Set-up says what is missing, the size budget bites, `make help` lists what there is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / "tools"


def prerequisites(path: Path | str) -> subprocess.CompletedProcess:
    """Run the check with another search path for programs."""
    environment = {**os.environ, "PATH": str(path)}
    environment.pop("CC", None)
    environment.pop("CXX", None)
    command = [sys.executable, str(TOOLS / "prerequisites.py")]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )


def test_a_complete_machine_has_nothing_to_complain_about():
    if not all(shutil.which(name) for name in ("git", "cc", "c++")):
        pytest.skip("needs git, cc and c++ on the path")
    result = prerequisites(os.environ["PATH"])
    assert (result.returncode, result.stderr) == (0, "")


def test_everything_missing_is_said_at_once_with_the_way_to_get_it(tmp_path):
    result = prerequisites(tmp_path)
    assert result.returncode == 1
    assert "missing: git." in result.stderr
    assert (
        "missing: a C and a C++ compiler (no cc and no c++ on the path)"
        in result.stderr
    )
    assert "sudo apt install git" in result.stderr
    assert "sudo apt install build-essential" in result.stderr


def test_missing_python_headers_are_told_from_a_broken_compiler(tmp_path):
    for name in ("git", "cc", "c++"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'Python.h: No such file' >&2; exit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    result = prerequisites(f"{tmp_path}:/bin")
    assert result.returncode == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"missing: the headers of Python {version}" in result.stderr
    assert f"sudo apt install python{version}-dev" in result.stderr


def make(*words: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_a_python_that_does_not_exist_is_reported_before_anything_else():
    result = make("setup", "PYTHON=/nowhere/python3.12")
    assert result.returncode != 0
    assert "missing: Python 3.11 or 3.12" in result.stdout + result.stderr


@needs_make
def test_help_lists_every_target_that_has_a_comment():
    listed = re.findall(r"^make (\S+) ", make("help").stdout, flags=re.MULTILINE)
    targets = re.findall(
        r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert listed == targets
    assert {"setup", "demo", "test", "check", "fmt", "bench", "clean"} <= set(listed)


def size_budget(folder: Path) -> subprocess.CompletedProcess:
    """Run the size budget over a copy that lives in another folder."""
    (folder / "tools").mkdir()
    shutil.copy(TOOLS / "size_budget.py", folder / "tools")
    command = [sys.executable, str(folder / "tools" / "size_budget.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_long_files_and_functions_break_the_budget(tmp_path):
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "long.py").write_text("X = 1\n" * 401)
    (tmp_path / "sim" / "deep.py").write_text("def f():\n" + "    x = 1\n" * 60)
    result = size_budget(tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "sim/deep.py:f: 61 lines, budget 60; split it",
        "sim/long.py: 401 lines, budget 400; split it",
    ]


def test_files_within_the_budget_pass(tmp_path):
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "fits.py").write_text(
        "X = 1\n" * 340 + "def f():\n" + "    x = 1\n" * 59
    )
    assert size_budget(tmp_path).returncode == 0
