# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a gradient: algorithms, data, training loops, export."""
