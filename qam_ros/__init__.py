# SPDX-License-Identifier: Apache-2.0
"""Robot side of QAM on ROS 2: contract, runtime and nodes. Imports neither torch nor the trainer."""
