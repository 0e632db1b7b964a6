"""An integer graph and its arena -> the text of a C99 file and its header."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octo_exp.exports.c99 import functions as kernels
from octo_exp.exports.c99.arena import Arena
from octo_exp.exports.c99.titles import is_depthwise, name_of, sizes_of, title_of
from octo_exp.graph.integers.integer_net import IntegerAdd, IntegerConv, IntegerNet, IntegerPart, IntegerPool
from octo_exp.graph.operations import INPUT, Step, steps_of
from octo_exp.graph.spec import ConvSpec, PoolSpec

_LINE = 116


def identifier(name: str) -> str:
    """Return a name as the beginning of C identifiers: letters, digits and single underscores, a letter first."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return words if words[:1].isalpha() else f"net_{words}".rstrip("_")


def header_file(name: str) -> str:
    """Return the name of a run's header: the run's, or where #include cannot hold it the identifier."""
    return f"{name if re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.+ -]*', name) else identifier(name)}.h"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Code:
    """What the two files are written from; name: see `identifier`."""

    name: str
    net: IntegerNet
    arena: Arena

    @property
    def input_bytes(self) -> int:
        """Return the bytes of an image."""
        return sizes_of(self.net.spec)[INPUT]

    @property
    def logits_bytes(self) -> int:
        """Return the bytes of its logits."""
        return self.net.spec.classifier.out_channels

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all constant arrays."""
        convs = (_arrays(step, module) for step, module in self.net.steps() if isinstance(module, IntegerConv))
        return sum(values.nbytes for arrays in convs for values in arrays.values())

    def header(self) -> str:
        """Return the text of the header."""
        image, upper, last = self.net.spec.image, self.name.upper(), self.net.spec.classifier
        macros = {
            "INPUT_HEIGHT": image.size,
            "INPUT_WIDTH": image.size,
            "INPUT_CHANNELS": image.channels,
            "INPUT_BYTES": self.input_bytes,
            "INPUT_SCALE": self.net.spec.input.scale,
            "INPUT_ZERO": self.net.spec.input.zero,
            "LOGITS_BYTES": self.logits_bytes,
            "LOGIT_SCALE": last.y_scale,
            "LOGIT_ZERO": last.y_zero,
            "ARENA_BYTES": self.arena.size_bytes,
        }
        lines = "\n".join(f"#define {upper}_{key} {_number(value)}" for key, value in macros.items())
        return _HEADER.format(name=self.name, upper=upper, macros=lines)

    def source(self, header: str) -> str:
        """Return the text of the C file; header: the file that it includes."""
        parts = [f'#include "{header}"\n\n#include <string.h>\n', *_functions(steps_of(self.net.spec))]
        parts += [text for step, module in self.net.steps() for text in _constants(step, module)]
        bytes_macro = f"{self.name.upper()}_ARENA_BYTES"
        parts.append(f"/* What lies between the image and the logits. */\nstatic int8_t arena[{bytes_macro}];\n")
        return "\n".join([*parts, self._run()])

    def _run(self) -> str:
        calls = "".join(f"    /* {title_of(step)} */\n    {self._call(step)}\n" for step in steps_of(self.net.spec))
        return f"{_signature(self.name)}\n{{\n{calls}}}\n"

    def _call(self, step: Step) -> str:
        function = _function(step)
        scratch = self.arena.scratch.get(step.name)
        places = [f"&{name_of(step)}", *map(self._at, step.reads)]
        places += ["NULL" if scratch is None else f"arena + {scratch}"] if function == "conv" else []
        return f"{function}({', '.join([*places, self._at(step.name)])});"

    def _at(self, tensor: str) -> str:
        if tensor in self.arena.offsets:
            return f"arena + {self.arena.offsets[tensor]}"
        return "input" if tensor == INPUT else "logits"


_HEADER = """\
/* An int8 network in integers alone; needs <stdint.h> and <string.h>, no heap and no floats.

   input: codes in NHWC order, [row][column][channel]: clamp(round(x / INPUT_SCALE) + INPUT_ZERO, -128, 127) of pixels x
   normalised as in training, halves to even. logits: one code a class, which stands for
   (code - LOGIT_ZERO) * LOGIT_SCALE; the largest is the class.

   ARENA_BYTES are static: one call at a time. Weights are constants. */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

{macros}

#ifdef __cplusplus
extern "C" {{
void {name}_run(const int8_t *input, int8_t *logits);
}}
#else
void {name}_run(const int8_t input[{upper}_INPUT_BYTES], int8_t logits[{upper}_LOGITS_BYTES]);
#endif

