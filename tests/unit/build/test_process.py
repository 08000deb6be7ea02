# SPDX-License-Identifier: Apache-2.0
"""The exit code of a node process says whether a restart can help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NODE = """\
from qam_ros.contract.errors import ConfigError, QamError
def run(stop, args):
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise ConfigError('no such robot')", os.EX_CONFIG),
        ("stop.arm(); raise QamError('rows are gone')", 1),
        ("stop.arm(); return 0", 0),
        ("return 3", 3),
        ("import no_such_library", os.EX_CONFIG),
    ],
)
def test_only_what_is_refused_before_it_runs_has_the_code_of_wrong_settings(
    tmp_path: Path, body: str, code: int
) -> None:
    (tmp_path / "fake_node.py").write_text(f"{NODE}    {body}\n")
    program = (
        "import sys; from qam_ros.nodes.process import run_process; "
        "sys.exit(run_process('fake_node', None))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert ("error: " in done.stderr.lower().replace("notfounderror", "error")) == (
        "raise" in body or code == os.EX_CONFIG
    )
