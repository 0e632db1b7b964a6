"""The published layout of a model file: first_conv, blocks of up to three convolutions, average pool, classifier.

Nested dicts <-> specs. The layout has no words for padding, which is (k - 1) // 2, for the pool, which is of the whole
image, for what the input means, which is codes, and for any other order of layers.
"""

from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.graph.files.typed import absent, array, fields_of, pair, quantization, typed, within
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, PoolSpec, ResidualSpec

MODEL = ("first_conv", "blocks", "feature_mix", "classifier")
BLOCK = ("pointwise1", "depthwise", "pointwise2", "residual", "se")
CLASSIFIER = ("in_channel", "out_channel", "params", "kernel_size", "stride", "groups")
# Its own words, and the spec's.
NAMES = {"in_channel": "in_channels", "in_shape": "in_size", "out_channel": "out_channels", "out_shape": "out_size"}
CONV = (*NAMES, "kernel_size", "stride", "groups", "depthwise", "act", "params")
PARAMS = ("weight", "bias", "x_scale", "x_zero", "y_scale", "y_zero", "w_scales")
RESIDUAL = ("in_channel", "in_shape", "params")
RESIDUAL_PARAMS = ("x_scale", "x_zero", "y_scale", "y_zero")
# Names of a block's convolutions, from input to output.
BODY = ("pointwise1", "depthwise", "pointwise2")
INPUT = InputSpec(scale=1.0, zero=0)


def _padding(kernel: tuple[int, int]) -> tuple[int, int]:
    return (kernel[0] - 1) // 2, (kernel[1] - 1) // 2


def _conv(value: Any, *, is_classifier: bool = False) -> ConvSpec:
    fields = fields_of(value, CLASSIFIER if is_classifier else CONV)
    params = fields_of(fields["params"], PARAMS)
    # The classifier sees the pooled image.
    fields = {"in_shape": 1, "out_shape": 1, "depthwise": False, "act": None} | dict(fields)
    absent(fields, "act")
    kernel, depthwise = pair(fields, "kernel_size"), typed(fields, "depthwise", bool)
    own: dict[str, Any] = {NAMES.get(word, word): typed(fields, word, int) for word in (*NAMES, "stride", "groups")}
    own |= {name: array(params, name) for name in ("weight", "bias", "w_scales")}
    return ConvSpec(kernel_size=kernel, padding=_padding(kernel), depthwise=depthwise, **own, **quantization(params))


def _residual(value: Any) -> ResidualSpec | None:
    if value is None:
        return None
    if isinstance(value, dict) and "kernel_size" in value:
        raise UserError("a convolution on the shortcut is not supported: only additions are")
    fields = fields_of(value, RESIDUAL)
    return ResidualSpec(
        channels=typed(fields, "in_channel", int),
        size=typed(fields, "in_shape", int),
        **quantization(fields_of(fields["params"], RESIDUAL_PARAMS)),
    )


def _block(value: Any) -> BlockSpec:
    fields = fields_of(value, BLOCK)
    absent(fields, "se")
    body: list[ConvSpec] = []
    for name in BODY:
        with within(name):
            if name != "pointwise1" or fields[name] is not None:
                body.append(_conv(fields[name]))
    with within("residual"):
        residual = _residual(fields["residual"])
    return BlockSpec(body=tuple(body), shortcut=(), residual=residual)


def _whole_image_pool(channels: int, size: int) -> PoolSpec:
    return PoolSpec(kind="average", channels=channels, in_size=size, out_size=1, kernel=size, stride=size, padding=0)


def from_published(tree: Any) -> ModelSpec:
    """The dict of a published file -> spec; UserError names the part that is not as it must be."""
    fields = fields_of(tree, MODEL)
    absent(fields, "feature_mix")
    blocks: list[BlockSpec] = []
    for i, value in enumerate(typed(fields, "blocks", list)):
        with within(f"block {i}"):
            blocks.append(_block(value))
    with within("first_conv"):
        first = _conv(fields["first_conv"])
    with within("classifier"):
        classifier = _conv(fields["classifier"], is_classifier=True)
    last = blocks[-1].body[-1] if blocks else first
    layers: list[Layer] = [first, *blocks, _whole_image_pool(last.out_channels, last.out_size)]
    return ModelSpec(input=INPUT, layers=tuple(layers), classifier=classifier)


def _conv_dict(conv: ConvSpec) -> dict[str, Any]:
    facts = {word: getattr(conv, NAMES.get(word, word)) for word in CONV[:-2]}
    return facts | {"act": None, "params": {name: getattr(conv, name) for name in PARAMS}}


def _residual_dict(residual: ResidualSpec | None) -> dict[str, Any] | None:
    if residual is None:
        return None
    params = {name: getattr(residual, name) for name in RESIDUAL_PARAMS}
    return {"in_channel": residual.channels, "in_shape": residual.size, "params": params}


def _block_dict(block: BlockSpec) -> dict[str, Any]:
    convs = [None] * (len(BODY) - len(block.body)) + [_conv_dict(conv) for conv in block.body]
    return dict(zip(BODY, convs, strict=True)) | {"residual": _residual_dict(block.residual), "se": None}


def to_published(spec: ModelSpec) -> dict[str, Any] | None:
    """Spec -> the dict of a file, of plain Python values and arrays; None where the layout has no words for it."""
    if len(spec.layers) < 2:
        return None
    first, *blocks, pool = spec.layers
    head = spec.classifier
    if not (isinstance(first, ConvSpec) and isinstance(pool, PoolSpec)):
        return None
    if not spec.input.is_codes or head.in_size != 1 or head.depthwise:
        return None
    if (pool.kind, pool.kernel, pool.stride) != ("average", pool.in_size, pool.in_size):
        return None
    plain = [block for block in blocks if isinstance(block, BlockSpec) and _has_words(block)]
    if len(plain) < len(blocks) or any(conv.padding != _padding(conv.kernel_size) for conv in spec.convs):
        return None
    classifier = _conv_dict(head)
    return {
        "first_conv": _conv_dict(first),
        "blocks": [_block_dict(block) for block in plain],
        "feature_mix": None,
        "classifier": {name: classifier[name] for name in CLASSIFIER},
    }


def _has_words(block: BlockSpec) -> bool:
    return not block.shortcut and len(block.body) in (2, 3)