#endif
"""


def _signature(name: str) -> str:
    upper = name.upper()
    return f"void {name}_run(const int8_t input[{upper}_INPUT_BYTES], int8_t logits[{upper}_LOGITS_BYTES])"


def _number(value: float) -> str:
    return f"({value!r})" if value < 0 else repr(value)


def _function(step: Step) -> str:
    if isinstance(step.part, ConvSpec):
        return "depthwise" if is_depthwise(step.part) else "conv"
    return f"{step.part.kind}_pool" if isinstance(step.part, PoolSpec) else "add"


def _functions(steps: Sequence[Step]) -> Iterator[str]:
    """Yield the functions that steps call, and what these need."""
    called = {_function(step) for step in steps}
    yield from (kernels.REQUANTIZE, kernels.CONV_STRUCT, kernels.WINDOW, kernels.CONV)
    if "depthwise" in called:
        yield kernels.DEPTHWISE
    if called & {"max_pool", "average_pool"}:
        yield kernels.POOL_STRUCT
    texts = {"max_pool": kernels.MAX_POOL, "average_pool": kernels.AVERAGE_POOL, "add": kernels.ADD}
    yield from (text for name, text in texts.items() if name in called)


def _constants(step: Step, module: IntegerPart) -> Iterator[str]:
    """Yield a step's definitions."""
    name = name_of(step)
    if isinstance(module, IntegerConv):
        arrays = _arrays(step, module)
        yield "\n".join(_array(f"{name}_{key}", values) for key, values in arrays.items())
        yield _struct(name, "conv", _conv_fields(step, module) | {key: f"{name}_{key}" for key in arrays})
    elif isinstance(module, IntegerPool):
        window = {key: getattr(module, key) for key in ("kernel", "stride", "padding")}
        sizes = {"channels": step.gives.channels, "size": step.takes[0].size, "out_size": step.gives.size}
        yield _struct(name, "pool", sizes | window)
    else:
        yield _struct(name, "add", _add_fields(step, module))


def _conv_fields(step: Step, module: IntegerConv) -> dict[str, int | str]:
    (x,), y, geometry = step.takes, step.gives, module.geometry
    return {
        "channels": x.channels,
        "size": x.size,
        "outputs": y.channels,
        "out_size": y.size,
        "rows": module.weight.shape[2],
        "columns": module.weight.shape[3],
        "stride": geometry.stride[0],
        "top": geometry.padding[0],
        "left": geometry.padding[1],
        "groups": geometry.groups,
        "x_zero": x.zero,
        "y_zero": y.zero,
    }


def _add_fields(step: Step, module: IntegerAdd) -> dict[str, int | str]:
    return {
        "count": step.gives.channels * step.gives.size**2,
        "shortcut_zero": module.zeros[0],
        "shortcut_value": module.factors.value_1,
        "body_zero": module.zeros[1],
        "body_value": module.factors.value_2,
        "shift": module.factors.shift,
        "y_zero": module.zeros[2],
    }


def _struct(name: str, kind: str, fields: Mapping[str, int | str]) -> str:
    body = ", ".join(f".{key} = {value}" for key, value in fields.items())
    return f"static const struct {kind} {name} = {{\n{_wrapped(body)}\n}};\n"


def _arrays(step: Step, module: IntegerConv) -> dict[str, np.ndarray]:
    """Return a convolution's constants as its function reads them."""
    part, weight = step.part, module.weight.numpy().transpose(0, 2, 3, 1)
    assert isinstance(part, ConvSpec)
    depthwise = is_depthwise(part)
    return {
        "weight": (weight[..., 0].transpose(1, 2, 0) if depthwise else weight).ravel(),
        "start": part.bias if depthwise else module.offset.numpy(),
        "value": module.value.numpy(),
        "shift": module.shift.numpy().astype(np.uint8),
    }


def _array(name: str, values: np.ndarray) -> str:
    kind = f"{values.dtype.name}_t"
    return f"static const {kind} {name}[{values.size}] = {{\n{_wrapped(', '.join(map(str, values.tolist())))}\n}};\n"


def _wrapped(text: str) -> str:
    """Break text after commas, lines of at most _LINE characters."""
    lines, start = [], 0
    while len(text) - start > _LINE:
        end = text.rindex(",", start, start + _LINE) + 1
        lines.append(text[start:end])
        start = end + 1
    return "\n".join(f"    {line}" for line in [*lines, text[start:]])
