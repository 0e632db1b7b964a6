"""Choosing under a budget as integers: what each option costs, what it gains, and what a choice of them is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.extra_memory import BITS_PER_KB, layer_memory, update_memory
from octo_exp.graph.train.update.selection import FROZEN, LayerRule, SparseUpdate

# How many of the last convolutions train their bias, then for each convolution the place of its option; 0 is no weight.
Choice = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A share of a convolution's input channels (0 of biases): bits that training them needs, and what it gains."""

    ratio: float
    bits: int
    gain: float


NO_WEIGHT = Option(ratio=0.0, bits=0, gain=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Schemes of a network's convolutions that fit: weights of `ratios` of the channels, biases of the last k."""

    shapes: tuple[LayerShape, ...]
    head_inputs: int
    ratios: tuple[float, ...]
    pw1_only: bool
    budget_kb: float

    def __post_init__(self) -> None:
        """Refuse a budget that the head alone exceeds."""
        if self.budget_bits < self.bias_bits[0]:
            # Rounded up in integers: the number that is told is enough.
            least = -(-self.bias_bits[0] * 1000 // BITS_PER_KB) / 1000
            raise UserError(
                f"update.budget_kb={self.budget_kb:g} is less than the {least:.3f} KB that the head alone needs; raise "
                "it to that at least"
            )

    @property
    def budget_bits(self) -> int:
        """The budget in bits."""
        return int(self.budget_kb * BITS_PER_KB)

    @property
    def bias_bits(self) -> list[int]:
        """Bits of the head and of the last k convolutions' biases, for k of 0 to all."""
        head = update_memory(self.shapes, [FROZEN] * len(self.shapes), head_inputs=self.head_inputs).bits
        biases = [layer_memory(shape, LayerRule(train_bias=True, kept=0)).bits for shape in reversed(self.shapes)]
        return list(accumulate(biases, initial=head))

    @property
    def most_biases(self) -> int:
        """How many of the last convolutions can train their bias."""
        return sum(bits <= self.budget_bits for bits in self.bias_bits) - 1

    def weights(self) -> list[tuple[int, float, int]]:
        """(convolution, ratio, bits) of all weights that fit beside the biases that they bring with them."""
        bias_bits, fitting = self.bias_bits, []
        for index, shape in enumerate(self.shapes):
            for ratio in self._ratios(shape):
                bits = layer_memory(shape, LayerRule(train_bias=False, kept=int(ratio * shape.in_channels))).bits
                if bias_bits[len(self.shapes) - index] + bits <= self.budget_bits:
                    fitting.append((index, ratio, bits))
        return fitting

    def _ratios(self, shape: LayerShape) -> list[float]:
        """Return the ratios that keep a channel, of a grouped convolution all or none."""
        if self.pw1_only and not shape.expands:
            return []
        return [r for r in self.ratios if int(r * shape.in_channels) and (r == 1 or not shape.grouped)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Maximise a sum of gains within `budget_bits`.

    biases: the option of the last k, one for each k that fits. weights: the options of each convolution, the first
    without cost and gain; any other needs the convolution to be among the last k.
    """

    budget_bits: int
    biases: tuple[Option, ...]
    weights: tuple[tuple[Option, ...], ...]

    @classmethod
    def of(cls, space: Space, bias_gains: Sequence[float], weight_gains: Mapping[tuple[int, float], float]) -> Self:
        """Return the problem; weights that gain nothing are no option."""
        weights = [[NO_WEIGHT] for _ in space.shapes]
        for index, ratio, bits in space.weights():
            gain = weight_gains[index, ratio]
            if gain > 0:
                weights[index].append(Option(ratio=ratio, bits=bits, gain=gain))
        pairs = zip(space.bias_bits, bias_gains, strict=False)
        biases = tuple(Option(ratio=0.0, bits=bits, gain=gain) for bits, gain in pairs if bits <= space.budget_bits)
        return cls(budget_bits=space.budget_bits, biases=biases, weights=tuple(map(tuple, weights)))

    def options(self, choice: Choice) -> list[Option]:
        """Return what is chosen."""
        weights = [options[place] for options, place in zip(self.weights, choice[1:], strict=True)]
        return [self.biases[choice[0]], *weights]

    def bits(self, choice: Choice) -> int:
        """Return what a choice needs."""
        return sum(option.bits for option in self.options(choice))

    def gain(self, choice: Choice) -> float:
        """Return what a choice is worth."""
        return sum(option.gain for option in self.options(choice))

    def scheme(self, choice: Choice, base: SparseUpdate) -> SparseUpdate:
        """Return a choice as a scheme, which channels and by which seed as in `base`."""
        chosen = [(i, option.ratio) for i, option in enumerate(self.options(choice)[1:]) if option.ratio]
        indices, ratios = zip(*chosen, strict=True) if chosen else (None, None)
        return replace(base, n_bias=choice[0], n_weight=0, weight_idx=indices, ratio=ratios)
