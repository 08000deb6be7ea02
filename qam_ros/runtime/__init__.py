# SPDX-License-Identifier: Apache-2.0
"""What runs on a robot, without ROS and without torch."""
