"""Who may import whom: the table of CONTRIBUTING.md, held by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "octo_exp"

# room -> (rooms of octo_exp, third parties beside the standard library); every room may use `errors` and `base`.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "base": (set(), {"filelock"}),
    "kernels": (set(), {"torch"}),
    "quant": ({"kernels"}, {"torch"}),
    "nn": ({"kernels", "quant"}, {"torch"}),
    "facade": ({"kernels", "nn", "quant"}, {"hydra", "omegaconf", "torch"}),
    "lightning": ({"facade", "nn", "quant"}, {"lightning", "torch"}),
    "models": (set(), {"hydra", "omegaconf", "torch"}),
    "data": (
        {"progress"},
        {"torch", "lightning", "datasets", "sklearn", "numpy", "PIL", "pyarrow", "rich", "huggingface_hub"},
    ),
    "mcu": ({"kernels"}, {"torch", "numpy"}),
    "progress": (set(), {"rich"}),
    "ptq": ({"kernels", "quant", "mcu", "nn", "progress"}, {"torch", "numpy"}),
    "deploy": ({"kernels", "mcu"}, {"torch", "numpy"}),
    "update": ({"mcu"}, {"torch"}),
    "hw": (set(), {"numpy"}),
    "trace": ({"kernels", "quant", "nn", "hw", "mcu", "update"}, {"torch"}),
    "plots": ({"hw"}, {"matplotlib", "rich"}),
    "curves": (set(), {"matplotlib"}),
    "lit": (set(), {"torch", "lightning", "torchmetrics"}),
    "loops": (set(), {"lightning"}),
    "history": (set(), {"torch", "lightning"}),
    "trust": (set(), {"hydra", "omegaconf"}),
    "checkpoint": ({"trust"}, {"torch", "lightning"}),
    "identity": (set(), set()),
    "folder": ({"checkpoint", "identity"}, set()),
    "tracking": (set(), {"lightning"}),
    "callbacks": ({"checkpoint", "curves", "history", "nn", "quant", "hw", "trace", "plots"}, {"torch", "lightning"}),
    "weights": ({"checkpoint", "folder"}, {"safetensors", "torch"}),
    "results": (set(), {"rich"}),
    "cli": ({"identity", "trust"}, {"hydra", "omegaconf", "yaml", "antlr4"}),
    "sweep": ({"cli"}, {"hydra", "omegaconf", "rich", "yaml"}),
    "dse": (
        {"assemble", "cli", "hw", "models", "quant", "trace", "trust"},
        {"hydra", "matplotlib", "numpy", "omegaconf", "optuna", "rich"},
    ),
    "posttraining": ({"deploy", "mcu", "ptq", "quant"}, {"torch"}),
    "native": ({"mcu", "posttraining"}, {"torch"}),
    "assemble": (
        {
            *("callbacks", "checkpoint", "data", "folder", "hw", "kernels", "lit", "loops", "mcu", "models", "native"),
            *("nn", "posttraining", "progress", "quant", "tracking", "trust", "update", "weights"),
        },
        {"hydra", "lightning", "omegaconf", "rich", "torch"},
    ),
    "export": (
        {
            "assemble",
            "deploy",
            "hw",
            "mcu",
            "models",
            "nn",
            "plots",
            "posttraining",
            "progress",
            "results",
            "trace",
            "trust",
            "weights",
        },
        {"hydra", "numpy", "omegaconf", "rich", "torch"},
    ),
    "start": ({"assemble", "cli", "folder", "identity", "weights"}, {"hydra", "omegaconf"}),
    "stages": ({"assemble", "folder", "results", "weights"}, {"lightning", "omegaconf", "torch"}),
    "run": (
        {"assemble", "callbacks", "folder", "identity", "results", "stages", "start", "tracking", "trust"},
        {"hydra", "lightning", "omegaconf"},
    ),
    "command": (
        {"cli", "data", "dse", "export", "hw", "mcu", "progress", "run", "sweep"},
        {"hydra", "omegaconf", "rich", "torch"},
    ),
    "__main__": ({"command"}, set()),
    "bench": (
        {
            *("assemble", "callbacks", "deploy", "export", "hw", "kernels", "mcu", "models", "nn"),
            *("plots", "posttraining", "progress", "quant", "trace", "trust", "update"),
        },
        {"hydra", "numpy", "omegaconf", "rich", "torch", "torchao"},
    ),
}
# Files with a dependency that their room does not have.
EXTRA = {
    "bench/deploy.py": {"onnx"},
    "deploy/few_rows.py": {"llvmlite", "numba"},
    "deploy/vectors.py": {"llvmlite", "numba"},
    "export/onnx_build.py": {"onnx"},
    "export/onnx_qdq.py": {"onnx"},
    "export/onnx_runtime.py": {"onnx", "onnxruntime"},
    "export/onnx_verify.py": {"onnx", "onnxruntime"},
    "kernels/compiled.py": {"numba"},
    "kernels/cpu_loops.py": {"numba", "numpy"},
    "kernels/cpu_noise.py": {"numpy"},
    "kernels/cpu_conv.py": {"numpy"},
    "kernels/cpu_elementwise.py": {"numba", "numpy"},
    "models/hf.py": {"transformers"},
    "mcu/cpu_vectors.py": {"llvmlite", "numba"},
    "tracking/session.py": {"wandb"},
    "kernels/triton_conv.py": {"triton"},
    "kernels/triton_gemm.py": {"triton"},
    "kernels/triton_quantize.py": {"triton"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from octo_exp import x` as octo_exp.x."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "octo_exp" else {node.module}
            )
    return names


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    room = room_of(path)
    rooms, parties = ROOMS[room]
    parties = parties | EXTRA.get(str(path.relative_to(PACKAGE)), set())
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "octo_exp":
            target = rest.split(".")[0]
            allowed = rooms | {room, "errors", "__version__"} | ({"base"} if room != "errors" else set())
            assert not target or target in allowed, f"{room} must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in parties, f"{room} must not import {name}"


def test_compiled_loops_have_one_door():
    """numba's own decorators fail where nothing can be written, and on a damaged cache."""
    names = {"jit", "njit", "vectorize", "guvectorize", "cfunc", "prange"}
    for path in FILES:
        if path != PACKAGE / "kernels" / "compiled.py":
            tree = ast.walk(ast.parse(path.read_text()))
            found = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module == "numba"]
            assert not names & {alias.name for node in found for alias in node.names}, path


def test_the_table_has_no_cycle():
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {room for room, (rooms, _) in ROOMS.items() if room not in done and rooms <= done}
        assert ready, f"cycle among {set(ROOMS) - done}"
        done |= ready


def test_every_room_exists_and_is_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for room in ROOMS:
        assert (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file(), f"no room {room}"
        assert f"| {room} |" in text, f"CONTRIBUTING.md does not name the room {room}"


def test_importing_the_package_is_light():
    code = "import sys, octo_exp; sys.exit(bool({'torch', 'lightning', 'wandb', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nobody_prints():
    for path in [*FILES, *sorted((ROOT / "sweeps").glob("*.py")), ROOT / "train.py"]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], f"{path} prints"
