# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests over real ROS 2: a domain of one's own, processes that always end, a node.

Everything in this folder is marked `ros`. Use `graph` for a node in this process and `spawn` for
node processes; both live in the domain of `ros_domain`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from policies import clone_maze_driver
from ros_graph import Graph, open_graph, own_domain, ros_environment

from qam_ros.contract.errors import ConfigError
from qam_ros.contract.reading import dump_yaml
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.child import Child


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ros)


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A ROS domain that no other test on this machine uses, set in the environment."""
    with own_domain() as number:
        for name, value in ros_environment(number, tmp_path / "ros_log").items():
            monkeypatch.setenv(name, value)
        yield number


@pytest.fixture(scope="session")
def base_artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of an artifact for the robot mobile_base: a small network with random weights."""
    torch = pytest.importorskip("torch", reason="needs torch: run make setup")
    from qam_ros.contract.dataset import Dataset
    from qam_ros.contract.interface import find_robot, load_interface
    from qam_train.agents.common import Normaliser
    from qam_train.agents.qam import QAMAgent
    from qam_train.config import AgentConfig, NetworkConfig
    from qam_train.export import Provenance, export_artifact

    rng = np.random.default_rng(0)
    ends = np.arange(300) % 30 == 29
    dataset = Dataset(
        observations=rng.uniform(0.0, 20.0, (300, 2)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (300, 2)).astype(np.float32),
        rewards=-np.ones(300, np.float32),
        masks=np.ones(300, np.float32),
        terminals=ends.astype(np.uint8),
        valid=np.ones(300, np.uint8),
        end_observations=np.zeros((int(ends.sum()), 2), np.float32),
        extras={},
    )
    small = NetworkConfig((16, 16))
    config = AgentConfig(flow_steps=3, chunk=3, actor=small, critic=small, critics=2)
    normaliser = Normaliser.of(torch.as_tensor(dataset.observations))
    agent = QAMAgent.init(config, 2, 2, torch.Generator().manual_seed(0), normaliser)
    path = tmp_path_factory.mktemp("base") / "artifact"
    interface = load_interface(find_robot("mobile_base"))
    export_artifact(agent, interface, dataset, path, Provenance("test", "00" * 32))
    return str(path)


@pytest.fixture(scope="session")
def maze_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact of a policy that drives the mobile base through the medium maze to its goal."""
    return clone_maze_driver(tmp_path_factory.mktemp("maze"))


class NodeProcess(Child):
    """A node process under test; `kill` (SIGKILL) and `log` come from Child."""

    def text(self) -> str:
        """All of its output so far."""
        return self.log.read_text(errors="replace")

    def stop(
        self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 5.0
    ) -> int:
        """Ask it to end and return its exit code; fails the test when it does not end."""
        self.ask_to_stop(number)
        code = self.wait(timeout_s)
        if code is None:
            self.kill()
            pytest.fail(
                f"no end {timeout_s} s after {number.name}; output:\n{self.text()}"
            )
        return code


Spawn = Callable[..., NodeProcess]


@pytest.fixture
def spawn(ros_domain: int, tmp_path: Path) -> Iterator[Spawn]:
    """Function that starts a node process in the test's domain; all are killed at the end.

    Its arguments: `executable` (a console script, or an absolute path), `parameters` (ROS
    parameters), `name` of the log file, `namespace`. It returns a NodeProcess.
    """
    running: list[NodeProcess] = []

    def start(
        executable: str,
        parameters: dict[str, object] | None = None,
        *,
        name: str = "",
        namespace: str = "",
    ) -> NodeProcess:
        name = name or f"{Path(executable).name}_{len(running)}"
        file = tmp_path / f"{name}.yaml"
        content = {"/**": {"ros__parameters": parameters or {}}}
        file.write_text(dump_yaml(content, str(file), ConfigError))
        command = [
            find_executable(executable),
            "--ros-args",
            "--params-file",
            str(file),
        ]
        if namespace:
            command += ["-r", f"__ns:=/{namespace}"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        running.append(NodeProcess(command, tmp_path / f"{name}.log", environment))
        return running[-1]

    yield start
    for process in reversed(running):
        process.kill()


@pytest.fixture
def graph(ros_domain: int) -> Iterator[Graph]:
    """A node named `test_node` in the test's domain, on a SingleThreadedExecutor."""
    with open_graph(ros_domain) as graph:
        yield graph
