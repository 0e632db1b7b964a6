"""Post-training quantisation: a trained float network and calibration images -> an int8 graph."""

from collections.abc import Iterable, Iterator
from itertools import chain

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.base.progress import with_progress
from octo_exp.graph.calibrate.graph_of_plan import build_spec
from octo_exp.graph.calibrate.observe import observe
from octo_exp.graph.calibrate.scales import check_method, choose
from octo_exp.graph.calibrate.traced import plan_of, trace
from octo_exp.graph.spec import ModelSpec


def quantize_network(
    net: nn.Module,
    images: Iterable[Tensor],
    *,
    activations: str,
    percentile: float,
    symmetric: bool,
    weights_per_channel: bool,
) -> ModelSpec:
    """Return the net as an int8 graph; the net itself is left as it was.

    Args:
        net: float network [N, C, S, S] -> [N, classes], plain torch; it is copied and read in eval mode.
        images: calibration batches [B, C, S, S] float32, normalised as in training; read once.
        activations: how a tensor's range is chosen: `absmax` (all that was seen), `percentile`, or `mse` (the range
            of least squared quantisation error).
        percentile: share of the values within the range, in percent, above 50 to 100; read by `percentile` alone.
        symmetric: zero points are 0 where a tensor has values of both signs and -128 where it has none below 0, so that
            ReLU's codes use all 8 bits; else whatever the range asks for.
        weights_per_channel: one weight scale an output channel, or one a layer.

    Raises:
        UserError: an operation that the graph does not have, by name and place; images that do not fit the net.
    """
    check_method(activations, percentile)
    first, batches = _peek(images)
    traced = trace(net, first)
    plan = plan_of(traced)
    observed = observe(traced, batches, plan.tensors, sample=activations != "absmax")
    if observed[plan.node].low == observed[plan.node].high == 0:
        raise UserError("calibration images hold nothing but zeros; give images of the data set")
    chosen = with_progress(list(observed.items()), "ranges")
    tensors = {name: choose(seen, activations, percentile, symmetric=symmetric) for name, seen in chosen}
    return build_spec(plan, tensors, weights_per_channel=weights_per_channel)


def _peek(images: Iterable[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """(the first batch, all batches)."""
    batches = iter(images)
    first = next(batches, None)
    if first is None:
        raise UserError("calibration needs at least one batch of images, got none")
    if not isinstance(first, Tensor) or first.dim() != 4 or not first.is_floating_point() or not len(first):
        raise UserError("calibration images must be float tensors [B, C, S, S]")
    return first, chain([first], batches)
