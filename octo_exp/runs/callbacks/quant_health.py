"""How well the operands survive quantisation, layer by layer, while training."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.quantizer import QTensor
from octo_exp.runs.lit import network_of


def operand_health(t: Tensor, q: QTensor, q_min: int, q_max: int) -> dict[str, Tensor]:
    """t and its codes -> fractions clipped and saturated, and the cosine of t with its dequantised form; 0-d tensors.

    clipped: outside the representable range by more than half a code; saturated: at an end code. The cosine of an
    all-zero tensor is 1: nothing was lost.
    """
    zero = 0 if q.zero_point is None else q.zero_point
    low, high = (q_min - zero - 0.5) * q.scale, (q_max - zero + 0.5) * q.scale
    # Divided by their peaks first: squares of tiny or huge gradients would leave float32.
    unit = [v.flatten() / v.abs().max().clamp(min=1e-38) for v in (t, q.dequantize())]
    cosine = F.cosine_similarity(unit[0], unit[1], dim=0)
    cosine = torch.where(unit[0].any() | unit[1].any(), cosine, torch.ones_like(cosine))
    return {
        "clipped": ((t < low) | (t > high)).float().mean(),
        "saturated": ((q.values == q_min) | (q.values == q_max)).float().mean(),
        "cosine": cosine,
    }


class QuantHealth(Callback):
    """Every `every_n_steps` steps, probes every quantised operand of a step.

    Log keys: quant/<layer>/<operand>_{clipped,saturated,cosine}, operands x, w, g (g_scaled: g times the per-channel
    scale of w). Results: quant/min_g_cosine, the smallest cosine(g, q(g)) seen, and the layer where.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._values: dict[str, Tensor] = {}
        self._layers: list[QuantLayer] = []
        self.worst: tuple[float, str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the quantised layers."""
        self._layers = [m for m in network_of(pl_module, "quant_health").modules() if isinstance(m, QuantLayer)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the probe on the steps that are looked at."""
        if trainer.global_step % self.every_n_steps == 0:
            for layer in self._layers:
                layer.observer = self._observe

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was seen and close the probe."""
        for layer in self._layers:
            layer.observer = None
        if self._values:
            # Past Lightning's own rhythm: these steps are chosen here.
            numbers = {key: float(value) for key, value in self._values.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)
            self._remember_worst(numbers)
            self._values = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the worst gradient so far."""
        return {"worst": None if self.worst is None else list(self.worst)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after earlier steps."""
        worst = state_dict["worst"]
        self.worst = None if worst is None else (float(worst[0]), str(worst[1]))

    def _observe(self, layer: QuantLayer, operand: str, t: Tensor, q: QTensor) -> None:
        quantizer = layer.quantizer_of(operand)
        if quantizer is not None:
            health = operand_health(t, q, quantizer.q_min, quantizer.q_max)
            self._values |= {f"quant/{layer.layer_name}/{operand}_{key}": value for key, value in health.items()}

    def _remember_worst(self, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            # A NaN would stay the worst for good.
            if key.endswith("/g_cosine") and value < (math.inf if self.worst is None else self.worst[0]):
                self.worst = (value, key.split("/")[1])

    @property
    def results(self) -> dict[str, float | str | None]:
        """Return the worst gradient of the run."""
        if self.worst is None:
            return {}
        return {"quant/min_g_cosine": self.worst[0], "quant/min_g_cosine_layer": self.worst[1]}
