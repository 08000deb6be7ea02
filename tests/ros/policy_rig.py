# SPDX-License-Identifier: Apache-2.0
"""A policy process under test, with the sensors and the learner that it meets."""

import sys

import numpy as np

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    PolicyStatus,
    PolicyUpdate,
)
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update

PERIOD_NS = 100_000_000


class Rig:
    """A base's sensors and a learner around one policy process."""

    def __init__(self, graph, artifact):
        from qam_ros.nodes import qos
        from qam_ros.nodes.convert import from_ros, ros_type, to_ros
        from qam_ros.nodes.sensors import sensor_codecs

        self.graph, self.to_ros = graph, to_ros
        self.artifact = artifact
        self.k = 0
        self.proposals, self.statuses = [], []
        received = (
            (ActionProposal, "action_proposal", self.proposals, qos.HISTORY),
            (PolicyStatus, "policy_status", self.statuses, qos.STATUS),
        )
        for kind, topic, seen, profile in received:
            graph.node.create_subscription(
                ros_type(kind),
                topic,
                lambda message, kind=kind, seen=seen: seen.append(
                    from_ros(message, kind)
                ),
                profile,
            )
        self.codec = sensor_codecs(artifact.interface)["odom"]
        self.odom = graph.publisher(
            self.codec.message_type, "odom", qos.SENSOR_OUT, peers=1
        )
        self.events = graph.publisher(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY, peers=1
        )
        self.updates = graph.publisher(
            ros_type(PolicyUpdate), "policy_update", qos.UPDATE, peers=1
        )

    def sense(self, x=None):
        self.k += 1
        x = 0.1 * self.k if x is None else x
        position = {"pose.pose.position": [x, 1.0, 0.0]}
        stamp_ns = 10**9 + self.k * PERIOD_NS
        self.odom.publish(self.codec.encode(stamp_ns, position))

    def answered(self):
        self.sense()
        self.graph.spin(0.05)
        return bool(self.proposals)

    def start(self):
        """Meet the policy with idle ticks, then begin an episode with the next step."""
        assert self.graph.wait(self.answered)
        self.graph.spin(0.2)
        self.proposals.clear()
        self.event(EpisodeKind.START)
        return self

    def event(self, kind, episode=1):
        stamp_ns = 10**9 + (self.k + 1) * PERIOD_NS
        event = EpisodeEvent(stamp_ns, episode, kind, False, False, False, 0, 0.0)
        self.events.publish(self.to_ros(event))

    def step(self, x=None):
        before = len(self.proposals)
        self.sense(x)
        assert self.graph.wait(lambda: len(self.proposals) > before, 5.0)
        return self.proposals[-1]

    def offer(self, version, parent, *, amount=0.02, broken=""):
        weights = {name: value.copy() for name, value in self.artifact.weights.items()}
        weights["0/bias"] += np.float32(amount)
        sampler, golden = OnnxSampler(self.artifact), self.artifact.golden
        sampler.set_weights(weights)
        chunks = sampler.sample_all(golden.observations, golden.noise)
        if broken == "weights":
            weights["0/bias"][0] = np.nan
        if broken == "chunks":
            chunks += np.float32(0.01)
        for part in split_update(
            encode_weights({**weights, GOLDEN_NAME: chunks}),
            run_id="online",
            version=version,
            parent_version=parent,
            part_bytes=1000,
        ):
            self.updates.publish(self.to_ros(part))

    def verdict(self, version):
        """Status that decides a version, ticking meanwhile: weights change between chunks."""

        def decided():
            self.sense()
            self.graph.spin(0.03)
            return any(
                status.offered_version == version for status in self.statuses[1:]
            )

        assert self.graph.wait(decided)
        return self.statuses[-1]

    def diagnosed(self, check):
        """Whether a report on /diagnostics that comes from now on passes ``check(message, values)``."""
        from diagnostic_msgs.msg import DiagnosticArray

        seen = self.graph.collect(DiagnosticArray, "/diagnostics")

        def passes():
            reports = [s for array in seen for s in array.status]
            return any(
                check(s.message, {v.key: v.value for v in s.values}) for s in reports
            )

        return self.graph.wait(passes, 5.0)


def patched_node(folder, patch):
    """Path of a policy node with something in it broken on purpose."""
    script = folder / "patched_policy_node"
    script.write_text(
        f"#!{sys.executable}\nimport sys, threading, time\n{patch}\n"
        "from qam_ros.nodes.policy import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return str(script)
