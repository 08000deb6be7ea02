# SPDX-License-Identifier: Apache-2.0
"""Datasets and replay in memory, and the chunk sampler over them."""
