# SPDX-License-Identifier: Apache-2.0
"""MuJoCo and OGBench worlds behind the robot interface, and the data they give."""
