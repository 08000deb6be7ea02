# SPDX-License-Identifier: Apache-2.0
"""The task suite: named protocols, a matrix of cells, and the report that compares them."""
