"""The figures of docs/concepts.md, computed anew from a LeNet-5 that is trained in int8 for some steps."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.files import make_folder_of, whole_file
from octo_exp.base.homes import settle_matplotlib
from octo_exp.examples.captured import (
    Captured,
    capture,
    gaussian_range,
    product_and_term,
    ratio_range,
    relative_error,
    rounded,
)

# Readable for the color blind (Okabe and Ito): a color an operand.
X, W, G, GRAY = "#0072B2", "#E69F00", "#009E73", "#777777"
STEPS = 30
# PRC's settings in conf/quant/prc.yaml.
COEFFICIENT, Z = 0.95, 2.576
# What makes the file the same wherever matplotlib is; text stays text, which is small.
STYLE: dict[Any, Any] = {"svg.hashsalt": "octo-exp", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "legend.frameon": False}


# --- The three GEMMs: a drawing, in units of its own -----------------------------------------------------------------

# Lengths of the sides: M rows of windows, K elements a window, O outputs.
SIDES = {"M": 1.5, "K": 0.95, "O": 0.55}
# role, product, its operands as (name, color, rows, columns), scale, who takes the result.
ROLES = (
    ("output", "y = x wᵀ", ("q_x", X, "M", "K"), ("q_wᵀ", W, "K", "O"), "s_x*s_w", "y", "bias, ReLU,\nthe next layer"),
    ("grad_input", "dx = g w", ("q_g", G, "M", "O"), ("q_w", W, "O", "K"), "s_g*s_w", "dx", "the layer before"),
    ("grad_weight", "dw = gᵀ x", ("q_gᵀ", G, "O", "M"), ("q_x", X, "M", "K"), "s_g*s_x", "dw", "the optimizer"),
)


def three_gemms(figure: Any, captured: Captured) -> None:
    """One line a product: int8 codes @ int8 codes -> exact int32 -> float; a color an operand."""
    figure.set_size_inches(8.2, 5.05)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.0), ylim=(-0.35, 6.4), aspect="equal")
    axes.axis("off")
    for text, x in (("int8 codes", 2.95), ("int8 codes", 5.2), ("int32, exact", 7.05), ("float32", 9.6)):
        axes.text(x, 6.2, text, ha="center", va="center", color=GRAY)
    for line, (role, product, a, b, scale, result, taker) in enumerate(ROLES):
        y = 5.1 - 2.1 * line
        axes.text(0.15, y + 0.15, role, weight="bold", va="bottom")
        axes.text(0.15, y - 0.05, product, va="top")
        _matrix(axes, 2.95, y, a[2:], a[0], a[1])
        axes.text(4.1, y, "@", ha="center", va="center", size=12)
        _matrix(axes, 5.2, y, b[2:], b[0], b[1])
        axes.text(6.1, y, "=", ha="center", va="center", size=12)
        _matrix(axes, 7.05, y, (a[2], b[3]), "", GRAY)
        axes.text(7.95, y, f"* {scale}  →", ha="left", va="center")
        axes.text(9.3, y, f"{result}", weight="bold", va="bottom", ha="left")
        axes.text(9.3, y - 0.05, f"for {taker}", va="top", ha="left", size=8, color=GRAY)
    axes.text(0.15, -0.2, "M rows (of a convolution: windows), K inputs of a row, O outputs", color=GRAY, size=8)


def _matrix(axes: Any, x: float, y: float, sides: tuple[str, str], name: str, color: str) -> None:
    """Draw a matrix with its middle at (x, y): sides are names of its rows and columns."""
    from matplotlib.patches import Rectangle

    height, width = (SIDES[side] for side in sides)
    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fc=color, ec=color, alpha=0.25))
    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fc="none", ec=color))
    axes.text(x, y, name, ha="center", va="center", color="black")
    axes.text(x - width / 2 - 0.08, y, sides[0], ha="right", va="center", size=8, color=GRAY)
    axes.text(x, y + height / 2 + 0.05, sides[1], ha="center", va="bottom", size=8, color=GRAY)


# --- LAC: what a zero point leaves out -------------------------------------------------------------------------------


def compensation(figure: Any, captured: Captured) -> None:
    """Left: each channel's mean, exact and as the integer product alone has it. Right: the error against theta."""
    figure.set(size_inches=(8.2, 3.2), layout_engine="constrained")
    exact = captured.x @ captured.w.t()
    product, term = product_and_term(captured.x, captured.w)
    left, right = figure.subplots(1, 2)
    _channels(left, exact.mean(0), product.mean(0))
    error = {k / 40: relative_error(product - (1 + k / 40) * term, exact) for k in range(-50, 21)}
    right.semilogy(list(error), list(error.values()), color=X)
    for theta, text, place in ((-1.0, "term left out", (-1.0, 0.6)), (0.0, "rounding alone", (-0.42, 0.009))):
        right.plot([theta], [error[theta]], "o", color=W)
        text = f"θ = {theta:.0f}: {text}\nerror {error[theta]:.2g}"
        right.annotate(text, (theta, error[theta]), place, ha="center", va="center", size=8)
    right.set(xticks=(-1, -0.5, 0, 0.5), xlabel="θ, the same in every channel", ylabel="relative error of the output")


