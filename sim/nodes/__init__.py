# SPDX-License-Identifier: Apache-2.0
"""The plant node: a simulated robot behind the same topics as the real one."""
