"""format=onnx: ONNX with QDQ nodes, run by onnxruntime."""

from octo_exp.export.onnx.qdq import SUFFIX, verify, write

__all__ = ["SUFFIX", "verify", "write"]
