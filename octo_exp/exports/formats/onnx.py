"""ONNX in QDQ form, which onnxruntime runs in integers and other programs read: verified step by step."""

from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.subject import Graph

SUFFIX = ".onnx"


def write(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write `<name>.onnx` into the folder; return what the manifest says of it.

    The model reads float images [N, C, S, S], normalised, and gives logits [N, classes]. See `onnx_build` for its form.

    Raises:
        UserError: onnx or onnxruntime are not installed.

    """
    try:
        import onnx

        # The second is needed to verify.
        from octo_exp.exports.onnx import model as onnx_build
        from octo_exp.exports.onnx import verify  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("onnx", "onnxruntime"):
            raise
        raise UserError(
            f"format=onnx needs {error.name}, which is not installed; pip install 'octo-exp[export]'"
        ) from error
    path, model = folder / f"{name}{SUFFIX}", onnx_build.build(graph.spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return {"opset": onnx_build.OPSET, "ir_version": onnx_build.IR_VERSION}


def verify(graph: Graph, folder: Path, name: str) -> Evidence:
    """Run the file in onnxruntime, see `onnx_verify`; UserError where it is not the graph."""
    from octo_exp.exports.onnx import verify

    return verify.verify(graph, folder / f"{name}{SUFFIX}")
