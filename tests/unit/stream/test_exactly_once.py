# SPDX-License-Identifier: Apache-2.0
"""From executed ticks to replay, exactly once: messages repeated and reordered, batches and
acknowledgements lost, repeated and reordered, either process killed at any moment."""

from collections import Counter

import numpy as np
import pytest

from qam_ros.runtime.joiner import Joiner
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink, Uplink, UplinkConfig

SECOND = 10**9
HISTORY = (
    400  # messages that a restarted stream process gets again, per kind of message
)


class Network:
    """Loses, repeats and overtakes what is put into it."""

    def __init__(self, generator, loss):
        self.generator, self.loss, self.flying = generator, loss, []

    def put(self, item):
        for _ in range(1 + (self.generator.random() < 0.1)):
            if self.generator.random() >= self.loss:
                self.flying.append(item)

    def get(self):
        """Some of what is on its way, in any order."""
        self.generator.shuffle(self.flying)
        count = self.generator.integers(0, len(self.flying) + 1)
        arrived, self.flying = self.flying[:count], self.flying[count:]
        return arrived


class Chain:
    """Joiner, spool and uplink of one process; downlink and replay log of the other."""

    def __init__(self, folder, interface, seed):
        self.folder, self.interface = folder, interface
        self.generator = np.random.default_rng(seed)
        self.batches = Network(self.generator, 0.15)
        self.acks = Network(self.generator, 0.15)
        self.now_ns = 0
        self.spool = self.replay = None
        self.kills = Counter()
        self.start_robot()
        self.start_learner()

    def start_robot(self):
        """As after kill -9: only what the files hold is left."""
        if self.spool is not None:
            self.spool.close()
        self.spool = TransitionStore(self.folder / "spool.sqlite", self.interface)
        self.joiner = Joiner(self.interface, known=self.spool.recent_keys(10**6))
        config = UplinkConfig(batch_rows=16, window_rows=128, resend_s=0.5)
        self.uplink = Uplink(self.spool, "base", config)

    def start_learner(self):
        if self.replay is not None:
            self.replay.close()
        self.replay = TransitionStore(self.folder / "replay.sqlite", self.interface)
        self.downlink = Downlink(self.replay, "base")

    def take(self, message):
        self.now_ns += SECOND // 1000
        self.spool.append(self.joiner.add(message, self.now_ns))

    def exchange(self):
        self.now_ns += SECOND // 10
        self.spool.append(self.joiner.poll(self.now_ns))
        for batch in self.uplink.poll(self.now_ns):
            self.batches.put(batch)
        for batch in self.batches.get():
            receipt = self.downlink.receive(batch)
            if self.generator.random() < 0.01:  # killed between commit and answer
                self.kills["learner"] += 1
                self.start_learner()
            else:
                self.acks.put(receipt.ack)
        for ack in self.acks.get():
            self.uplink.acknowledge(ack, self.now_ns)
        if self.generator.random() < 0.1:
            self.spool.set_meta("acked", self.uplink.acked)
            self.spool.trim(self.uplink.acked - 2 * HISTORY)


def jumbled(messages, generator):
    """Reordered within a window, some of them twice."""
    again = generator.choice(len(messages), len(messages) // 20)
    order = np.concatenate([np.arange(len(messages)), again])
    order = order[np.argsort(order + generator.uniform(0, 12, order.size))]
    return [messages[index] for index in order]


def script(make_robot, seed, wanted):
    """A robot's day: episodes with gaps, holds, aborts, restarts of policy and guard."""
    robot = make_robot(seed)
    generator = robot.rng
    while len(robot.truth) < wanted:
        steps = int(generator.integers(1, 80))
        missing = (
            set(generator.integers(1, 80, 2).tolist())
            if generator.random() < 0.3
            else ()
        )
        masked = (
            set(generator.integers(0, 80, 3).tolist())
            if generator.random() < 0.3
            else ()
        )
        robot.episode(
            steps,
            missing=missing,
            masked=masked,
            terminated=generator.random() < 0.5,
            end="ABORT" if generator.random() < 0.1 else "END",
        )
        if generator.random() < 0.1:
            robot.restart_policy()
        if generator.random() < 0.1:
            robot.restart_guard()
    return robot


@pytest.mark.parametrize("seed", range(4))
def test_every_executed_row_reaches_replay_exactly_once(
    tmp_path, interface, make_robot, seed
):
    robot = script(make_robot, seed, 3000)
    chain = Chain(tmp_path, interface, seed)
    messages = jumbled(robot.messages, chain.generator)
    for index, message in enumerate(messages):
        chain.take(message)
        if chain.generator.random() < 0.1:
            chain.exchange()
        if (
            chain.generator.random() < 0.002
        ):  # kill -9 of the stream process; history comes again
            chain.kills["stream"] += 1
            chain.start_robot()
            for old in messages[max(index - 4 * HISTORY, 0) : index + 1]:
                chain.take(old)
        if chain.generator.random() < 0.001:
            chain.kills["learner"] += 1
            chain.start_learner()
    for _ in range(2000):
        chain.exchange()
        if chain.replay.last_position >= len(robot.truth) and not chain.joiner.pending:
            break
    _, rows = chain.replay.read(0, 10**6)
    order = ["session", "seq"]
    expected = robot.rows()
    assert rows.size == expected.size
    assert (
        np.sort(rows, order=order).tobytes() == np.sort(expected, order=order).tobytes()
    )
    assert min(chain.kills["stream"], chain.kills["learner"]) >= 3
    assert chain.uplink.unavailable == 0
