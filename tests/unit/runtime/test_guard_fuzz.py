# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in, what goes out is inside the envelope, by a checker that shares no code with it.

The checker reads the published commands like a robot does: it knows the limits of the interface, and
which commands start a motion; everything else must follow from the command before.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qam_ros.contract.messages import EpisodeKind, HumanAction
from qam_ros.contract.transition import GuardMode, LimitBit
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

T = 0.05
# name, topic, field, component, low, high, rate, acceleration of the test robot
AXES = [
    ("target", "pose.position", 0, -0.5, 0.5, 0.5, 4.0),
    ("target", "pose.position", 1, 0.0, 0.6, 0.5, 4.0),
    ("cmd_vel", "twist.linear", 0, -1.0, 1.0, 4.0, 100.0),
    ("cmd_vel", "twist.linear", 1, -1.0, 1.0, 4.0, 100.0),
]
# Rounding of positions below 1, through two differences and a division by T.
TOLERANCE = 1e-9


class Checker:
    """Follows the commands of a run and keeps what the next one may be."""

    def __init__(self):
        self.last = {}
        self.rate = {}
        self.started = ()

    def rest(self):
        """Time passed without commands: the robot stands where it was told to."""
        self.rate = dict.fromkeys(self.rate, 0.0)

    def start(self, measured):
        """Positions start here, from rest; a pose a little outside the box at its edge."""
        self.started = (0, 1)
        for axis in self.started:
            low, high, rate, acceleration = AXES[axis][3:]
            edge = min(max(measured[axis], low), high)
            reach = min(rate * T, acceleration * T**2)
            assert abs(edge - measured[axis]) <= reach, "a start far from the robot"
            self.last[axis], self.rate[axis] = edge, 0.0

    def check(self, commands, elapsed_s=T):
        passed_s = min(T, elapsed_s)  # a late tick counts as one in time
        for axis, (topic, field, item, low, high, rate, acceleration) in enumerate(
            AXES
        ):
            if topic not in commands:
                continue
            value = float(commands[topic][field][item])
            assert math.isfinite(value)
            last = self.last.get(axis, 0.0)
            assert low <= value <= high, "leaves the box"
            seconds = T if axis in self.started else passed_s
            new, rounding = (value - last) / seconds, TOLERANCE / seconds
            assert abs(new) <= rate + rounding, "rate"
            change = abs(new - self.rate.get(axis, 0.0))
            assert change <= acceleration * seconds + rounding, "acceleration"
            self.last[axis], self.rate[axis] = value, new
        if "target" in commands:
            quaternion = commands["target"]["pose.orientation"]
            assert abs(np.linalg.norm(quaternion) - 1.0) < 1e-9
        self.started = ()


