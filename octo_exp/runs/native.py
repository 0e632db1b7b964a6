"""`quant=native`: the int8 graph of a model file, or of a trained float net that is calibrated and quantised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.data.protocol import DataModule
from octo_exp.graph.spec import ModelSpec
from octo_exp.graph.train.chains import MODES
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import HEADS
from octo_exp.runs.posttraining import quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """What conf/quant/native.yaml says; its comments say what each value means."""

    name: str
    precision: str
    head: str
    mode: str
    quantize_gradient: bool
    calibration: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse an arithmetic that is none."""
        if self.mode not in MODES:
            raise UserError(f"quant.mode={self.mode} is unknown; choose one of {', '.join(MODES)}")

    def graph(self, model: nn.Module | ModelSpec, datamodule: DataModule) -> McuNet:
        """Return the int8 graph of a model file's spec, or of a trained float net [N, C, S, S] -> [N, classes].

        Args:
            model: either; a net is left as it is.
            datamodule: gives `classes`, and images to calibrate on.

        Raises:
            UserError: a net with an operation that has no int8 form, or a head that does not fit.

        """
        spec = model if isinstance(model, ModelSpec) else quantized(model, datamodule, self.calibration)
        return McuNet(
            spec,
            num_classes=datamodule.classes,
            head=self.head_of(spec, datamodule.classes),
            mode=self.mode,
            quantize_gradient=self.quantize_gradient,
        )

    def head_of(self, spec: ModelSpec, classes: int) -> str:
        """Return the head's name, that of `auto` for a number of classes."""
        if self.head not in (*HEADS, "auto"):
            raise UserError(f"quant.head={self.head} is unknown; choose one of auto, {', '.join(HEADS)}")
        fits = spec.classifier.out_channels == classes
        return ("original" if fits else "fp") if self.head == "auto" else self.head
