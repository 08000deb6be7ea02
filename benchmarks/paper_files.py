# SPDX-License-Identifier: Apache-2.0
"""How long training stands still where one file of a set takes the place of another.

Before: every file is read, verified and labelled when its turn comes. Now: the next one is read and
verified in a background thread meanwhile. The files hold generated rows, repeated up to --rows, and
training is a host that waits for a GPU: it asks for the rows every millisecond and works --seconds on
each file (2 s: 1000 updates at 500/s).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import machine

from qam_ros.contract.columns import COLUMNS, Dataset
from qam_ros.contract.dataset import (
    read_dataset,
    read_dataset_manifest,
    write_dataset,
)
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.data import CellData, load
from qam_train.suite.prefetch import Prefetch
from qam_train.suite.protocol import load_protocol
from sim.generate import Target, generate
from sim.presets import find_preset


class ReadNothing(Prefetch[Dataset]):
    """As it was: no file is read ahead."""

    def begin(self, index: int) -> None:
        """Leave it to take()."""


def make_files(root: Path, cell: CellConfig, rows: int) -> None:
    """A set of files of so many rows each, the same ones."""
    folder = root / cell.data.dataset
    name = cell.data.dataset.removesuffix("-100m").removesuffix("-10m")
    seed = root / "seed"
    generate(seed, find_preset(name).recipe(), Target(rows=2000), workers=1)
    source, manifest = read_dataset(seed), read_dataset_manifest(seed)
    times = -(-rows // len(source))

    def repeated(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array] * times)

    whole = Dataset(
        **{name: repeated(getattr(source, name)) for name in COLUMNS},
        extras={name: repeated(array) for name, array in source.extras.items()},
    )
    folder.mkdir()
    for index in range(cell.data.files):
        path = folder / f"{index:03d}"
        write_dataset(path, whole, manifest.interface, manifest.meta)


def stalls(cell: CellConfig, root: Path, seconds: float, *, ahead: bool) -> list[float]:
    """Wall time of each change of files [s]."""
    every, found = cell.data.replace_every, []
    with CellData(cell, root) as data:
        if not ahead:
            data._prefetch = ReadNothing(data._read)
        data.at(1)
        for change in range(1, cell.data.files):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                data.at(change * every - 1)
                time.sleep(0.001)
            started = time.perf_counter()
            data.at(change * every)
            found.append(time.perf_counter() - started)
    return found


def parts(cell: CellConfig, root: Path) -> dict[str, float]:
    """Wall time of one file: looked at, read and verified, and all of it [s]."""
    clock = [time.perf_counter()]
    with CellData(cell, root) as data:
        clock.append(time.perf_counter())
    read_dataset(data.files[0])
    clock.append(time.perf_counter())
    load(cell, data.files[0], "cpu")
    clock.append(time.perf_counter())
    names = ("look_at_all_files_s", "read_and_verify_s", "whole_s")
    return dict(zip(names, np.diff(clock).tolist(), strict=True))


def main(argv: Sequence[str]) -> int:
    """Make the files, measure both ways, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", default="cube-quadruple")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--task", type=int, default=2)
    arguments = parser.parse_args(argv)
    protocol = load_protocol("p_qam")
    cell = protocol.cell("qam", arguments.domain, arguments.task, 0)
    files = dataclasses.replace(cell.data, files=arguments.files)
    cell = dataclasses.replace(cell, data=files)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_files(root, cell, arguments.rows)
        size = (root / files.dataset / "000" / "rows.npz").stat().st_size
        found = parts(cell, root)
        before = stalls(cell, root, arguments.seconds, ahead=False)
        now = stalls(cell, root, arguments.seconds, ahead=True)
    result = {
        "about": machine("torch", "numpy"),
        "domain": arguments.domain,
        "rows": arguments.rows,
        "megabytes": round(size / 1e6),
        "seconds_on_a_file": arguments.seconds,
        **found,
        "stall_before_s": before,
        "stall_now_s": now,
        "ratio": statistics.median(before) / statistics.median(now),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