class World:
    """Feeds a guard with what an operation code says."""

    def __init__(self, helpers, interface, seed):
        self.helpers = helpers
        self.core = GuardCore(guard_config(interface, ramp_s=0.2), lockstep=False)
        self.checker = Checker()
        self.generator = np.random.default_rng(seed)
        self.period_ns = helpers.period_ns
        self.clock_ns, self.tick_ns, self.number, self.episode = 10**12, 0, 0, 0
        self.refused_starts = 0
        self.measured = np.array([0.0, 0.3])
        self.moved = self.early = self.due_ns = 0

    def values(self, count, kind):
        values = self.generator.uniform(-1.5, 1.5, count)
        if kind in ("nan", "inf", "huge"):
            bad = {"nan": math.nan, "inf": -math.inf, "huge": 1e308}[kind]
            values[self.generator.integers(count)] = bad
        with np.errstate(over="ignore"):
            return values.astype(np.float32)

    def follow(self):
        """The robot goes most of the way to its target, with a little noise."""
        target = [self.checker.last.get(axis, self.measured[axis]) for axis in (0, 1)]
        noise = self.generator.normal(scale=1e-3, size=2)
        self.measured = (
            self.measured + 0.7 * (np.asarray(target) - self.measured) + noise
        )

    def play(self, code):
        core, period_ns = self.core, self.period_ns
        step_ns = {
            "late": int(period_ns * 1.4),
            "missing": 3 * period_ns // 2,  # as long as a proposal is waited for
            "early": self.generator.integers(period_ns // 2, period_ns),
            "doubled": period_ns // 5,
            "gap": 2 * period_ns,
            "long gap": 9 * period_ns,
        }.get(code, period_ns)
        self.clock_ns += int(step_ns)
        self.tick_ns += int(step_ns)
        if code == "clock jump":
            self.clock_ns += int(self.generator.choice([-3600, 3600])) * 10**9
        if code == "push":
            self.measured = self.generator.uniform([-0.7, -0.2], [0.7, 0.8])
        if code in ("start", "end", "abort"):
            self.episode += code == "start"
            kind = EpisodeKind[code.upper()]
            core.on_event(self.helpers.event(kind, self.episode, self.clock_ns))
        core.set_estop(pressed=code == "estop")
        if code == "reset":
            core.reset()
        if code.startswith("human"):
            action = self.values(5 if code == "human" else 4, "good")
            takeover = code != "human off"
            core.on_human(self.clock_ns, HumanAction(0, takeover, "hand", action))
        if code != "blind":
            self.follow()
            bad = {"bad pose": [math.nan, math.inf], "glitch": [5.0, -1e6]}
            pose = bad.get(code, self.measured)
            core.on_measured(self.clock_ns, self.helpers.pose(*pose))
        before, last_due_ns = core.state, self.due_ns
        # A tick without proposal was due before the wait.
        self.due_ns = self.tick_ns - (period_ns // 2 if code == "missing" else 0)
        output = core.tick(self.clock_ns, self.propose(code), self.tick_ns)
        if output.reason.startswith("second tick"):
            assert output.commands == {}
            self.due_ns = last_due_ns
        else:
            self.note(before, output, self.due_ns - last_due_ns)

    def propose(self, code):
        if code == "missing":
            return None
        self.number += 1
        count = {"short": 4, "long": 9, "empty": 0}.get(code, 5)
        observation = self.values(6, code if code == "nan" else "good")
        ages = np.full(3, 9.0 if code == "stale" else 0.0, dtype=np.float32)
        return self.helpers.proposal(
            self.number,
            self.clock_ns + (10**12 if code == "future" else 0),
            self.values(count, code) if count else [],
            episode=self.episode,
            observation=observation,
            ages_s=ages,
        )

    def note(self, before, output, elapsed_ns):
        """Tell the checker what the guard is allowed to do, then let it look."""
        state = self.core.state
        if elapsed_ns > 1.5 * self.period_ns:
            self.checker.rest()
        moving = GuardMode(output.report.mode) in (GuardMode.RAMP, GuardMode.ACTIVE)
        new_episode = state.episode != before.episode
        self.moved += moving
        self.refused_starts += bool(output.report.limit_bits & LimitBit.OUTSIDE)
        self.early += moving and elapsed_ns < self.period_ns
        began = "target" in output.commands and (not before.anchored or new_episode)
        resumed = moving and self.resumes(before, elapsed_ns)
        if began or resumed:
            self.checker.start(self.measured)
        self.checker.check(output.commands, elapsed_ns * 1e-9)
        executed = output.report.executed
        assert np.isfinite(executed).all()
        assert (np.abs(executed) <= 1.0).all()
        assert state.seq == before.seq + output.report.is_row

    def resumes(self, before, elapsed_ns):
        gap = elapsed_ns > 3 * self.period_ns
        state = self.core.state
        left_stop = before.latch is not None and state.latch is None
        return before.restart or gap or left_stop or state.episode != before.episode


CODES = [
    *("good",) * 80,
    *("early",) * 40,
    *("nan", "inf", "huge", "short", "long", "empty", "future", "stale", "missing"),
    *("late", "doubled", "gap", "long gap", "clock jump", "push", "blind", "bad pose"),
    "glitch",
    *("start",) * 6,
    *("end", "abort", "estop"),
    *("reset",) * 12,
    *("human", "human bad", "human off", "human off"),
]


@settings(max_examples=150, deadline=None)
@given(codes=st.lists(st.sampled_from(CODES), max_size=60), seed=st.integers(0, 99))
def test_no_sequence_of_inputs_leads_out_of_the_envelope(
    helpers, interface, codes, seed
):
    world = World(helpers, interface, seed)
    world.play("start")
    for code in codes:
        world.play(code)


def test_five_thousand_random_ticks_stay_inside_the_envelope(helpers, interface):
    world = World(helpers, interface, 1)
    world.play("start")
    for code in np.random.default_rng(2).choice(CODES, 5_000):
        world.play(str(code))
    # the fuzz is worth something only if the robot moved through much of it
    assert world.moved > 1_500
    assert world.early > 400
    assert world.core.state.seq > 2_000
    assert world.refused_starts > 10


@pytest.mark.parametrize("broken", ["low", "rate", "acceleration"])
def test_the_checker_notices_a_broken_limit(helpers, interface, broken):
    checker = Checker()
    checker.start([0.49, 0.3])
    step = {"low": 0.011, "rate": -0.026, "acceleration": -0.02}[broken]
    command = {"pose.position": [0.49 + step, 0.3], "pose.orientation": [1, 0, 0, 0]}
    with pytest.raises(AssertionError):
        checker.check({"target": command})
