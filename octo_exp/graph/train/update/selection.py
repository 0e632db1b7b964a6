"""Sparse update: which biases are trained, which weights, and of which input channels.

Convolutions are counted from the input, first 0; the head is not among them and is always trained. The last `n_bias`
train their bias, some of these their weights too, and of those a share of the input channels. Source: On-Device
Training Under 256KB Memory (NeurIPS 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.modules import McuConv2d
from octo_exp.graph.train.trained import Update
from octo_exp.graph.train.update import lists
from octo_exp.graph.train.update.channels import CRITERIA, kept_channels
from octo_exp.graph.train.update.convolutions import LayerShape, backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRule:
    """What of one convolution is trained: its bias, and the weights of `kept` input channels (depthwise: channels)."""

    train_bias: bool
    kept: int

    @property
    def train_weight(self) -> bool:
        """Whether any weight is trained; a share of no channel at all freezes the weights."""
        return self.kept > 0


FROZEN = LayerRule(train_bias=False, kept=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseUpdate:
    """The update of a network as a config.

    n_bias: the last n convolutions train their bias, or 'all'; 0 leaves only the head.
    n_weight: the last n of these train their weights, or 'all' of them; 0 is bias-only. Not read with `weight_idx`.
    weight_idx: the convolutions whose weights train, ascending, as [21, 24] or '21-24'; null to count by `n_weight`.
    ratio: fraction of the input channels whose weights train, int(ratio*C_in) of them: null (all), one number, or one a
        weight layer as [1, 0.5] or '1-0.5'. 0 leaves that layer its bias.
    criteria: which channels: magnitude+ (largest L2 norm of the int8 weights), magnitude- (smallest) or random.
    pw1_only: of the weight layers only the 1x1 convolutions with more outputs than inputs.
    seed: of the random choice.
    """

    n_bias: int | str
    n_weight: int | str | None
    weight_idx: Sequence[int] | str | None
    ratio: float | Sequence[float] | str | None
    criteria: str
    pw1_only: bool
    seed: int

    def __post_init__(self) -> None:
        """Refuse what no network could take."""
        lists.count("n_bias", self.n_bias)
        object.__setattr__(self, "weight_idx", lists.layer_indices(self.weight_idx))
        object.__setattr__(self, "ratio", lists.ratios(self.ratio))
        if self.weight_idx is None:
            lists.count("n_weight", self.n_weight)
        if self.criteria not in CRITERIA:
            raise UserError(f"update.sparse.criteria={self.criteria}; choose one of {', '.join(CRITERIA)}")
        if not isinstance(self.pw1_only, bool):
            raise UserError(f"update.sparse.pw1_only={self.pw1_only}: write true or false")

    def rules(self, shapes: Sequence[LayerShape]) -> tuple[LayerRule, ...]:
        """Return a rule for each convolution, from input to output.

        Raises:
            UserError: the network has fewer convolutions than are named, a weight layer lies before the last `n_bias`,
                or the ratios are not as many as the weight layers.

        """
        first = len(shapes) - self._n_bias(len(shapes))
        layers = self._weight_layers(shapes, first)
        kept = dict(zip(layers, self._kept(shapes, layers), strict=True))
        return tuple(
            LayerRule(train_bias=True, kept=kept.get(index, 0)) if index >= first else FROZEN
            for index in range(len(shapes))
        )

    def resolve(self, convs: Sequence[McuConv2d]) -> list[Update]:
        """Return the `update` of each convolution, the kept channels chosen from its present weights."""
        rules = self.rules([LayerShape.of(conv) for conv in convs])
        return [self._update(index, conv, rule) for index, (conv, rule) in enumerate(zip(convs, rules, strict=True))]

    def apply(self, net: McuNet) -> None:
        """Set `update` of the backbone's convolutions and `requires_grad` of every parameter; the head trains whole.

        Channels are chosen once: apply to the imported weights, before a checkpoint is loaded and before training.
        """
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        convs = backbone(net)
        for conv, update in zip(convs, self.resolve(convs), strict=True):
            conv.update = update
            conv.weight.requires_grad_(update.train_weight)
            conv.bias.requires_grad_(update.train_bias)

    def _n_bias(self, convs: int) -> int:
        wanted = _of(convs, self.n_bias)
        if wanted > convs:
            raise UserError(f"update.sparse.n_bias={wanted}: the model has {convs} convolutions; write 'all' or fewer")
        return wanted

    def _weight_layers(self, shapes: Sequence[LayerShape], first: int) -> list[int]:
        """Return the indices of the convolutions whose weights are trained."""
        layers = self._counted(len(shapes), first) if self.weight_idx is None else [int(i) for i in self.weight_idx]
        for index in layers:
            if index >= len(shapes):
                raise UserError(
                    f"update.sparse.weight_idx names convolution {index}; the model has {len(shapes)}, the last is "
                    f"{len(shapes) - 1}"
                )
        layers = [index for index in layers if shapes[index].expands or not self.pw1_only]
        if layers and layers[0] < first:
            raise UserError(
                f"update.sparse.weight_idx names convolution {layers[0]}, which trains no bias: with n_bias="
                f"{self.n_bias} the first that does is {first}; raise n_bias to {len(shapes) - layers[0]}"
            )
        return layers

    def _counted(self, convs: int, first: int) -> list[int]:
        wanted = _of(convs - first, self.n_weight)
        if wanted > convs - first:
            raise UserError(
                f"update.sparse.n_weight={wanted} is more than n_bias={self.n_bias}: a convolution that trains its "
                "weights trains its bias; lower n_weight or raise n_bias"
            )
        return list(range(convs - wanted, convs))

    def _kept(self, shapes: Sequence[LayerShape], layers: Sequence[int]) -> list[int]:
        """Return how many input channels each weight layer trains."""
        ratios = (
            self.ratio if isinstance(self.ratio, tuple) else [1 if self.ratio is None else self.ratio] * len(layers)
        )
        if len(ratios) != len(layers):
            raise UserError(
                f"update.sparse.ratio has {len(ratios)} entries for {len(layers)} weight layers "
                f"({'-'.join(map(str, layers)) or 'none'}); give one each, one number for all, or null"
            )
        for index, ratio in zip(layers, ratios, strict=True):
            if shapes[index].grouped and ratio not in (0, 1):
                raise UserError(
                    f"update.sparse.ratio={ratio:g} for convolution {index}, whose {shapes[index].groups} groups share "
                    "no input channel to choose; give it 0 or 1"
                )
        return [int(shapes[index].in_channels * ratio) for index, ratio in zip(layers, ratios, strict=True)]

    def _update(self, index: int, conv: McuConv2d, rule: LayerRule) -> Update:
        kept = None
        if 0 < rule.kept < conv.in_channels:
            depthwise = LayerShape.of(conv).depthwise
            kept = kept_channels(
                conv.weight, rule.kept, depthwise=depthwise, criteria=self.criteria, key=f"{self.seed}/{index}"
            )
        return replace(conv.update, train_weight=rule.train_weight, train_bias=rule.train_bias, kept=kept)


def _of(everything: int, wanted: int | str | None) -> int:
    return everything if wanted == "all" else int(wanted or 0)
