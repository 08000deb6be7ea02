# SPDX-License-Identifier: Apache-2.0
"""The launch system itself runs a graph: it moves, and one signal ends it with nothing lost."""

import os
import signal
import sys

import pytest
from system import check_exactly_once, run_system

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchDescriptionSource, LaunchService
from launch.actions import IncludeLaunchDescription
from qam_ros.nodes.launch_graph import launch_description

name, *words = sys.argv[1:]
arguments = [tuple(word.split(":=", 1)) for word in words]
graph = LaunchDescriptionSource(launch_description(name))
service = LaunchService(noninteractive=False)
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(graph, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "signal to launch"])
@pytest.mark.parametrize("pace", ["realtime", "lockstep"])
def test_a_launched_graph_moves_and_ends_with_nothing_lost(
    tmp_path, base_artifact, pace, to_all
):
    pytest.importorskip(
        "launch_ros", reason="needs launch_ros: source a ROS 2 distribution"
    )
    folder = tmp_path / "run"
    words = ["mobile_base", f"artifact:={base_artifact}", f"pace:={pace}"]
    launcher = [sys.executable, "-c", LAUNCH]
    with run_system(folder, "mobile_base", *words, launcher=launcher) as system:
        system.expect(system.moves, "motion", 60.0)
        system.expect(lambda: sum(r.is_row for r in system.reports) >= 25, "rows")
        pid = system.up.process.pid  # leader of the group that a terminal would signal
        (os.killpg if to_all else os.kill)(pid, signal.SIGINT)
        assert system.finish(30.0) == 0, system.text()
        assert system.left() == []
        check_exactly_once(system.executed(), system.rows())
