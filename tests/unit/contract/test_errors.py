# SPDX-License-Identifier: Apache-2.0
"""Error helpers say what was expected, what came, and where."""

from __future__ import annotations

import numpy as np
import pytest

from qam_ros.contract import errors
from qam_ros.contract.errors import (
    ConfigError,
    QamError,
    check_keys,
    check_shape,
    nearest,
)


def test_every_error_is_a_qam_error_with_its_evidence() -> None:
    names = (
        "Interface",
        "Transition",
        "Dataset",
        "Artifact",
        "Stream",
        "Config",
    )
    for name in names:
        kind = getattr(errors, f"{name}Error")
        error = kind("what happened", file="a.yaml")
        assert isinstance(error, QamError)
        assert error.details == {"file": "a.yaml"}
        assert str(error) == "what happened"


def test_nearest_proposes_the_closest_name_and_lists_all() -> None:
    assert nearest("lernrate", ["learning_rate", "tau"]) == (
        "did you mean 'learning_rate'? valid: learning_rate, tau"
    )


def test_nearest_proposes_nothing_when_nothing_is_close() -> None:
    assert nearest("xyz", ["learning_rate", "tau"]) == "valid: learning_rate, tau"
    assert nearest("xyz", []) == "valid: none"


def test_unknown_key_names_place_and_nearest_key() -> None:
    with pytest.raises(
        ConfigError, match=r"robot.yaml: unknown key 'scal'; did you mean 'scale'"
    ) as caught:
        check_keys({"scal": 1}, ("scale",), (), "robot.yaml")
    assert caught.value.details == {"key": "scal"}


def test_missing_key_names_place_and_what_is_there() -> None:
    with pytest.raises(
        ConfigError, match=r"robot.yaml: key 'scale' is missing; it has offset"
    ):
        check_keys({"offset": 1}, ("scale",), ("offset",), "robot.yaml")


def test_keys_that_fit_pass() -> None:
    check_keys({"a": 1, "b": 2}, ("a",), ("b", "c"), "x")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2), ()])
def test_wrong_shape_gives_found_and_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        QamError, match=r"topic /a: 'x' has shape .*, expected \(any, 3\)"
    ) as caught:
        check_shape("x", np.zeros(shape), (None, 3), "topic /a")
    assert caught.value.details["found"] == shape


def test_any_size_fits_none() -> None:
    check_shape("x", np.zeros((5, 3)), (None, 3), "a")
    check_shape("x", np.zeros(()), (), "a")
