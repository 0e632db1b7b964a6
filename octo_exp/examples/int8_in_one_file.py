"""INT8 training in one file: LeNet-5, each of whose matrix products is made of int8 codes, in both directions.

A layer is a matrix product, and training it takes two more. With x the inputs, a row each (of a convolution: one for
each place of its window), w the weights, a row an output, and g the loss's gradient with respect to y:

    output        y = x @ w.T          what the next layer gets
    grad_input   dx = g @ w            what the layer before gets
    grad_weight  dw = g.T @ x          what the optimizer gets

Nearly all arithmetic of training is in these three. Quantisation-aware training rounds x and w and multiplies floats;
here all three multiply 8-bit integers and add them up in 32-bit ones, for which chips have faster instructions, and
what the backward pass needs of the forward one is kept in a quarter of the bytes. A tensor becomes codes and a scale,

    t ~ q * s,    s = max|t| / 127,    q = round(t / s) in -127 ... 127,    so    a @ b ~ (q_a @ q_b) * (s_a * s_b)

and q_a @ q_b is exact. Float stay the weights that the optimizer moves (a step is smaller than a code), biases, ReLU
and the loss. It needs torch alone (scikit-learn for its digits); run it on a CPU:

    python -m octo_exp.examples.int8_in_one_file

Bit for bit this is octo_exp's scheme `quant=int8 quant.skip=[]`, and with keep=0.95 `quant=prc quant.skip=[]`
(tests/examples compares every gradient). By default that framework leaves the first and the last layer float; here all
five are int8. It adds fast loops between the products, zero points and their compensation (LAC): docs/concepts.md.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- Codes -----------------------------------------------------------------------------------------------------------


def scale_of(low: Tensor, high: Tensor) -> Tensor:
    """Range of a tensor -> what one code is worth: the largest magnitude is code 127. All zeros get a scale too."""
    return (torch.maximum(low.abs(), high.abs()) / 127).clamp(min=torch.finfo(torch.float32).tiny)


def codes_of(t: Tensor, scale: Tensor) -> Tensor:
    """Float -> int8: the nearest code, of two equally near ones the even; what lies outside the range is cut."""
    return (t / scale).round().clamp(-127, 127).to(torch.int8)


# --- The product -----------------------------------------------------------------------------------------------------


def _is_exact() -> bool:
    """Whether torch._int_mm exists here and adds up the largest codes: some CPUs' int8 instructions saturate."""
    a = torch.full((32, 256), 127, dtype=torch.int8)
    return hasattr(torch, "_int_mm") and bool((torch._int_mm(a, a.t()) == 256 * 127 * 127).all())


HAS_INT_MM = _is_exact()


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] int8 @ b [K, N] int8 -> [M, N] int32, exact for K up to (2^31 - 1) // 127^2 = 133,144; M, K, N > 1."""
    if HAS_INT_MM:
        return torch._int_mm(a, b)
    # float64 holds every integer below 2^53: the same numbers, slower.
    return (a.double() @ b.double()).to(torch.int32)


def columns(t: Tensor, k: int) -> Tensor:
    """im2col: [N, H, W, C] -> [N*OH*OW, k*k*C], a row for each place of a k x k window, of the same dtype."""
    windows = t.unfold(1, k, 1).unfold(2, k, 1)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k * t.shape[3])


# --- The layer: three products ---------------------------------------------------------------------------------------


