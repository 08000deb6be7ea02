# SPDX-License-Identifier: Apache-2.0
"""rclpy shells around the runtime; ROS 2 is imported nowhere else on the robot side."""
