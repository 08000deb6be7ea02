# SPDX-License-Identifier: Apache-2.0
"""The committed samples of every format, and a mapping to spoil."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from qam_ros.contract.interface import RobotInterface, load_interface

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def interface() -> RobotInterface:
    return load_interface(DATA / "interface_v1.yaml")


@pytest.fixture
def mapping() -> dict[str, Any]:
    """The sample interface as a fresh mapping."""
    return yaml.safe_load((DATA / "interface_v1.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The script that wrote the samples."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    spec = importlib.util.spec_from_file_location(
        "make_samples", DATA.parent / "make_samples.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
