# SPDX-License-Identifier: Apache-2.0
"""Training loops: they own seeds, files and progress displays."""