class ThreeGemms(torch.autograd.Function):
    """x [N, H, W, C], w [O, k*k*C] -> y [N, OH, OW, O], float32. A linear layer has k = 1 and images of one pixel.

    Rounding has slope 0 almost everywhere, so it is passed over in the backward pass as if it were the identity
    (straight-through). Where x was cut by its range the gradient would be 0; in training the range is x's own and cuts
    nothing, so there is no mask here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, low: Tensor, high: Tensor, k: int, keep: float) -> Tensor:
        """output: rows of windows times filters. low, high: the range of x."""
        s_x, s_w = scale_of(low, high), scale_of(*w.aminmax())
        q_x, q_w = codes_of(x, s_x), codes_of(w, s_w)
        # The backward products take the same codes: one byte an element is all that is kept.
        ctx.save_for_backward(q_x, q_w, s_x, s_w)
        ctx.k, ctx.keep = k, keep
        y = int_mm(columns(q_x, k), q_w.t()) * (s_x * s_w)
        return y.view(x.shape[0], x.shape[1] - k + 1, x.shape[2] - k + 1, -1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """grad_weight and grad_input: g [N, OH, OW, O] is quantised once, and both use its codes."""
        q_x, q_w, s_x, s_w = ctx.saved_tensors
        k = ctx.k
        # Few values of a gradient are large: PRC cuts them to a share of their range, for finer codes of the rest.
        low, high = (ctx.keep * bound for bound in g.aminmax())
        s_g = scale_of(low, high)
        q_g = codes_of(g.clamp(low, high), s_g)
        # Every place of the window in every image adds to the filters: the sum runs over N*OH*OW.
        dw = int_mm(q_g.flatten(0, 2).t(), columns(q_x, k)) * (s_g * s_x)
        if not ctx.needs_input_grad[0]:
            return None, dw, None, None, None, None
        # A pixel collects from each output whose window it was in: a convolution of g, with a border of zeros, by the
        # filters turned around. Its sum runs over k*k*O. (g @ w and adding up overlapping windows is the same.)
        q_g = F.pad(q_g, (0, 0, k - 1, k - 1, k - 1, k - 1))
        turned = q_w.view(-1, k, k, q_x.shape[3]).flip(1, 2).permute(1, 2, 0, 3).flatten(0, 2)
        dx = int_mm(columns(q_g, k), turned) * (s_g * s_w)
        return dx.view(q_x.shape), dw, None, None, None, None


class Int8Layer(nn.Module):
    """[N, H, W, inputs] -> [N, H-k+1, W-k+1, outputs]: ThreeGemms and the range of x that evaluation uses.

    A prediction must not depend on what else is in its batch, so evaluation has the average range of the last steps.
    """

    low: Tensor
    high: Tensor

    def __init__(self, inputs: int, outputs: int, k: int, keep: float) -> None:
        super().__init__()
        fan_in = k * k * inputs
        self.weight = nn.Parameter(torch.randn(outputs, fan_in) * (2 / fan_in) ** 0.5)
        self.k, self.keep = k, keep
        self.register_buffer("low", torch.tensor(torch.nan))
        self.register_buffer("high", torch.tensor(torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * w, without a bias."""
        low, high = self.low, self.high
        if self.training:
            low, high = x.detach().aminmax()
            for kept, now in ((self.low, low), (self.high, high)):
                kept.copy_(torch.where(kept.isnan(), now, 0.9 * kept + (1 - 0.9) * now))
        y: Tensor = ThreeGemms.apply(x, self.weight, low, high, self.k, self.keep)  # type: ignore[no-untyped-call]
        return y


# --- The network and its training ------------------------------------------------------------------------------------


class LeNet5(nn.Module):
    """[N, 1, 32, 32] -> [N, 10] logits: three convolutions of 5 x 5 (two with a 2 x 2 max pool), two linear layers."""

    def __init__(self, keep: float = 1.0) -> None:
        super().__init__()
        shapes = [(1, 6, 5), (6, 16, 5), (16, 120, 5), (120, 84, 1), (84, 10, 1)]
        self.layers = nn.ModuleList(Int8Layer(*shape, keep) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(outputs) for _, outputs, _ in shapes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = images.permute(0, 2, 3, 1)
        for i, (layer, bias) in enumerate(zip(self.layers, self.biases, strict=True)):
            x = layer(x)
            if i < 2:
                # The maximum of y + b is that of y, plus b: bias and ReLU come last, on a quarter of the elements.
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            x = x + bias
            x = F.relu(x) if i < 4 else x
        return x.flatten(1)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits: images [N, 1, 32, 32] in -1 ... 1, labels [N]; the same shuffle every time."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    return images[order], torch.from_numpy(found.target)[order].long()


def main(epochs: int = 2, batch: int = 32, test: int = 357) -> float:
    """Train, tell the loss every 15 steps and each epoch's test accuracy, and return the last."""
    torch.manual_seed(0)
    net = LeNet5(keep=0.95)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    images, labels = digits()
    for epoch in range(epochs):
        net.train()
        for step, chosen in enumerate(torch.split(test + torch.randperm(len(images) - test), batch)):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            if step % 15 == 0:
                sys.stdout.write(f"epoch {epoch + 1}, step {step + 1}: loss {loss.item():.3f}\n")
                sys.stdout.flush()
        net.eval()
        with torch.no_grad():
            accuracy = float((net(images[:test]).argmax(1) == labels[:test]).float().mean())
        sys.stdout.write(f"epoch {epoch + 1}: test accuracy {accuracy:.3f}\n")
    return accuracy


if __name__ == "__main__":
    main()
