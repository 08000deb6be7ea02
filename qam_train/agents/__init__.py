# SPDX-License-Identifier: Apache-2.0
"""One file per method: it owns its parameters and the order of its updates."""
