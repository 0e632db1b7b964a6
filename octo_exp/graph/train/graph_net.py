"""A microcontroller model as a network: int8 codes in float32 tensors from the input to what the head reads."""

from typing import Self

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.input import McuInput
from octo_exp.graph.module_list import ModuleList
from octo_exp.graph.spec import ModelSpec
from octo_exp.graph.train import chains
from octo_exp.graph.train.heads import FloatHead, build_head
from octo_exp.graph.train.modules import McuConv2d, build_layer
from octo_exp.graph.train.step_account import StepAccount
from octo_exp.workload import Record


class McuNet(nn.Module):
    """x [N, C, H, W] float32 of the spec's size, what the spec's input means -> logits [N, classes].

    mode: a name of `chains.MODES`. head: a name of `heads.HEADS`. quantize_gradient: gradients of the convolutions are
    rounded to int8 codes and back. `layers` run as one operation before `head`, so no hook of what is inside is called.
    """

    def __init__(
        self, spec: ModelSpec, *, num_classes: int, head: str, mode: str, quantize_gradient: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.mode, self.quantize_gradient = spec, chains.check_mode(mode), quantize_gradient
        self.input = McuInput(spec.input)
        self.layers = ModuleList(
            build_layer(layer, mode=mode, quantize_gradient=quantize_gradient) for layer in spec.layers
        )
        self.head = build_head(head, spec.classifier, num_classes, mode=mode, quantize_gradient=quantize_gradient)

    @classmethod
    def with_classifier(cls, spec: ModelSpec, *, mode: str) -> Self:
        """Return the file's whole model, its own classifier included."""
        return cls(spec, num_classes=spec.classifier.out_channels, head="original", mode=mode)

    @property
    def convs(self) -> list[McuConv2d]:
        """Return the quantised convolutions in order of execution, as the spec's; an int8 head is the last."""
        return [module for module in self.modules() if isinstance(module, McuConv2d)]

    def features(self, codes: Tensor) -> Tensor:
        """codes [N, C, H, W] -> what the head reads [N, C', H', W'], codes."""
        channels, size = self.spec.image[:2]
        if codes.dim() != 4 or codes.shape[1:] != (channels, size, size):
            raise UserError(
                f"input must be [N, {channels}, {size}, {size}], got {list(codes.shape)}; resize the images"
            )
        steps = [step for layer in self.layers for step in layer.steps]
        return chains.run_chain(codes, steps, mode=self.mode, quantize_gradient=self.quantize_gradient)

    def classify(self, codes: Tensor) -> Tensor:
        """codes [N, C, H, W] of the image -> codes of the logits [N, classes]; the head must be an int8 one."""
        if isinstance(self.head, FloatHead):
            raise UserError("a float head gives no codes; build the net with head=original or head=quantized")
        return self.head.codes(self.features(codes)).flatten(1)

    def step_account(self, batch_shape: tuple[int, ...]) -> Record:
        """Return what a training step on a batch [N, C, H, W] does; UserError where the images do not fit."""
        image = self.spec.image
        wanted = (image.channels, image.size, image.size)
        if batch_shape[1:] != wanted:
            raise UserError(
                f"the graph takes images {list(wanted)}, got {list(batch_shape[1:])}; resize the data's images"
            )
        names = {module: name for name, module in self.named_modules()}
        return StepAccount(names, batch_shape, mode=self.mode).run(self.input, self.layers, self.head)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.head(self.features(self.input(x)))
        return logits.flatten(1)
