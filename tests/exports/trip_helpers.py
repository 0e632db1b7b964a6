"""Runs to export, and what the files answer in programs that know nothing of the framework."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from omegaconf import OmegaConf
from torch import Tensor, nn

from octo_exp.cli.export import export as main
from octo_exp.exports.request import parse
from octo_exp.exports.source import read_run
from octo_exp.exports.subject import Graph, graph_of
from octo_exp.graph.files.writer import write_model
from octo_exp.models.simplecnn import SimpleCNN
from octo_exp.runs.run import run
from tests.configs import composed
from tests.graph.helpers import model_file, tiny_model

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("mcu", "onnx", "c", "text")
# What an export of the run folder `net` leaves in `net/export`.
FILES = {"mcu": ("net.pkl",), "onnx": ("net.onnx",), "c": ("net.c", "net.h"), "text": ("net_text",)}
PIXELS = "++model.pixels={channels:3,mean:[.5,.5,.5],std:[0.00392156862745098,0.00392156862745098,0.00392156862745098]}"
DIGITS = "logger=csv ~callbacks.cost ~callbacks.memory data=digits data.limit_test=200 data.batch_size=32"
REAL = "logger=csv data.epochs=1 data.limit_test=2000"
# The cross term is dropped at the start, so LAC's constants are as large as the outputs themselves.
NARROW_LAC = (
    "model=vgg11 model.stages=[8,pool,16,pool,24,24,pool,32,32,pool,40,40,pool] model.classifier=[32,24] "
    "model.norm=batch quant=lac quant.compensation.theta_init=-1"
)
FEW = "logger=csv quant=native data.limit_train=600 data.limit_test=400 data.batch_size=32 data.epochs=2"
RELEASED = {"mcunet_5fps": "mcunet-5fps", "mbv2_w035": "mbv2-w0.35", "proxyless_w03": "proxyless-w0.3"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run's settings; graph: what model=graph needs beside them; images: how many are answered outside.

    same_class: the least share of test images that keep the run's class in integers.
    """

    settings: str
    graph: str = ""
    images: int = 200
    same_class: float = 0.97


QUICK = {
    "lenet5": Case(settings=f"{DIGITS} model=lenet5 model.pool=average model.relu=[c1,c3] quant=ptq data.epochs=3"),
    "vgg11": Case(settings=f"{DIGITS} {NARROW_LAC} data.limit_train=1000 data.epochs=2 optim.optimizer.lr=0.005"),
    "resnet20": Case(
        settings=f"{DIGITS} model=resnet20 model.blocks=1 model.image_size=16 quant=int8 data.limit_train=800 "
        "data.epochs=2 optim.optimizer.lr=0.005",
        graph="model.image_size=16",
    ),
    "tiny": Case(
        settings=f"{DIGITS} model=graph model.image_size=16 {PIXELS} quant=native data.epochs=2 update=last_k "
        "update.sparse.n_bias=3 update.lr=0.0005",
        graph=f"model.image_size=16 {PIXELS}",
        # Its head, a float one, becomes int8, and after two epochs many images lie between classes.
        same_class=0.7,
    ),
}
SLOW = {
    "lenet5 mnist": Case(settings=f"{REAL} data=mnist model=lenet5 quant=ptq data.limit_train=20000"),
    "simplecnn fashion_mnist": Case(
        settings=f"{REAL} data=fashion_mnist model=simplecnn quant=octo data.limit_train=10000",
        graph="model.image_size=28",
    ),
    "vgg11 cifar10": Case(
        settings=f"{REAL} data=cifar10 model=vgg11 model.norm=batch quant=lac data.limit_train=9000 data.batch_size=32",
        images=20,
        same_class=0.9,
    ),
    "resnet20 fashion_mnist": Case(
        settings=f"{REAL} data=fashion_mnist model=resnet20 quant=ptq data.limit_train=6000 data.epochs=3",
        images=50,
        same_class=0.9,
    ),
    "mcunet_5fps flowers5_32": Case(
        settings=f"{FEW} data=flowers5_32 model=mcunet_5fps update=head_only",
        graph=f"model.image_size=128 {PIXELS}",
        images=20,
        same_class=0.9,
    ),
    "mbv2_w035 flowers5_32": Case(
        settings=f"{FEW} data=flowers5_32 model=mbv2_w035 update=last_k update.lr=0.002",
        graph=f"model.image_size=128 {PIXELS}",
        images=20,
        same_class=0.9,
    ),
    "proxyless_w03 imagenette112": Case(
        settings=f"{FEW} data=imagenette112 model=proxyless_w03 update=last_k",
        graph=f"model.image_size=128 {PIXELS}",
        images=20,
        same_class=0.9,
    ),
}
CASES = QUICK | SLOW


