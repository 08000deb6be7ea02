# SPDX-License-Identifier: Apache-2.0
"""Make the environment `.venv`: pinned packages, our own ones editable, `qam_msgs` built.

Run through `make setup`. Each step leaves a stamp with the hash of what it depends on, so a second
run takes a moment and an interrupted one goes on where it stopped. Choices (ROS, torch) stay as
they are until others are asked for. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import prerequisites

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
STAMPS = VENV / "stamps"
CONSTRAINTS = ROOT / "constraints.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def say(text: str) -> None:
    """Tell what is going on."""
    print(f"set-up: {text}", flush=True)


def pinned(package: str) -> str:
    """Return the version that constraints.txt pins for a package."""
    for line in CONSTRAINTS.read_text().splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version.strip()
    raise SystemExit(f"{package} has no line 'name==version' in {CONSTRAINTS.name}")


def fingerprint(*parts: str, files: tuple[Path, ...] = ()) -> str:
    """Return the SHA-256 over some words and the contents of some files."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamped(name: str) -> str:
    """Return what the stamp of a step says, empty when the step was not finished."""
    path = STAMPS / name
    return path.read_text() if path.is_file() else ""


def stamp(name: str, text: str) -> None:
    """Leave the stamp of a finished step."""
    (STAMPS / name).write_text(text)


def pip(*arguments: str, check: bool = True) -> bool:
    """Run the environment's pip with the pins.

    Args:
        arguments: what to install.
        check: leave with a message when it fails; otherwise say nothing.

    Returns:
        Whether it succeeded.
    """
    command = [
        *(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("-c", str(CONSTRAINTS), *arguments),
    ]
    errors = None if check else subprocess.DEVNULL
    code = subprocess.run(command, cwd=ROOT, stderr=errors, check=False).returncode
    if check and code != 0:
        raise SystemExit(
            f"set-up: pip ended with code {code} (its words are above). "
            "Check the network and run the same command again; it goes on from here."
        )
    return code == 0


def make_environment(ros: str, *, python_asked: bool) -> None:
    """Create the virtual environment; remake it when it was made otherwise or elsewhere.

    Args:
        ros: `wheels` or `system`.
        python_asked: the user named the Python to use, so a version that differs counts.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    made = stamped("environment").splitlines()
    runs = (
        Path(PYTHON).exists()
        and subprocess.run([PYTHON, "-c", ""], check=False).returncode == 0
    )
    if (
        made[:2] == [str(VENV), ros]
        and runs
        and (made[2] == version or not python_asked)
    ):
        return
    complaints = prerequisites.missing(ros_wheels=ros == "wheels")
    if complaints:
        raise SystemExit("\n".join(f"missing: {complaint}" for complaint in complaints))
    if VENV.exists() and not STAMPS.is_dir():
        raise SystemExit(
            "set-up: .venv is not from `make setup`; move it away, then run this again."
        )
    say(f"new environment in .venv (Python {version})")
    if VENV.exists():
        shutil.rmtree(VENV)
    STAMPS.mkdir(parents=True)
    options = ["--system-site-packages"] if ros == "system" else []
    subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)], check=True)
    stamp("ros", ros)
    stamp("environment", f"{VENV}\n{ros}\n{version}\n")


def install_torch(index: str | None) -> None:
    """Install the pinned torch, first and alone, from where a build without CUDA comes.

    Args:
        index: package index to take it from; None: as before, or the first time pip's own sources
            if they have a CPU build, else PyTorch's CPU index, else whatever pip finds.
    """
    version = pinned("torch")
    made = stamped("torch").splitlines()
    if made[:1] == [version] and index in (None, *made[1:]):
        return
    if index is not None:
        say(f"torch {version} from {index}")
        pip("--index-url", index, f"torch=={version}")
    elif pip(f"torch=={version}+cpu", check=False):
        say(f"torch {version}, CPU build")
    elif pip("--index-url", TORCH_CPU_INDEX, f"torch=={version}+cpu", check=False):
        say(f"torch {version}, CPU build from {TORCH_CPU_INDEX}")
    else:
        say(
            f"torch {version}: no CPU build in reach; pip's ordinary one may bring GBs of CUDA"
        )
        pip(f"torch=={version}")
    stamp("torch", f"{version}\n{index or ''}")


def install_packages(ros: str) -> None:
    """Install everything else and our own packages, editable."""
    extras = "train,sim,cluster,dev" + (",ros" if ros == "wheels" else "")
    wanted = fingerprint(extras, files=(CONSTRAINTS, ROOT / "setup.py"))
    if stamped("packages") == wanted:
        return
    say("pinned packages (a few minutes the first time)")
    pip(f"setuptools=={pinned('setuptools')}")
    pip("--no-build-isolation", "-e", f".[{extras}]")
    stamp("packages", wanted)


def build_messages(ros: str) -> None:
    """Make `qam_msgs` importable: built against the wheels, or by colcon on a sourced ROS 2."""
    if ros == "wheels":
        builder = ROOT / "tools" / "build_messages.py"
        if subprocess.run([PYTHON, str(builder)], check=False).returncode != 0:
            raise SystemExit("set-up: qam_msgs was not built; the reason is above.")
        return
    if subprocess.run([PYTHON, "-c", "import rclpy"], check=False).returncode != 0:
        raise SystemExit("set-up: ROS=system needs a sourced ROS 2, Jazzy or newer.")
    sources = sorted(p for p in (ROOT / "qam_msgs").rglob("*") if p.is_file())
    wanted = fingerprint(files=tuple(sources))
    # Our folder qam_msgs/ is importable too, but it has no messages in it.
    probe = [PYTHON, "-c", "from qam_msgs.msg import Transition"]
    found = subprocess.run(probe, stderr=subprocess.DEVNULL, check=False)
    ours = (ROOT / "install" / "qam_msgs").is_dir()
    if found.returncode == 0 and (stamped("messages") == wanted or not ours):
        return
    say(
        "qam_msgs by colcon into install/; source install/setup.sh before using .venv yourself"
    )
    colcon = [str(VENV / "bin" / "colcon"), "build", "--packages-select", "qam_msgs"]
    settings = {
        **os.environ,
        "COLCON_DEFAULTS_FILE": str(ROOT / "colcon.defaults.yaml"),
    }
    if subprocess.run(colcon, cwd=ROOT, env=settings, check=False).returncode != 0:
        raise SystemExit("set-up: colcon did not build qam_msgs; its words are above.")
    stamp("messages", wanted)


def main() -> int:
    """Do what is not yet done."""
    parser = argparse.ArgumentParser(description="Make the environment .venv.")
    parser.add_argument(
        "--ros", choices=("wheels", "system"), help="where ROS 2 comes from"
    )
    parser.add_argument("--torch-index", help="package index to take torch from")
    parser.add_argument(
        "--python-asked", action="store_true", help="this Python was asked for"
    )
    arguments = parser.parse_args()
    ros = arguments.ros or stamped("ros") or "wheels"
    make_environment(ros, python_asked=arguments.python_asked)
    install_torch(arguments.torch_index)
    install_packages(ros)
    build_messages(ros)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
