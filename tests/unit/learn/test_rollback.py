# SPDX-License-Identifier: Apache-2.0
"""A version that the robot was taken back from stays away; the name of a run stays with its folder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.messages import PolicyStatus
from qam_train.loops.demo_online import export_online, robot_dir
from qam_train.loops.online import export_last_version
from qam_train.versions import VersionFolder, VersionRecord, run_identity


def status(running, offered, *, accepted=True, swaps=1, reason="accepted"):
    return PolicyStatus(
        0, "robot", running, offered, accepted, reason, 0.01, 0.1, swaps, 0
    )


STARTED = status(1, 1, accepted=False, swaps=0, reason="started")


def work_off(core):
    while core.work():
        pass


def sent(core):
    return [(part.version, part.parent_version) for part in core.outgoing()]


@pytest.fixture
def learner(make_core, rows_of):
    """A learner whose robot runs version 3 after 2."""
    core = make_core(reoffer_s=1e-9)
    core.heard(STARTED)
    rows = rows_of([60])
    for version, start in ((2, 0), (3, 20)):
        core.take(rows[start : start + 20])
        work_off(core)
        core.heard(status(version, version, swaps=version - 1))
    core.rest = rows[40:]
    yield core
    core.close()


def folder_of(core):
    """The versions as they are on disk."""
    return VersionFolder(core.run_dir / "versions", 1)


ROLLED_BACK = status(2, 3, swaps=3, reason="rolled back")


def test_a_version_rolled_back_is_not_offered_to_a_restarted_policy(learner):
    learner.heard(ROLLED_BACK)
    learner.heard(STARTED)
    assert sent(learner) == [(2, 1)]
    learner.heard(status(2, 2, swaps=1))
    assert sent(learner) == []
    assert folder_of(learner).accepted == [2]


def test_all_versions_above_the_one_that_runs_are_withdrawn(learner):
    learner.heard(status(1, 2, swaps=4, reason="rolled back"))
    assert folder_of(learner).accepted == []
    learner.heard(STARTED)
    assert sent(learner) == []


def test_a_withdrawn_version_stays_so_after_a_restart_of_the_learner(
    learner, make_core
):
    learner.heard(ROLLED_BACK)
    learner.close()
    core = make_core(reoffer_s=1e-9)
    core.heard(STARTED)
    assert sent(core) == [(2, 1)]
    core.heard(status(2, 2, swaps=1))
    assert sent(core) == []
    core.close()


def test_a_rollback_while_the_learner_was_away_is_seen_when_it_comes_back(
    learner, make_core
):
    learner.close()
    core = make_core(reoffer_s=1e-9)
    core.heard(ROLLED_BACK)  # the robot's last status, kept by its topic
    assert core.offers.folder.accepted == [2]
    core.close()


def test_a_rollback_whose_status_was_overtaken_by_a_refusal_is_seen(learner):
    learner.heard(status(2, 4, accepted=False, swaps=3, reason="too far"))
    assert folder_of(learner).accepted == [2]


def test_a_refusal_is_no_rollback(learner):
    learner.heard(status(3, 4, accepted=False, swaps=2, reason="too far"))
    assert folder_of(learner).accepted == [2, 3]


def test_a_restarted_policy_is_no_rollback(learner):
    learner.heard(STARTED)
    learner.heard(status(2, 2, swaps=1))  # on its way up
    assert folder_of(learner).accepted == [2, 3]
    assert sent(learner) == [(3, 2)]


def test_a_learner_restarted_while_the_policy_catches_up_withdraws_nothing(
    learner, make_core
):
    learner.close()
    core = make_core()
    core.heard(status(2, 2, swaps=1))
    assert core.offers.folder.accepted == [2, 3]
    core.close()


def test_a_rollback_while_the_policy_catches_up_ends_the_catching_up(learner):
    learner.heard(STARTED)
    learner.heard(status(2, 2, swaps=1))
    learner.heard(status(1, 2, swaps=2, reason="rolled back"))
    assert sent(learner) == []
    assert folder_of(learner).accepted == []


def test_a_withdrawn_version_that_the_robot_runs_after_all_counts_again(learner):
    learner.heard(ROLLED_BACK)
    learner.heard(status(3, 3, swaps=4))
    assert folder_of(learner).accepted == [2, 3]


def test_the_next_version_is_compared_with_what_runs_after_a_rollback(learner):
    learner.heard(ROLLED_BACK)
    expected, _ = learner.offers.folder.weights(2)
    reference = learner._reference()
    assert all(np.array_equal(reference[name], expected[name]) for name in expected)
    learner.take(learner.rest)
    work_off(learner)
    assert sent(learner) == [(4, 2)]


def test_a_version_rolled_back_before_its_swap_is_settled(learner):
    learner.take(learner.rest)
    work_off(learner)
    assert sent(learner) == [(4, 3)]
    learner.heard(
        status(3, 4, accepted=False, swaps=2, reason="rolled back before it ran")
    )
    assert learner.finished
    assert folder_of(learner).accepted == [2, 3]


def test_both_exports_give_what_runs_after_a_rollback(learner, artifact_path, tmp_path):
    learner.heard(ROLLED_BACK)
    out = export_last_version(artifact_path, learner.run_dir)
    assert read_artifact(out).manifest.policy_version == 2
    run = SimpleNamespace(path=tmp_path / "demo", config=SimpleNamespace(seed=0))
    offline = run.path / "artifacts" / "offline"
    offline.parent.mkdir(parents=True)
    offline.symlink_to(artifact_path)
    robot_dir(run).symlink_to(learner.run_dir)
    assert read_artifact(export_online(run)).manifest.policy_version == 2
    learner.heard(status(1, 2, swaps=4, reason="rolled back"))
    assert read_artifact(export_online(run)).manifest.policy_version == 1


def test_a_record_of_older_code_was_not_withdrawn(tmp_path):
    folder = VersionFolder(tmp_path, 1)
    folder.add(
        VersionRecord(2, 10, 10, accepted=True), {}, np.zeros((64, 5, 2), np.float32)
    )
    path = tmp_path / "v000002.json"
    record = json.loads(path.read_text())
    assert record.pop("withdrawn") is False
    path.write_text(json.dumps(record))
    assert VersionFolder(tmp_path, 1).accepted == [2]


def test_a_run_keeps_its_identity_and_no_other_folder_of_that_name_has_it(tmp_path):
    first, second = tmp_path / "a" / "robot", tmp_path / "b" / "robot"
    names = [run_identity(first), run_identity(first), run_identity(second)]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("robot-") and len(name) == 14 for name in names)
    moved = tmp_path / "moved"
    first.rename(moved)
    assert run_identity(moved) == names[0]


def test_an_identity_that_cannot_be_read_is_not_replaced_by_another(tmp_path):
    (tmp_path / "run_id").write_text("")
    with pytest.raises(ConfigError, match="run_id"):
        run_identity(tmp_path)
    assert (tmp_path / "run_id").read_text() == ""


def test_a_learner_restarted_in_the_middle_of_catching_up_goes_on_with_it(
    learner, make_core
):
    core = learner
    newest = folder_of(core).newest
    core.close()
    core = make_core(reoffer_s=1e-9)
    core.heard(status(newest - 1, newest - 1, swaps=1))  # it had one of them again
    assert core.offers.outstanding == newest
    core.close()


def test_a_policy_started_anew_that_refuses_a_strange_parent_is_brought_up_to_date(
    learner,
):
    core = learner
    accepted = folder_of(core).accepted
    core.heard(status(accepted[0] - 1, accepted[-1], accepted=False, swaps=0))
    assert folder_of(core).accepted == accepted
    assert core.offers.outstanding == accepted[0]
    core.heard(status(2, 2, swaps=1))
    core.heard(status(2, 3, accepted=False, swaps=1, reason="too far"))
    assert folder_of(core).accepted == [2]  # it means it
