"""An update rule, what `update=` names: which parameters train, by which optimizer, and how masters are kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.convolutions import LayerShape, backbone, head_inputs
from octo_exp.graph.train.update.extra_memory import UpdateMemory, update_memory
from octo_exp.graph.train.update.optimizers import MODES, UpdateAdam, UpdateSGD, UpdateStep
from octo_exp.graph.train.update.selection import SparseUpdate

# name -> (QAS, momentum)
SGD_FORMS = {
    "sgd": (False, 0.9),
    "sgd_nomom": (False, 0.0),
    "sgd_scale": (True, 0.9),
    "sgd_scale_nomom": (True, 0.0),
}
ADAM = "adam"
OPTIMIZERS = (*SGD_FORMS, ADAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """What trains (`sparse`) and how.

    optimizer: sgd, sgd_nomom (no momentum), sgd_scale (QAS), sgd_scale_nomom, adam.
    mode: released (float masters) or strict_int8 (integers after every step).
    lr: of a step, as it stands; the published one is 0.1 for a step of 256 images.
    weight_decay: of weights, never of biases.
    budget_kb: the memory, in units of 1024 bytes, within which `sparse` is to be searched for; None: it stands.
    search: how, a `search.SearchSettings`; whoever builds the rule searches.
    """

    # Those that a rule can build; a rule of another file has its own.
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS

    sparse: SparseUpdate
    optimizer: str
    mode: str
    lr: float
    weight_decay: float
    budget_kb: float | None
    search: Any

    def __post_init__(self) -> None:
        """Refuse unknown names and negative rates."""
        if self.optimizer not in self.optimizers:
            raise UserError(f"update.optimizer={self.optimizer}; choose one of {', '.join(self.optimizers)}")
        if self.mode not in MODES:
            raise UserError(f"update.mode={self.mode}; choose one of {', '.join(MODES)}")
        for name in ("lr", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"update.{name}={getattr(self, name)} must be 0 or more")
        # Written so that nan is refused too.
        if self.budget_kb is not None and not (isinstance(self.budget_kb, int | float) and self.budget_kb > 0):
            raise UserError(f"update.budget_kb={self.budget_kb} must be a number of KB above 0, or null for no search")

    def apply(self, net: McuNet) -> None:
        """Set what trains; before a checkpoint is loaded."""
        self.sparse.apply(net)

    def memory(self, net: McuNet) -> UpdateMemory:
        """Return the account of a network under this rule."""
        shapes = [LayerShape.of(conv) for conv in backbone(net)]
        return update_memory(shapes, self.sparse.rules(shapes), head_inputs=head_inputs(net))

    def parameter_groups(self, net: McuNet) -> list[dict[str, Any]]:
        """Return the trained parameters: weights, and biases without weight decay.

        Raises:
            UserError: weight decay where single channels are frozen, which it would move.

        """
        if self.weight_decay and any(conv.update.kept is not None for conv in net.convs):
            raise UserError(
                f"update.weight_decay={self.weight_decay} would move the channels that update.sparse.ratio freezes; "
                "set update.weight_decay=0 or update.sparse.ratio=null"
            )
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        weights = [parameter for parameter in trained if parameter.dim() > 1]
        biases = [parameter for parameter in trained if parameter.dim() == 1]
        return [{"params": weights}, {"params": biases, "weight_decay": 0.0}]

    def build_optimizer(self, net: McuNet, groups: Iterable[dict[str, Any]]) -> UpdateStep:
        """Return the optimizer of `parameter_groups(net)`."""
        options: dict[str, Any] = {"convs": list(net.convs), "strict_int8": self.mode == "strict_int8"}
        options |= {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == ADAM:
            return UpdateAdam(groups, **options)
        qas, momentum = SGD_FORMS[self.optimizer]
        return UpdateSGD(groups, **options, qas=qas, momentum=momentum)
