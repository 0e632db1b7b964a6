"""onnxruntime on a CPU: the one place where its options are chosen.

On x86 it multiplies uint8 activations by int8 weights. A CPU without VNNI adds two such products in 16 bits, where they
saturate. There `session.x64quantprecision` makes it turn weights into uint8, which is exact; with VNNI that would only
cost time. A program that runs an exported file on a CPU without VNNI needs the option too.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

# What a fused step is called in an optimised graph, and what a step is called that still runs in float.
INTEGER = ("QLinearConv", "QGemm", "QLinearAdd", "QLinearAveragePool")
FLOAT = ("Conv", "FusedConv", "Gemm", "Add")


def options(optimized: Path | None = None) -> onnxruntime.SessionOptions:
    """Return options with as many threads as torch uses, exact sums on this CPU, and no warnings.

    optimized: where a session writes the graph that it runs.
    """
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = torch.get_num_threads()
    made.inter_op_num_threads = 1
    made.log_severity_level = 3
    if not torch.cpu._is_vnni_supported():
        made.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        made.optimized_model_filepath = str(optimized)
    return made


def session(model: Path | bytes, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a model of a file, or of its bytes, ready to run on the CPU."""
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options(optimized), providers=["CPUExecutionProvider"])


def run(running: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by the names of a model's inputs -> arrays by the names of its outputs."""
    names = [output.name for output in running.get_outputs()]
    return dict(zip(names, running.run(names, inputs), strict=True))


def operators(optimized: Path) -> Counter[str]:
    """Return how many nodes of each kind an optimised graph has."""
    return Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)
