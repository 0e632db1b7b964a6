"""What the benchmarks compare: one float network, trained a step as fp32, as bf16, compiled, or quantised."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import UserError
from octo_exp.config.trust import check_targets
from octo_exp.kernels.ops import resolve_impl
from octo_exp.models.build import build_model
from octo_exp.nn.convert import compensation_penalty, parameter_groups
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from octo_exp.runs.assemble import quantize_net, speed_guard
from octo_exp.runs.assemble.nets import channels_last

CONF = conf_folder()
PLAIN = ("fp32", "fp32_channels_last", "bf16", "bf16_channels_last")
# Need a C++ compiler, an optional package.
OPTIONAL = ("fp32_compiled", "torchao_int8")
FLOATS = (*PLAIN, *OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A name, the net, and one training step (zero_grad, forward, backward, SGD) that returns the loss."""

    name: str
    net: nn.Module
    images: Tensor
    labels: Tensor
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    autocast: bool

    def step(self) -> Tensor:
        """Run one step."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self) -> Tensor:
        """Return the loss of a forward pass."""
        loss = F.cross_entropy(self.forward(self.images), self.labels)
        penalty = compensation_penalty(self.net)
        return loss if penalty is None else loss + penalty


def config(overrides: Sequence[str]) -> DictConfig:
    """Compose the project's config, as train.py would; UserError where an override names nothing, or the untrusted."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{reason}; `python train.py --help` lists what can be chosen") from error
    check_targets(cfg)
    return cfg


def batch(cfg: DictConfig, size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return keyed random images [N, C, S, S] of the model's size and labels: timing needs no data set."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    images = torch.randn(shape, generator=generator)
    return images.to(device), torch.randint(0, cfg.data.classes, (size,), generator=generator).to(device)


def float_net(cfg: DictConfig) -> nn.Module:
    """Return the float network, the same weights for everyone."""
    torch.manual_seed(0)
    net: nn.Module = build_model(cfg.model)
    return net


def build(name: str, overrides: Sequence[str], *, batch_size: int, device: str = "cpu") -> Subject:
    """Return a subject: one of FLOATS, or the name of a scheme (`int8`, `octo`, ...).

    Raises UserError where an optional package is missing.
    """
    cfg = config(overrides if name in FLOATS else [*overrides, f"quant={name}"])
    images, labels = batch(cfg, batch_size, device)
    net = float_net(cfg).to(device)
    forward: Callable[[Tensor], Tensor] = net
    autocast = name.startswith("bf16")
    if name.endswith("channels_last") or name not in FLOATS:
        net, images = channels_last(net), images.to(memory_format=torch.channels_last)
    if name not in FLOATS:
        autocast = _quantize(net, cfg, batch_size, device)
    elif name == "fp32_compiled":
        forward = torch.compile(net)
    elif name == "torchao_int8":
        _torchao(net)
    return Subject(
        name=name,
        net=net,
        images=images,
        labels=labels,
        forward=_autocast(net, device) if autocast else forward,
        optimizer=torch.optim.SGD(parameter_groups(net), lr=1e-3),
        autocast=autocast,
    )


def _quantize(net: nn.Module, cfg: DictConfig, batch_size: int, device: str) -> bool:
    """Convert as a run would, speed guard included; return whether the guard leaves the whole net to bf16 autocast."""
    scheme, impl = instantiate(cfg.quant, _convert_="all"), resolve_impl(cfg.kernel.impl, device)
    shape = (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    verdict = None
    if cfg.kernel.guard:
        verdict = speed_guard(net, scheme, impl=impl, input_shape=shape, batch_size=batch_size)
    quantize_net(net, scheme, verdict, impl=impl, clock=Clock(), input_shape=shape)
    return verdict is not None and verdict.whole == "bf16"


def _autocast(net: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits: Tensor = net(images)
            return logits

    return forward


def _torchao(net: nn.Module) -> None:
    if importlib.util.find_spec("torchao") is None:
        raise UserError("torchao_int8 needs torchao: pip install torchao, or leave it out of --subjects")
    from torchao.prototype.quantized_training import int8_mixed_precision_training
    from torchao.quantization import quantize_

    quantize_(net, int8_mixed_precision_training())


def precisions(subject: Subject) -> dict[str, str]:
    """Return what every convolution and linear layer computes in: `int8`, or the type that it stays in."""
    found: dict[str, str] = {}
    for name, module in subject.net.named_modules():
        if isinstance(module, QuantLayer):
            roles = {module.scheme.precision_of(role) for role in ("output", "grad_input", "grad_weight")}
            found[name] = "/".join(sorted(roles))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            found[name] = "bf16" if subject.autocast else getattr(module, "precision", "fp32")
    return found


def replaced(subject: Subject, *, images: Tensor, labels: Tensor) -> Subject:
    """Return the subject with another batch."""
    return dataclasses.replace(subject, images=images, labels=labels)
