"""The search of a sparse update under a memory budget: what single things contribute, then the best sum that fits."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.convolutions import LayerShape, backbone, head_inputs
from octo_exp.graph.train.update.extra_memory import UpdateMemory
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.search.contribution import MEASURES, Contributions, Progress, contributions, probes_of
from octo_exp.graph.train.update.search.kept_probes import Cache, fingerprint
from octo_exp.graph.train.update.search.probe import Batch, Prober, ProbeSettings, preserved, subset
from octo_exp.graph.train.update.search.problem import Choice, Problem, Space
from octo_exp.graph.train.update.selection import SparseUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """ratios: shares of the input channels that are probed, ascending. bias_step: of the last k biases every so many k.

    probe: length and data of a probe. measure: gains are of accuracy (the paper) or of loss. solver: `Exact` or
    `Evolution` (the paper).
    """

    ratios: Sequence[float]
    bias_step: int
    probe: ProbeSettings
    measure: str
    solver: Callable[[Problem], Choice]

    def __post_init__(self) -> None:
        """Refuse ratios that repeat or are no share of anything, and a step below 1."""
        ratios = list(self.ratios)
        if ratios != sorted(set(ratios)) or not all(0 < ratio <= 1 for ratio in ratios):
            raise UserError(f"update.search.ratios={ratios} must ascend, each above 0 and at most 1")
        if self.bias_step < 1:
            raise UserError(f"update.search.bias_step={self.bias_step} must be 1 or more")
        if self.measure not in MEASURES:
            raise UserError(f"update.search.measure={self.measure}; choose one of {', '.join(MEASURES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The scheme found, the account of its memory, the sum of its gains, and what everything contributes.

    The sum is a model: gains of things that train together do not add up.
    """

    scheme: SparseUpdate
    memory: UpdateMemory
    gain: float
    contributions: Contributions

    def yaml(self, *, model: str, base: str) -> str:
        """Return the text of conf/update/x.yaml; `base` is the update whose other settings were searched with."""
        # All four, for a base may be a preset with its own.
        names = ("n_bias", "n_weight", "weight_idx", "ratio")
        sparse = "".join(f"  {name}: {json.dumps(getattr(self.scheme, name))}\n" for name in names)
        return (
            f"# Found by a search of contributions: {model} {self.memory.kb:.3f} KB.\n"
            f"defaults: [{base}, _self_]\n\nbudget_kb: null\nsparse:\n{sparse}"
        )


def search_scheme(
    net: McuNet,
    *,
    rule: UpdateRule,
    train_batches: Iterable[Batch],
    val_batches: Iterable[Batch],
    budget_kb: float,
    settings: SearchSettings,
    cache: Path,
    progress: Progress,
) -> SearchResult:
    """Return the sparse update of `net` with the largest sum of contributions within `budget_kb`.

    The network is left as it was. Only what can fit the budget is probed.

    Args:
        net: with its imported weights; its head need not be trained.
        rule: optimizer and mode of the probes; of its scheme criteria, pw1_only and seed.
        train_batches: (images [N, C, H, W] normalised, labels [N]) with classes mixed; the first images are trained on.
        val_batches: the same, of images that are held out, never of the test split.
        budget_kb: in units of 1024 bytes, by the account of `update_memory`.
        settings: of probes and solver.
        cache: folder of outcomes; a search that was cut off goes on from it.
        progress: is given the names of the probes still to be run, and passes them on.

    Raises:
        UserError: the budget is less than the head needs, there are no images, training head or biases
            diverges.

    """
    shapes, sparse, probing = tuple(LayerShape.of(conv) for conv in backbone(net)), rule.sparse, settings.probe
    space = Space(
        shapes=shapes,
        head_inputs=head_inputs(net),
        ratios=tuple(settings.ratios),
        pw1_only=sparse.pw1_only,
        budget_kb=budget_kb,
    )
    first = partial(subset, batch_size=probing.batch_size, device=next(net.parameters()).device)
    data = {
        "train": first(train_batches, name="train_images", images=probing.train_images),
        "val": first(val_batches, name="val_images", images=probing.val_images),
    }
    known = Cache(cache, fingerprint(net, rule=rule, settings=probing, **data))
    with preserved(net):
        prober = Prober(net, rule=rule, settings=probing, **data)
        probes = probes_of(space, bias_step=settings.bias_step)
        found = contributions(probes, prober, known, progress, measure=settings.measure)
    problem = Problem.of(space, found.bias_gains(), found.weight)
    choice = settings.solver(problem)
    scheme = problem.scheme(choice, sparse)
    return SearchResult(
        scheme=scheme,
        memory=replace(rule, sparse=scheme).memory(net),
        gain=problem.gain(choice),
        contributions=found,
    )
