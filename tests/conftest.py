# SPDX-License-Identifier: Apache-2.0
"""What all tests share: one thread per library, and a reason for every test left out."""

import functools
import importlib.util
import os
import random
import sys

import numpy as np
import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global generators start alike in every test, so that a failure comes back when repeated."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (seeds what others use)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def missing_for_ros() -> str:
    """What tests marked `ros` lack on this machine; empty: nothing."""
    specs = {name: importlib.util.find_spec(name) for name in ("rclpy", "qam_msgs")}
    # Without an origin it is our folder qam_msgs/, which holds no built messages.
    lacking = [name for name, spec in specs.items() if not (spec and spec.origin)]
    if not lacking:
        return ""
    return (
        f"needs {' and '.join(lacking)}: run make setup, or source ROS 2 and qam_msgs"
    )


def missing_for_gpu(*, torch: bool = True) -> str:
    """What tests marked `gpu` lack on this machine; empty: nothing.

    Args:
        torch: whether a CUDA build of torch is needed; engines need none: `gpu(torch=False)`.
    """
    if not torch:
        return missing_for_engines()
    if importlib.util.find_spec("torch") is None:
        return "needs torch: run make setup"
    from torch import cuda

    return (
        "" if cuda.is_available() else "needs a CUDA device and a CUDA build of torch"
    )


def missing_for_engines() -> str:
    """What an engine lacks to run: a driver and a GPU are enough."""
    from qam_ros.runtime.engines.cuda import CudaDevice
    from qam_ros.runtime.engines.library import EngineError

    try:
        CudaDevice()
    except EngineError as problem:
        return f"needs a GPU and its driver: {problem}"
    return ""


def missing_for_trt() -> str:
    """What tests marked `trt` lack on this machine; empty: nothing."""
    from qam_ros.runtime.engines.library import EngineError
    from qam_ros.runtime.engines.tensorrt import find_library

    try:
        find_library()
    except EngineError as problem:
        return f"needs TensorRT: {problem}"
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for what takes longer than a check of every change should."""
    parser.addoption(
        "--every-method",
        action="store_true",
        help="also run the miniature demo of every method (about 25 minutes)",
    )

    parser.addoption(
        "--long",
        action="store_true",
        help="also run what takes half a minute and more (killed Ray processes)",
    )


NEEDS = {"ros": missing_for_ros, "gpu": missing_for_gpu, "trt": missing_for_trt}


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Skip what this machine cannot run, with the reason in the summary."""
    for mark, option, time in (
        ("every_method", "--every-method", "25 minutes"),
        ("long", "--long", "half a minute and more"),
    ):
        if config.getoption(option):
            continue
        skip = pytest.mark.skip(reason=f"{time}: make test ARGS={option}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(skip)
    marked = {mark: [i for i in items if i.get_closest_marker(mark)] for mark in NEEDS}
    for mark, needing in marked.items():
        for item in needing:
            found = item.get_closest_marker(mark)
            if reason := _missing(mark, **found.kwargs):
                item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def _missing(mark: str, **settings: bool) -> str:
    """What a mark with its settings lacks here; asked once."""
    return NEEDS[mark](**settings)
