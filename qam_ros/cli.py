# SPDX-License-Identifier: Apache-2.0
"""The `qam` command: finds its subcommands in the entry-point group `qam.commands`.

Each package adds its own there, so a robot without torch still has those of the robot side. A
subcommand is a function (argv) -> exit code; the first line of its docstring is its help.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

from qam_ros.contract.errors import ConfigError, QamError, nearest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand; without one list them all.

    Returns:
        Exit code of the subcommand; 2 for a mistyped command or a user's error.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"qam {version('qam_ros')}")
        return 0
    try:
        return find_command(argv[0])(argv[1:])
    except QamError as error:
        print(f"qam {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (
        BrokenPipeError
    ):  # the reader of our output left, as in `qam data inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def find_command(name: str) -> Callable[[Sequence[str]], int]:
    """Function of a subcommand.

    Raises:
        ConfigError: no such subcommand (with the nearest name), or what it needs is not installed.
    """
    if name == "bench":
        return bench
    found = commands()
    if name not in found:
        raise ConfigError(f"no such command; {nearest(name, ['bench', *found])}")
    try:
        command: Callable[[Sequence[str]], int] = found[name].load()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in (
            "qam_ros",
            "qam_train",
            "sim",
        ):
            raise
        raise ConfigError(
            f"needs the package '{error.name}', which is not installed; run make setup, or "
            "pip install 'qam_ros[train,sim,ros]'"
        ) from error
    return command


def commands() -> dict[str, EntryPoint]:
    """Entry points of the installed subcommands by name."""
    return {entry.name: entry for entry in entry_points(group="qam.commands")}


def overview() -> str:
    """The list of subcommands with one line of help each."""
    lines = {name: first_line(entry) for name, entry in commands().items()}
    lines["bench"] = first_docstring_line(bench.__doc__)
    width = max(map(len, lines))
    rows = [f"  {name:{width}}  {lines[name]}" for name in sorted(lines)]
    return "\n".join(
        ["usage: qam COMMAND ...", "", *rows, "", "qam COMMAND --help says more."]
    )


def first_line(entry: EntryPoint) -> str:
    """Help of a subcommand, read from its source without importing what it needs."""
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        return f"(not installed: {entry.module})"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return first_docstring_line(ast.get_docstring(node))
    return ""


def first_docstring_line(docstring: str | None) -> str:
    """First line of a docstring, empty without one."""
    return (docstring or "").strip().partition("\n")[0]


def bench(argv: Sequence[str]) -> int:
    """Measure speed: run a script of the folder benchmarks.

    Args:
        argv: name of the benchmark, then its own arguments.

    Raises:
        ConfigError: no such benchmark, or an installation without the folder.
    """
    if not BENCHMARKS.is_dir():
        raise ConfigError(
            f"benchmarks are part of a checkout; there is no {BENCHMARKS}"
        )
    scripts = [
        p for p in BENCHMARKS.glob("*.py") if '"__main__"' in p.read_text("utf-8")
    ]
    names = sorted(path.stem for path in scripts)
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "\n".join(
                ["usage: qam bench NAME ...", "", *(f"  {name}" for name in names)]
            )
        )
        return 0
    if argv[0] not in names:
        raise ConfigError(f"no benchmark '{argv[0]}'; {nearest(argv[0], names)}")
    script = BENCHMARKS / f"{argv[0]}.py"
    return subprocess.run(
        [sys.executable, str(script), *argv[1:]], check=False
    ).returncode
