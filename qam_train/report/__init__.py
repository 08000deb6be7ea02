# SPDX-License-Identifier: Apache-2.0
"""The demo's report: figures from measured arrays, one self-contained page, a summary in numbers."""