def _channels(axes: Any, exact: Tensor, product: Tensor) -> None:
    axes.bar([k - 0.2 for k in range(len(exact))], exact.tolist(), 0.4, color=X, label="exact")
    axes.bar([k + 0.2 for k in range(len(exact))], product.tolist(), 0.4, color=W, label="integer product alone")
    axes.axhline(0, color=GRAY, lw=0.6)
    axes.set(xlabel="output channel", ylabel="mean of the output")
    axes.legend()


# --- PRC: the range of a gradient ------------------------------------------------------------------------------------


def clipping(figure: Any, captured: Captured) -> None:
    """Left: a gradient's values and the ranges of two forms. Right: the error of its codes against the range."""
    figure.set(size_inches=(8.2, 3.4), layout_engine="constrained")
    left, right = figure.subplots(1, 2)
    _values(left, captured.g)
    _errors(right, captured.g)


def _values(axes: Any, g: Tensor) -> None:
    peak, values = g.abs().max(), g[g != 0]
    axes.hist((values / peak).tolist(), bins=101, range=(-1, 1), log=True, histtype="stepfilled", color=G, alpha=0.6)
    ratio, gaussian = ratio_range(g, COEFFICIENT), gaussian_range(g, Z)
    for bounds, style, name in ((ratio, "-", f"ratio, c = {COEFFICIENT}"), (gaussian, "--", f"gaussian, z = {Z}")):
        for bound, label in zip(bounds, (name, None), strict=True):
            axes.axvline(float(bound / peak), color="black", ls=style, lw=0.9, label=label)
    axes.set(xlabel="g / max|g|", ylabel="elements", xticks=(-1, -0.5, 0, 0.5, 1), ylim=(0.7, 2e4))
    axes.set_title(f"{len(values):,} elements that are not 0, of {g.numel():,}", size=9)
    axes.legend(fontsize=8, loc="upper left")


def _errors(axes: Any, g: Tensor) -> None:
    coefficients = [k / 100 for k in range(3, 101)]
    gaussian = gaussian_range(g, Z)
    place = float(torch.stack(gaussian).abs().max() / g.abs().max())
    for bits, color in ((8, X), (6, W), (4, G)):
        errors = [relative_error(rounded(g, *ratio_range(g, c), bits), g) for c in coefficients]
        axes.semilogy(coefficients, errors, color=color, label=f"{bits} bits")
        best = min(range(len(errors)), key=errors.__getitem__)
        axes.plot([coefficients[best]], [errors[best]], "o", color=color)
        axes.plot([place], [relative_error(rounded(g, *gaussian, bits), g)], "x", color="black")
    axes.axvline(COEFFICIENT, color="black", lw=0.9)
    axes.annotate(f"gaussian, z = {Z}", (place, 0.62), (place + 0.04, 0.74), va="center", size=8)
    axes.set(xlabel="range, as a share c of g's own", ylabel="relative error of the codes")
    axes.legend(fontsize=8, loc="lower left")


FIGURES: dict[str, Callable[[Any, Captured], None]] = {
    "three_gemms": three_gemms,
    "compensation": compensation,
    "clipping": clipping,
}


def save(folder: Path, captured: Captured) -> list[Path]:
    """Draw every figure as FOLDER/<name>.svg; UserError where one cannot be written."""
    settle_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    written = []
    for name, draw in FIGURES.items():
        path = folder / f"{name}.svg"
        with matplotlib.rc_context(STYLE), whole_file(path) as file:
            figure = Figure()
            draw(figure, captured)
            figure.savefig(file, format="svg", metadata={"Date": None})
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Draw them, tell where they are and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m octo_exp.examples.figures", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/figures"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training before them ({STEPS})")
    options = parser.parse_args(arguments)
    try:
        if options.steps < 1:
            raise UserError(f"--steps {options.steps}: give at least 1")
        make_folder_of(options.folder / "any")
        sys.stdout.write(f"training LeNet-5 in int8, steps: {options.steps} ...\n")
        sys.stdout.flush()
        for path in save(options.folder, capture(options.steps)):
            sys.stdout.write(f"{path}\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
