# SPDX-License-Identifier: Apache-2.0
"""What a machine must bring before anything is installed. Standard library, any Python from 3.7.

`python3 tools/prerequisites.py` prints everything that is missing at once, each with the command
that gets it, and ends with code 1; with nothing missing it is silent.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

VERSIONS = ((3, 11), (3, 12))
FREE_GIB = 4
THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROGRAM = "#include <Python.h>\n#include <string>\nint main() { return 0; }\n"


def python_version() -> str | None:
    """Return what is wrong with this Python, or None."""
    if sys.version_info[:2] in VERSIONS:
        return None
    return (
        f"Python 3.11 or 3.12 (found {THIS} at {sys.executable}).\n"
        "    Debian/Ubuntu: sudo apt install python3.12 python3.12-dev python3.12-venv\n"
        "    Fedora:        sudo dnf install python3.12 python3.12-devel\n"
        "    elsewhere:     uv python install 3.12, then make PYTHON=/path/to/python3.12 ..."
    )


def machine() -> str | None:
    """Return what is wrong with the kernel or the processor, or None."""
    found = f"{platform.system()} {platform.machine()}"
    if found == "Linux x86_64":
        return None
    return f"Linux on x86-64 (found {found}): the ROS 2 wheels exist for it alone."


def disk() -> str | None:
    """Return a complaint when the disk is too full for the environment, or None."""
    free = shutil.disk_usage(".").free / 2**30
    if free >= FREE_GIB:
        return None
    return f"{FREE_GIB} GiB of free disk (found {free:.1f} GiB in {Path.cwd()})."


def virtual_environments() -> str | None:
    """Return a complaint when this Python cannot make virtual environments, or None."""
    probe = [sys.executable, "-c", "import venv, ensurepip"]
    result = subprocess.run(probe, stderr=subprocess.DEVNULL, check=False)
    if result.returncode == 0:
        return None
    return f"the Python module venv.\n    Debian/Ubuntu: sudo apt install python{THIS}-venv"


def git() -> str | None:
    """Return a complaint when git is missing, or None."""
    if shutil.which("git"):
        return None
    return "git.\n    Debian/Ubuntu: sudo apt install git\n    Fedora:        sudo dnf install git"


def compilers() -> str | None:
    """Return what is missing to compile C and C++ against this Python, or None."""
    names = (os.environ.get("CC", "cc"), os.environ.get("CXX", "c++"))
    missing = [name for name in names if shutil.which(name.split()[0]) is None]
    if missing:
        return (
            f"a C and a C++ compiler (no {' and no '.join(missing)} on the path).\n"
            "    Debian/Ubuntu: sudo apt install build-essential\n"
            "    Fedora:        sudo dnf install gcc gcc-c++"
        )
    include = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROGRAM)
        command = [*names[1].split(), "-fsyntax-only", "-I", include, str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return None
    if "Python.h" in result.stderr:
        return (
            f"the headers of Python {THIS} (no Python.h in {include}).\n"
            f"    Debian/Ubuntu: sudo apt install python{THIS}-dev\n"
            f"    Fedora:        sudo dnf install python{THIS}-devel"
        )
    return f"a working C++ compiler: {names[1]} says\n{result.stderr.strip()}"


def missing(*, ros_wheels: bool = True) -> list[str]:
    """Return the complaints about this machine; the wheels need more than a sourced ROS 2."""
    checks = [python_version, virtual_environments, git, compilers, disk]
    if ros_wheels:
        checks.insert(1, machine)
    return [complaint for complaint in (check() for check in checks) if complaint]


def main() -> int:
    """Print what is missing; the exit code says whether anything is."""
    complaints = missing()
    for complaint in complaints:
        print(f"missing: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
