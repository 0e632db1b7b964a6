"""Who may import whom: the table of CONTRIBUTING.md, held by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "octo_exp"

# room -> (rooms of octo_exp, third parties beside the standard library); every room may use `base`.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "base": (set(), {"filelock"}),
    "workload": (set(), set()),
    "kernels": ({"workload"}, {"torch"}),
    "quant": ({"kernels", "workload"}, {"torch"}),
    "nn": ({"kernels", "quant", "workload"}, {"torch"}),
    "facade": (
        {"exports", "graph", "hw", "kernels", "nn", "quant", "tracing", "workload"},
        {"hydra", "omegaconf", "torch"},
    ),
    "lightning": ({"facade", "nn", "quant"}, {"lightning", "torch"}),
    "models": (set(), {"hydra", "omegaconf", "torch"}),
    "data": (
        set(),
        {"torch", "lightning", "datasets", "sklearn", "numpy", "PIL", "pyarrow", "rich", "huggingface_hub"},
    ),
    "graph": ({"kernels", "quant", "nn", "workload"}, {"torch", "numpy"}),
    "hw": ({"workload"}, {"numpy"}),
    "tracing": ({"workload"}, {"torch"}),
    "examples": (set(), {"matplotlib", "sklearn", "torch"}),
    "config": (set(), {"hydra", "omegaconf", "yaml", "antlr4"}),
    "runs": (
        {"config", "data", "graph", "hw", "kernels", "models", "nn", "quant", "tracing", "workload"},
        {"hydra", "lightning", "omegaconf", "rich", "torch", "yaml"},
    ),
    "exports": (
        {"config", "data", "graph", "hw", "models", "nn", "runs", "tracing", "workload"},
        {"hydra", "numpy", "omegaconf", "rich", "torch"},
    ),
    "cli": (
        {"config", "data", "exports", "graph", "hw", "models", "quant", "runs", "tracing", "workload"},
        {"hydra", "numpy", "omegaconf", "rich", "torch"},
    ),
    "__main__": ({"cli"}, set()),
    "bench": (
        {"config", "exports", "graph", "hw", "kernels", "models", "nn", "quant", "runs", "tracing", "workload"},
        {"hydra", "numpy", "omegaconf", "rich", "torch", "torchao"},
    ),
}
# Files and folders with a dependency that their room does not have.
EXTRA = {
    "base/progress.py": {"rich"},
    "bench/deploy.py": {"onnx"},
    "cli/dse/nsga2.py": {"optuna"},
    "cli/dse/plot.py": {"matplotlib"},
    "exports/formats/onnx.py": {"onnx"},
    "exports/onnx": {"onnx"},
    "exports/onnx/runtime.py": {"onnxruntime"},
    "exports/onnx/verify.py": {"onnxruntime"},
    "kernels/cpu": {"numba", "numpy"},
    "kernels/cpu/few_rows.py": {"llvmlite"},
    "kernels/cpu/fixed_vectors.py": {"llvmlite"},
    "kernels/cpu/tiles.py": {"llvmlite"},
    "kernels/cpu/vectors.py": {"llvmlite"},
    "kernels/triton": {"triton"},
    "models/hf.py": {"transformers"},
    "runs/cost_plots.py": {"matplotlib"},
    "runs/curve_plots.py": {"matplotlib"},
    "runs/lit.py": {"torchmetrics"},
    "runs/tracking/session.py": {"wandb"},
    "runs/weights/given.py": {"safetensors"},
}
# Within a wing: folder -> folders of it that it may import; "." are the files that lie directly in the room.
WINGS: dict[str, dict[str, set[str]]] = {
    "graph": {".": set(), **{inner: {"."} for inner in ("files", "calibrate", "train", "integers")}},
    "kernels": {".": {"plain", "cpu", "triton"}, **{inner: {".", "plain"} for inner in ("plain", "cpu", "triton")}},
    "exports": {
        ".": {"formats"},
        "formats": {".", "onnx", "c99", "text"},
        **{inner: {"."} for inner in ("onnx", "c99", "text")},
    },
    "runs": {
        ".": {"assemble", "callbacks", "tracking", "weights"},
        "assemble": {".", "callbacks", "tracking", "weights"},
        "callbacks": {"."},
        "weights": {"."},
        "tracking": set(),
        "sweep": set(),
    },
    "config": {".": {"trust"}, "trust": set()},
    "cli": {".": set(), "dse": {"."}},
}
# Names of files that stand in several folders: the same thing in parallel wings.
PARALLEL = {
    "backend": {"kernels", "kernels/cpu", "kernels/triton"},
    "conv": {"kernels/cpu", "kernels/triton"},
    "verify": {"exports/c99", "exports/onnx"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, of octo_exp the modules: `from octo_exp.x import y` as octo_exp.x.y."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if node.module == "octo_exp" or file_of(inner) else node.module)
    return names


def file_of(module: str) -> Path | None:
    """The file of a module of octo_exp."""
    top, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    found = [place for place in (path.with_suffix(".py"), path / "__init__.py") if place.is_file()]
    return found[0] if top == "octo_exp" and found else None


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    room = room_of(path)
    rooms, parties = ROOMS[room]
    places = (path.relative_to(PACKAGE), *path.relative_to(PACKAGE).parents)
    parties = parties.union(*(EXTRA.get(place.as_posix(), set()) for place in places))
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "octo_exp":
            target = rest.split(".")[0]
            allowed = rooms | {room, "base", "__version__"}
            assert not target or target in allowed, f"{room} must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in parties, f"{room} must not import {name}"


@pytest.mark.parametrize("wing", WINGS)
def test_arrows_within_a_wing(wing):
    folders = {path.name for path in (PACKAGE / wing).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == WINGS[wing].keys() - {"."}
    for path in sorted((PACKAGE / wing).rglob("*.py")):
        own = path.relative_to(PACKAGE / wing).parts[0]
        own = own if own in folders else "."
        for name in imports(path):
            _, room, *inner = [*name.split("."), ""]
            if name.startswith("octo_exp.") and room == wing:
                other = inner[0] if inner[0] in folders else "."
                assert other in WINGS[wing][own] | {own}, f"{path.relative_to(PACKAGE)} must not import {name}"


def test_no_circle_among_files():
    """Imports for type checkers alone count: a reader follows them too."""
    arrows = {path: {file_of(name) for name in imports(path)} & set(FILES) - {path} for path in FILES}
    done: set[Path] = set()
    while len(done) < len(FILES):
        ready = {path for path in FILES if path not in done and arrows[path] <= done}
        assert ready, f"circle among {sorted(str(path.relative_to(PACKAGE)) for path in set(FILES) - done)}"
        done |= ready


def test_no_file_name_stands_in_two_folders():
    found: dict[str, set[str]] = {}
    for path in FILES:
        if not path.stem.startswith("__"):
            found.setdefault(path.stem, set()).add(path.parent.relative_to(PACKAGE).as_posix())
    assert {name: places for name, places in found.items() if len(places) > 1} == PARALLEL


def test_there_are_at_most_eighteen_rooms():
    rooms = {room_of(path) for path in FILES} - {"__main__"}
    assert len(rooms) <= 18
    assert rooms == ROOMS.keys() - {"__main__"}


def test_compiled_loops_have_one_door():
    """numba's own decorators fail where nothing can be written, and on a damaged cache."""
    names = {"jit", "njit", "vectorize", "guvectorize", "cfunc", "prange"}
    for path in FILES:
        if path != PACKAGE / "kernels" / "cpu" / "compiled.py":
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
