"""What the networks share: blocks with an optional norm, and He initialisation."""

from torch import nn

from octo_exp.base.errors import UserError

NORMS = ("none", "batch")
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def norm2d(norm: str, channels: int) -> list[nn.Module]:
    """Return [BatchNorm2d] for norm=batch, [] for norm=none."""
    if norm not in NORMS:
        raise UserError(f"model.norm={norm!r} is unknown; choose one of {', '.join(NORMS)}")
    return [nn.BatchNorm2d(channels)] if norm == "batch" else []


def norm1d(norm: str, features: int) -> list[nn.Module]:
    """Return [BatchNorm1d] for norm=batch, [] for norm=none."""
    return [nn.BatchNorm1d(features)] if norm2d(norm, features) else []


def conv_block(
    inputs: int, outputs: int, kernel: int, *, padding: int, norm: str, pool: str | None = None, relu: bool = True
) -> list[nn.Module]:
    """Return convolution, optional norm, ReLU and 2x2 pooling (one of `POOLS`); a norm makes the bias redundant."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=norm == "none")]
    layers += [*norm2d(norm, outputs), *([nn.ReLU(inplace=True)] if relu else [])]
    return layers if pool is None else [*layers, POOLS[pool](2)]


def initialize(net: nn.Module) -> None:
    """He initialisation for ReLU: N(0, 2/fan_in) weights, zero biases (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pooled_size(image_size: int, *, kernels: list[tuple[int, int, bool]], name: str) -> int:
    """Spatial size after (kernel, padding, pooled?) stages; UserError where nothing is left of the image."""
    size = image_size
    for kernel, padding, pool in kernels:
        size = size + 2 * padding - kernel + 1
        size = size // 2 if pool else size
        if size < 1:
            raise UserError(f"model.image_size={image_size} is too small for {name}: a layer would see no pixel")
    return size
