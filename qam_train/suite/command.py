# SPDX-License-Identifier: Apache-2.0
"""Command line of the suite: 'qam suite run', 'qam suite status', 'qam suite report'."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from qam_ros.contract.errors import ConfigError, nearest

if TYPE_CHECKING:
    from qam_train.suite.matrix import Pool

ALL = "all"  # in place of a list: what is left out


@dataclass(frozen=True)
class RunArguments:
    """Run a matrix of cells: methods x domains x tasks x seeds of a protocol.

    Lists are given as "qam fql" or "qam,fql", numbers also as "0-11"; left out or "all": all of the
    protocol.
    The same command continues what was interrupted, and skips what is done.
    """

    protocol: str
    """Name of a shipped protocol (p_qam, p_tr, small) or path of a .yaml file."""
    methods: tuple[str, ...] = (ALL,)
    """Methods."""
    domains: tuple[str, ...] = (ALL,)
    """Domains."""
    tasks: tuple[str, ...] = (ALL,)
    """Tasks, 1 to 5."""
    seeds: tuple[str, ...] = (ALL,)
    """Seeds; "all": the published ones."""
    steps: int | None = None
    """Offline updates in place of the protocol's; a method without an offline phase keeps none."""
    online_steps: int | None = None
    """Online environment steps in place of the protocol's; 0: offline only."""
    out: Path = Path("runs/suite")
    """Folder of the results."""
    data: Path = Path("data")
    """Folder of the datasets, each under the name of its preset."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Override of one setting in all cells, dotted.key=value, e.g. agent.tau=3; may be repeated."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 0
    """Cells at the same time, on each GPU where there are any; 0: as many as there are cores, 4 on a
    GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where cells run; auto: on all GPUs where there is one (of this machine; with --ray, of the
    cluster), else on the CPU."""
    environments: int = 0
    """Worlds that an evaluation steps at once; 0: ten on a GPU, four on a CPU."""
    ray: str | None = None
    """Run cells as Ray tasks: address of a running Ray, "auto", or "local" to start one."""


@dataclass(frozen=True)
class StatusArguments:
    """Show how far the cells of a folder are."""

    directory: tyro.conf.Positional[Path] = Path("runs/suite")
    """Folder of the results, or a part of it."""
    cells: bool = False
    """One row for each cell, not for each method and domain."""


def command(argv: Sequence[str]) -> int:
    """Compare methods on a matrix of tasks and seeds: run, status, report."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "run": run,
        "status": status,
        "report": report,
    }
    if not argv or argv[0] in ("-h", "--help"):
        lines = [
            f"  {name:8}{(function.__doc__ or '').partition(chr(10))[0]}"
            for name, function in commands.items()
        ]
        _say("\n".join(["usage: qam suite COMMAND ...", "", *lines]))
        return 0
    if argv[0] not in commands:
        raise ConfigError(f"no such command; {nearest(argv[0], commands)}")
    return commands[argv[0]](argv[1:])


def run(argv: Sequence[str]) -> int:
    """Run a matrix of cells, or what is left of it.

    Returns:
        0; 1 where a cell failed; 130 when it was interrupted.
    """
    arguments = tyro.cli(RunArguments, prog="qam suite run", args=list(argv))
    from qam_train.suite.matrix import Lengths, Selection, check, drive, plan
    from qam_train.suite.protocol import load_protocol

    protocol = load_protocol(arguments.protocol)
    selection = Selection(
        names("--methods", arguments.methods),
        names("--domains", arguments.domains),
        numbers("--tasks", arguments.tasks),
        numbers("--seeds", arguments.seeds),
    )
    lengths = Lengths(arguments.steps, arguments.online_steps)
    cells = plan(protocol, selection, arguments.set, lengths, arguments.out)
    waiting = check(cells, arguments.data)
    pool = make_pool(arguments)
    from qam_train.suite.display import LiveTable, PlainLines, describe_end

    console = Console()
    watcher: LiveTable | PlainLines
    if console.is_terminal:
        watcher = LiveTable(console, waiting, len(cells))
    else:
        watcher = PlainLines(console, waiting, len(cells))
    try:
        failed = drive(waiting, pool, watcher)
    except KeyboardInterrupt:
        _say("interrupted; the same command continues")
        return 130
    finally:
        watcher.close()
    for cell in failed:
        _say(describe_end(cell, f"see {cell.folder.log}"))
    _say(
        f"{len(cells) - len(failed)} of {len(cells)} cells done, {len(failed)} failed, in "
        f"{arguments.out}"
    )
    return 1 if failed else 0