@dataclass(frozen=True, kw_only=True, eq=False)
class Trip:
    """A run, its graph, and test images as pixels [N, C, S, S] in [0, 1]."""

    case: Case
    run: Path
    results: dict[str, Any]
    graph: Graph
    pixels: np.ndarray
    labels: np.ndarray
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def manifest(self, form: str) -> dict[str, Any]:
        """What an export says, made where it is first asked for."""
        if form not in self.manifests:
            assert main([f"format={form}", f"run={self.run}"]) == 0
            self.manifests[form] = json.loads(Path(f"{self.file(form)}.json").read_text())
        return self.manifests[form]

    def file(self, form: str) -> Path:
        return self.run / "export" / FILES[form][0]

    def normalized(self, form: str) -> np.ndarray:
        """All test images as a manifest says, float32."""
        mean, std = (np.array(self.manifest(form)[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
        return (self.pixels - mean) / std

    def codes(self, form: str) -> np.ndarray:
        """The first images as codes, int8."""
        content = self.manifest(form)
        codes = np.round(self.normalized(form)[: self.case.images] / content["input_scale"]) + content["input_zero"]
        return np.clip(codes, -128, 127).astype(np.int8)


def take(name: str, folder: Path) -> Trip:
    """Train a case."""
    case, model = CASES[name], name.split()[0]
    settings = case.settings.split()
    if name == "tiny":
        write_model(tiny_model(), folder / "tiny.pkl")
        settings.append(f"model.path={folder / 'tiny.pkl'}")
    elif model in RELEASED:
        settings.append(f"model.path={model_file(RELEASED[model])}")
    results = run(composed(*settings, save_dir=folder / "net"))
    source = read_run(str(folder / "net"))
    loader = source.datamodule.test_dataloader()
    assert loader.images.shape[-1] == source.cfg.model.image_size
    return Trip(
        case=case,
        run=folder / "net",
        results=results,
        graph=graph_of(source, calibration=parse(["format=mcu", "run=net"]).calibration, profile=None),
        pixels=loader.images.numpy().astype(np.float32) / np.float32(255),
        labels=loader.labels.numpy(),
    )


def onnx_logits(file: Path, images: np.ndarray) -> np.ndarray:
    """Images [N, C, S, S] float32 -> logits, by a session that knows the file alone."""
    options = onnxruntime.SessionOptions()
    # Without VNNI sums would saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (start,) = session.get_inputs()
    return np.concatenate([session.run(None, {start.name: images[i : i + 64]})[0] for i in range(0, len(images), 64)])


_PROGRAM = """
#include "net.h"
#include <stdio.h>
static int8_t input[NET_INPUT_HEIGHT][NET_INPUT_WIDTH][NET_INPUT_CHANNELS], logits[NET_LOGITS_BYTES];
int main(void) {
    while (fread(input, sizeof input, 1, stdin) == 1) {
        net_run(&input[0][0][0], logits);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def c_logits(source: Path, codes: np.ndarray, folder: Path) -> np.ndarray:
    """Codes [N, C, S, S] -> codes of the logits, by the compiled file in a program of our own."""
    for file in (source, source.with_suffix(".h")):
        shutil.copy(file, folder)
    (folder / "main.c").write_text(_PROGRAM)
    subprocess.run(["cc", "-std=c99", "-O1", "main.c", source.name, "-o", "program"], cwd=folder, check=True)
    images = codes.transpose(0, 2, 3, 1).tobytes()
    done = subprocess.run([folder / "program"], input=images, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.int8).reshape(len(codes), -1)


def text_logits(numbers: Path, codes: np.ndarray, folder: Path) -> np.ndarray:
    """The same, by the command line of the program in numpy."""
    np.save(folder / "codes.npy", codes)
    words = [str(numbers), str(folder / "codes.npy"), str(folder / "logits.npy")]
    subprocess.run([sys.executable, "-m", "octo_exp.exports.text.run_numpy", *words], cwd=ROOT, check=True)
    return np.load(folder / "logits.npy")


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edited(run_folder: Path, **values: Any) -> None:
    """Change settings of `data` in a run's config."""
    cfg = OmegaConf.load(run_folder / "config.yaml")
    cfg.data.update(values)
    OmegaConf.save(cfg, run_folder / "config.yaml")


class Squashed(nn.Module):
    """simplecnn with a sigmoid before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.squash, self.body = nn.Sigmoid(), SimpleCNN(**settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.squash(x))
