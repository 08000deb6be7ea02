# SPDX-License-Identifier: Apache-2.0
"""Writes rows to a spool and a bag until it is killed; prints what it was told is on disk."""

import sys
import time

import numpy as np

from qam_ros.contract.interface import load_interface
from qam_ros.contract.transition import transition_dtype
from qam_ros.runtime.recording import BagWriter, free_folder
from qam_ros.runtime.spool import SpoolConfig, SpoolWriter


def main(folder: str, first: int) -> None:
    """Put rows from ``first`` on, in hands of one to thirty."""
    interface = load_interface("mobile_base")
    writer = SpoolWriter(
        f"{folder}/spool.sqlite",
        interface,
        SpoolConfig(record_period_s=0.05),
        lambda: BagWriter(free_folder(f"{folder}/bag"), interface, "base"),
    )
    writer.start()
    generator = np.random.default_rng(first)
    seq = first
    while True:
        rows = np.zeros(generator.integers(1, 30), transition_dtype(interface))
        rows["seq"] = seq + np.arange(rows.size)
        rows["observation"][:, 0] = rows["seq"] % 1000
        rows["observation_stamp_ns"] = rows["seq"] * 1000
        writer.put(rows)
        seq += rows.size
        status = writer.status()
        sys.stdout.write(f"{status.last_position} {status.recorded}\n")
        sys.stdout.flush()
        time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