def status(argv: Sequence[str]) -> int:
    """Show how far the cells of a folder are."""
    arguments = tyro.cli(StatusArguments, prog="qam suite status", args=list(argv))
    from qam_train.suite.display import cell_table, group_table
    from qam_train.suite.standing import find_cells, standing

    cells = find_cells(arguments.directory)
    standings = [(cell.name, standing(cell)) for cell in cells]
    console = Console()
    if arguments.cells:
        console.print(cell_table(f"{len(cells)} cells", standings))
    else:
        console.print(group_table(cells))
    for name, now in standings:
        if now.state == "failed":
            console.print(f"{name}: {now.note}", markup=False, soft_wrap=True)
    return 0


def report(argv: Sequence[str]) -> int:
    """Write tables, curves and aggregates of a folder as HTML and CSV."""
    from qam_train.suite.report.command import command as write_report

    return write_report(argv)


def names(option: str, items: Sequence[str]) -> tuple[str, ...]:
    """Names of a list such as "qam,fql rlpd"; empty for "all", as Selection takes it.

    Raises:
        ConfigError: a list was given that holds nothing; names the option.
    """
    found = _parts(option, items, "one or more names like qam,fql")
    return () if found == (ALL,) else found


def numbers(option: str, items: Sequence[str]) -> tuple[int, ...]:
    """Numbers of a list such as "0 2,5 7-9"; empty for "all", as Selection takes it.

    Raises:
        ConfigError: nothing in it, not a number, or a range that runs backwards; names the option.
    """
    parts = _parts(option, items, "one or more whole numbers or ranges like 0-11")
    if parts == (ALL,):
        return ()
    found: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(
                f"{option}: expected whole numbers or ranges like 0-11, got '{part}'"
            )
        if dash and int(last) < int(first):
            raise ConfigError(
                f"{option}: expected the smaller number of a range first, got '{part}'; did you mean "
                f"'{last}-{first}'?"
            )
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def _parts(option: str, items: Sequence[str], expected: str) -> tuple[str, ...]:
    """Entries of a list that may be separated by commas."""
    found = tuple(part for item in items for part in item.split(",") if part)
    if not found:
        got = f"'{' '.join(items)}'" if items else "nothing"
        raise ConfigError(
            f"{option}: expected {expected}, got {got}; leave {option} out for all"
        )
    return found


def make_pool(arguments: RunArguments) -> Pool:
    """Where the cells run.

    Raises:
        ConfigError: no such device, or Ray cannot be used.
    """
    import torch

    from qam_train.suite.cell import RunSettings
    from qam_train.suite.hardware import find_device

    if arguments.workers < 0:
        raise ConfigError(f"--workers: expected a number >= 0, got {arguments.workers}")
    settings = RunSettings(
        arguments.out, arguments.data, arguments.device, arguments.environments
    )
    if arguments.ray is not None:  # Ray's machines have the GPUs, not this one
        from qam_train.suite.ray_pool import RayPool

        return RayPool(arguments.ray, arguments.workers, settings)
    from qam_train.suite.pool import GPU_WORKERS, LocalPool

    cores = os.cpu_count() or 1
    if find_device(arguments.device).type == "cuda":
        each = arguments.workers or min(GPU_WORKERS, cores)
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] * each
    else:
        devices = ["cpu"] * (arguments.workers or cores)
    return LocalPool(devices, settings)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
