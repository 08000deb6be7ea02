# SPDX-License-Identifier: Apache-2.0
"""Process of one cell: `python -m qam_train.suite.worker FOLDER OUT DATA DEVICE ENVIRONMENTS`.

It may be killed at any instant; the next one goes on from the cell's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qam_ros.contract.errors import QamError
from qam_train.suite.cell import RunSettings, run_cell
from qam_train.suite.cell_config import read_cell

FAILED = 3  # exit code of a cell that noted its failure in failed.json


def command_line(folder: Path, settings: RunSettings) -> list[str]:
    """Command that runs the cell of a folder in a process of its own."""
    places = [str(path) for path in (folder, settings.out, settings.data)]
    options = [settings.device, str(settings.environments)]
    return [sys.executable, "-m", "qam_train.suite.worker", *places, *options]


def main(arguments: Sequence[str]) -> int:
    """Run the cell; its folder holds the settings and takes the results."""
    folder, out, data, device, environments = arguments
    settings = RunSettings(Path(out), Path(data), device, int(environments))
    try:
        run_cell(read_cell(Path(folder) / "config.yaml"), settings)
    except QamError as error:
        sys.stderr.write(f"{folder}: {error}\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
