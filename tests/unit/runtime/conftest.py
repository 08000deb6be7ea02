# SPDX-License-Identifier: Apache-2.0
"""A small robot with every kind of action block, and a small policy for it."""

import itertools

import numpy as np
import pytest

from qam_ros.contract.artifact import (
    Artifact,
    ArtifactManifest,
    Golden,
)
from qam_ros.contract.interface import read_interface
from qam_ros.contract.messages import ActionProposal, EpisodeEvent, EpisodeKind
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.deployment import BestOf, FlowPolicy
from qam_train.graphs.builder import PolicySizes
from qam_train.graphs.policy import build_graph

POSE = {"topic": "pose", "type": "geometry_msgs/msg/PoseStamped"}
TWIST = {"topic": "cmd_vel", "type": "geometry_msgs/msg/TwistStamped"}
TARGET = {"topic": "target", "type": "geometry_msgs/msg/PoseStamped"}

ROBOT = {
    "format_version": 1,
    "robot": "test_arm",
    "control_period_s": 0.05,
    "safe_action": "hold_position",
    "observation": [
        {
            "name": "position",
            "size": 2,
            "elements": ["x", "y"],
            "unit": "m",
            "frame": "world",
            "source": {**POSE, "field": "pose.position"},
            "offset": 0.1,
            "scale": 2.0,
            "max_age_s": 0.15,
        },
        {
            "name": "heading",
            "size": 2,
            "elements": ["cos_yaw", "sin_yaw"],
            "unit": "1",
            "frame": "world",
            "source": {**POSE, "field": "pose.orientation"},
            "transform": "yaw_cos_sin",
            "max_age_s": 0.15,
        },
        {
            "name": "joint",
            "size": 2,
            "elements": ["first", "second"],
            "unit": "rad",
            "frame": "joint",
            "source": {
                "topic": "joints",
                "type": "sensor_msgs/msg/JointState",
                "field": "position",
                "joints": ["first", "second"],
            },
            "max_age_s": 0.2,
        },
    ],
    "action": [
        {
            "name": "reach",
            "size": 2,
            "elements": ["x", "y"],
            "unit": "m",
            "frame": "world",
            "target": {**TARGET, "field": "pose.position"},
            "mode": "delta",
            "scale": 0.05,
            "measured": {**POSE, "field": "pose.position"},
            "low": [-0.5, 0.0],
            "high": [0.5, 0.6],
            "max_rate": 0.5,
            "max_acceleration": 4.0,
        },
        {
            "name": "turn",
            "size": 1,
            "elements": ["yaw"],
            "unit": "rad",
            "frame": "world",
            "target": {**TARGET, "field": "pose.orientation"},
            "transform": "yaw_tool_down",
            "mode": "delta",
            "scale": 0.3,
            "measured": {**POSE, "field": "pose.orientation"},
            "measured_transform": "yaw",
            "low": -3.1416,
            "high": 3.1416,
            "max_rate": 3.0,
            "max_acceleration": 30.0,
            "wrap": True,
        },
        *(
            {
                "name": f"drive_{axis}",
                "size": 1,
                "elements": [axis],
                "unit": "m/s",
                "frame": "base",
                "target": {**TWIST, "field": "twist.linear"},
                "mode": "velocity",
                "scale": 1.0,
                "low": -1.0,
                "high": 1.0,
                "max_rate": 4.0,
                "max_acceleration": 100.0,
            }
            for axis in ("x", "y")
        ),
    ],
}
PERIOD_NS = 50_000_000
SESSION = b"policy-session-0"


@pytest.fixture(scope="session")
def interface():
    return read_interface(ROBOT)


@pytest.fixture(scope="session")
def free_interface():
    """The same robot with limits that no action inside the box can reach."""
    action = [dict(block) for block in ROBOT["action"]]
    for block in action[:2]:
        block |= {"max_rate": 1e3, "max_acceleration": 1e6}
    action[0] |= {"low": -10.0, "high": 10.0}
    for block in action[2:]:
        block |= {"max_rate": 50.0, "max_acceleration": 5e3}
    return read_interface({**ROBOT, "action": action})


def raw_pose(x=0.0, y=0.3, yaw=0.0):
    """Raw fields of the pose topic, as a message carries them."""
    half = 0.5 * yaw
    return {
        "pose": {
            "pose.position": np.array([x, y, 0.2]),
            "pose.orientation": np.array([0.0, 0.0, np.sin(half), np.cos(half)]),
        }
    }


def raw_joints(first=0.0, second=0.0):
    """Raw fields of the joints topic."""
    return {"joints": {"position": np.array([first, second])}}


def make_event(kind=EpisodeKind.START, episode=1, stamp_ns=0):
    return EpisodeEvent(
        stamp_ns, episode, kind, terminated=False, truncated=False, success=False,
        steps=0, episode_return=0.0,
    )  # fmt: skip


