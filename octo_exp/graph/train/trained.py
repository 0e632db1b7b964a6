"""What of a convolution is trained: the contract between the graph, which computes only that, and who decides it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """Whether weights and bias get gradients; `kept`, int64: the input channels whose weights do, None for all.

    A depthwise convolution's channels are its own. The gradient of a weight that is not kept is exactly 0.
    """

    train_weight: bool = True
    train_bias: bool = True
    kept: Tensor | None = None


EVERYTHING = Update()
NOTHING = Update(train_weight=False, train_bias=False)
