# SPDX-License-Identifier: Apache-2.0
"""What products in lower precision do to a policy, found on a CPU before any GPU runs it."""

from __future__ import annotations

import numpy as np
import onnxruntime

from qam_ros.contract.artifact import Artifact
from qam_ros.runtime.precision import rounded_products


def largest_rounded_error(artifact: Artifact) -> float:
    """Largest difference between the golden chunks and those of rounded products; NaN if any is.

    Factors and results of every product are rounded as the graph says, sums are float32: what an
    engine does, up to the order of its sums.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # any optimisation takes out casts down and up again
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(
        rounded_products(artifact.onnx_bytes),
        options,
        providers=["CPUExecutionProvider"],
    )
    golden = artifact.golden
    chunks = [
        session.run(
            None, {"observation": s[None], "noise": z[None], **artifact.weights}
        )[0][0]
        for s, z in zip(golden.observations, golden.noise, strict=True)
    ]
    return float(np.abs(np.stack(chunks) - golden.chunks).max())
