# SPDX-License-Identifier: Apache-2.0
"""Policies as static ONNX graphs whose weights, statistics and noise are inputs.

One module per family of heads; graphs.policy puts them together. Nothing here knows torch or an
agent: what comes in are named arrays and a description (qam_train.deployment).
"""
