"""What single things contribute: held-out accuracy, or loss, won over training the head alone.

Source: On-Device Training Under 256KB Memory (NeurIPS 2022), section 3.2, where it is accuracy. After the few steps of
a probe some hundred images tell losses apart where accuracies differ by single images.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.search.kept_probes import Cache
from octo_exp.graph.train.update.search.probe import BiasProbe, Outcome, Prober, WeightProbe
from octo_exp.graph.train.update.search.problem import Space

# Passes on the names of probes as they are run: a place for a progress bar.
Progress = Callable[[Sequence[str]], Iterable[str]]
Probe = BiasProbe | WeightProbe
# name -> what of an outcome is better the larger it is
MEASURES: dict[str, Callable[[Outcome], float]] = {"accuracy": lambda o: o.accuracy, "loss": lambda o: -o.loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributions:
    """head: the head alone. bias: gain by k, the last k biases. weight: gain by (convolution, ratio)."""

    head: Outcome
    bias: dict[int, float]
    weight: dict[tuple[int, float], float]

    def bias_gains(self) -> list[float]:
        """Return the gain of the last k biases for k of 0 to the largest probed, linear between those probed."""
        gains = [0.0]
        for k, gain in sorted(self.bias.items()):
            last, k0 = gains[-1], len(gains) - 1
            gains += [last + (gain - last) * (i - k0) / (k - k0) for i in range(k0 + 1, k + 1)]
        return gains


def probes_of(space: Space, *, bias_step: int) -> list[Probe]:
    """Return the head alone, biases of every `bias_step`th k and the most that fit, and all weights that fit."""
    most = space.most_biases
    counts = sorted({*range(0, most, bias_step), most})
    weights = [WeightProbe(conv=index, ratio=ratio) for index, ratio, _ in space.weights()]
    return [*(BiasProbe(n_bias=k) for k in counts), *weights]


def contributions(
    probes: Sequence[Probe], prober: Prober, cache: Cache, progress: Progress, *, measure: str
) -> Contributions:
    """Run the probes that the cache lacks, and return what all contribute by a name of MEASURES."""
    missing = {probe.name: probe for probe in probes if probe.name not in cache}
    for name in progress(list(missing)):
        cache.add(name, prober(missing[name]))
    return gains_of({probe: cache[probe.name] for probe in probes}, measure=measure)


def gains_of(outcomes: dict[Probe, Outcome], *, measure: str) -> Contributions:
    """Return what outcomes gain over the head alone; weights that diverge may gain nan.

    Raises:
        UserError: the head or the biases diverge.

    """
    for probe, outcome in outcomes.items():
        if isinstance(probe, BiasProbe) and not math.isfinite(outcome.loss):
            raise UserError(f"training {probe.name} diverges (loss {outcome.loss}); lower update.search.probe.lr")
    value, head = MEASURES[measure], outcomes[BiasProbe(n_bias=0)]
    gains = {probe: value(outcome) - value(head) for probe, outcome in outcomes.items()}
    return Contributions(
        head=head,
        bias={probe.n_bias: gain for probe, gain in gains.items() if isinstance(probe, BiasProbe) and probe.n_bias},
        weight={(probe.conv, probe.ratio): gain for probe, gain in gains.items() if isinstance(probe, WeightProbe)},
    )