def make_proposal(number, at_ns, action, **changes):
    """A proposal whose observation changes with every tick."""
    fields = {
        "stamp_ns": at_ns,
        "policy_session": SESSION,
        "tick": number,
        "episode": 1,
        "step": number,
        "observation": np.full(6, 0.01 * number, dtype=np.float32),
        "ages_s": np.zeros(3, dtype=np.float32),
        "action": np.asarray(action, dtype=np.float32),
        "policy_version": 1,
        "chunk_id": 0,
        "chunk_index": 0,
    }
    return ActionProposal(**(fields | changes))


def make_artifact(interface, *, chunk=3, width=16, seed=0, version=1, candidates=1):
    """A policy with random weights whose golden chunks are ONNX Runtime's own.

    Of several candidates a critic ensemble chooses one.
    """
    generator = np.random.default_rng(seed)
    sizes = PolicySizes(interface.observation_size, interface.action_size, chunk)
    shapes = [sizes.observation + sizes.flat + 1, width, sizes.flat]
    nets = {
        "observation_mean": np.zeros(sizes.observation, dtype=np.float32),
        "observation_std": np.ones(sizes.observation, dtype=np.float32),
    }
    for layer, (rows, columns) in enumerate(itertools.pairwise(shapes)):
        weight = generator.normal(size=(rows, columns)) / np.sqrt(rows)
        nets[f"flow/{layer}/weight"] = weight.astype(np.float32)
        nets[f"flow/{layer}/bias"] = np.zeros(columns, dtype=np.float32)
    plan = FlowPolicy("flow", 4)
    if candidates > 1:
        rows = sizes.observation + sizes.flat
        weight = generator.normal(size=(2, rows, 1)) / np.sqrt(rows)
        nets["critic/0/weight"] = weight.astype(np.float32)
        nets["critic/0/bias"] = np.zeros((2, 1), dtype=np.float32)
        plan = BestOf(plan, candidates, "critic")
    policy = build_graph(plan, nets, sizes)
    manifest = ArtifactManifest(
        interface=interface,
        algorithm="qam",
        head=policy.head,
        flow_steps=policy.steps,
        chunk_length=chunk,
        policy_version=version,
        parent_version=0,
        run_id="test",
        commit="none",
        dataset_hash="none",
        graph=policy.signature,
        tolerance=1e-5,
    )
    observations = generator.normal(size=(64, sizes.observation)).astype(np.float32)
    noise = generator.normal(size=(64, policy.noise_width)).astype(np.float32)
    empty = np.zeros((64, chunk, sizes.action), dtype=np.float32)
    graph = manifest, policy.onnx, policy.weights
    artifact = Artifact(*graph, Golden(observations, noise, empty))
    chunks = OnnxSampler(artifact).sample_all(observations, noise)
    return Artifact(*graph, Golden(observations, noise, chunks))


@pytest.fixture(scope="session")
def artifact(interface):
    return make_artifact(interface)


ACTION = np.array([0.3, -0.2, 0.5, 0.1, -0.4], dtype=np.float32)


class GuardRig:
    """A guard in lockstep with a robot that goes where it is told."""

    def __init__(self, interface, **settings):
        self.period_ns = PERIOD_NS
        self.core = GuardCore(guard_config(interface, **settings), session=b"g" * 16)
        self.k = -1
        self.x, self.y, self.yaw = 0.0, 0.3, 0.0

    def start(self, episode=1):
        self.core.on_event(
            make_event(episode=episode, stamp_ns=(self.k + 1) * self.period_ns)
        )
        self.episode = episode
        return self

    def end(self, kind=EpisodeKind.END):
        self.core.on_event(make_event(kind, self.episode, self.k + 1))

    def measure(self, **pose):
        values = {"x": self.x, "y": self.y, "yaw": self.yaw} | pose
        self.core.on_measured(self.k * self.period_ns, raw_pose(**values))

    def tick(
        self, action=ACTION, *, measured=True, proposed=True, now_ns=None, **changes
    ):
        """One tick of the clock; returns the guard's output."""
        self.k += 1
        stamp_ns = self.k * self.period_ns
        if measured:
            self.measure()
        proposal = None
        if proposed:
            changes = {"episode": self.episode} | changes
            proposal = make_proposal(self.k, stamp_ns, action, **changes)
        now_ns = stamp_ns if now_ns is None else now_ns
        output = self.core.tick(now_ns, proposal, None if proposed else stamp_ns)
        position = output.commands.get("target", {}).get("pose.position")
        if position is not None:
            self.x, self.y = position[:2]
        return output

    def ticks(self, count, *args, **changes):
        return [self.tick(*args, **changes) for _ in range(count)]


@pytest.fixture
def rig(free_interface):
    return GuardRig(free_interface).start()


@pytest.fixture
def tight(interface):
    return GuardRig(interface).start()


@pytest.fixture(scope="session")
def helpers():
    """The makers of this file, for test modules (which cannot import it)."""
    from types import SimpleNamespace

    return SimpleNamespace(
        event=make_event,
        proposal=make_proposal,
        pose=raw_pose,
        joints=raw_joints,
        artifact=make_artifact,
        guard_rig=GuardRig,
        robot=ROBOT,
        period_ns=PERIOD_NS,
        session=SESSION,
    )
