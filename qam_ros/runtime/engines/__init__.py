# SPDX-License-Identifier: Apache-2.0
"""Compiled engines on a GPU: the library that builds them, the machine's cache, the sampler.

library.py says what is asked of an engine library and of a GPU; tensorrt.py and cuda.py answer it.
"""
