"""A program and its arena -> the text of a C99 file and its header."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from octo_exp.deploy.net import IntegerAdd, IntegerConv, IntegerNet, IntegerPool
from octo_exp.export import c_kernels as kernels
from octo_exp.export.c_arena import Arena
from octo_exp.export.c_steps import Program, Step, is_depthwise
from octo_exp.mcu.spec import ConvSpec, PoolSpec, ResidualSpec

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
    program: Program
    arena: Arena

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all constant arrays."""
        convs = (step for step in self.program.steps if isinstance(step.layer, IntegerConv))
        return sum(values.nbytes for step in convs for values in _arrays(step).values())

    def header(self) -> str:
        """Return the text of the header."""
        image, upper, last = self.net.spec.image, self.name.upper(), self.net.spec.classifier
        macros = {
            "INPUT_HEIGHT": image.size,
            "INPUT_WIDTH": image.size,
            "INPUT_CHANNELS": image.channels,
            "INPUT_BYTES": self.program.sizes[0],
            "INPUT_SCALE": self.net.spec.input.scale,
            "INPUT_ZERO": self.net.spec.input.zero,
            "LOGITS_BYTES": self.program.sizes[-1],
            "LOGIT_SCALE": last.y_scale,
            "LOGIT_ZERO": last.y_zero,
            "ARENA_BYTES": self.arena.size_bytes,
        }
        lines = "\n".join(f"#define {upper}_{key} {_number(value)}" for key, value in macros.items())
        return _HEADER.format(name=self.name, upper=upper, macros=lines)

    def source(self, header: str) -> str:
        """Return the text of the C file; header: the file that it includes."""
        parts = [f'#include "{header}"\n\n#include <string.h>\n', *_functions(self.program)]
        parts += [text for step in self.program.steps for text in _constants(step)]
        bytes_macro = f"{self.name.upper()}_ARENA_BYTES"
        parts.append(f"/* What lies between the image and the logits. */\nstatic int8_t arena[{bytes_macro}];\n")
        return "\n".join([*parts, self._run()])

    def _run(self) -> str:
        calls = "".join(f"    /* {s.title} */\n    {self._call(i, s)}\n" for i, s in enumerate(self.program.steps))
        return f"{_signature(self.name)}\n{{\n{calls}}}\n"

    def _call(self, i: int, step: Step) -> str:
        function = _function(step)
        scratch = self.arena.scratch[i]
        places = [f"&{step.name}", *(self._at(tensor) for tensor in step.reads)]
        places += ["NULL" if scratch is None else f"arena + {scratch}"] if function == "conv" else []
        return f"{function}({', '.join([*places, self._at(step.writes)])});"

    def _at(self, tensor: int) -> str:
        if tensor in self.program.tensors:
            return f"arena + {self.arena.offsets[tensor]}"
        return "logits" if tensor else "input"


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
    if isinstance(step.spec, ConvSpec):
        return "depthwise" if is_depthwise(step.spec) else "conv"
    return f"{step.spec.kind}_pool" if isinstance(step.spec, PoolSpec) else "add"


def _functions(program: Program) -> Iterator[str]:
    """Yield the functions that a program calls, and what these need."""
    called = {_function(step) for step in program.steps}
    yield from (kernels.REQUANTIZE, kernels.CONV_STRUCT, kernels.WINDOW, kernels.CONV)
    if "depthwise" in called:
        yield kernels.DEPTHWISE
    if called & {"max_pool", "average_pool"}:
        yield kernels.POOL_STRUCT
    texts = {"max_pool": kernels.MAX_POOL, "average_pool": kernels.AVERAGE_POOL, "add": kernels.ADD}
    yield from (text for name, text in texts.items() if name in called)


def _constants(step: Step) -> Iterator[str]:
    """Yield a step's definitions."""
    spec = step.spec
    if isinstance(spec, ConvSpec):
        names = {key: f"{step.name}_{key}" for key in ("weight", "start", "value", "shift")}
        yield "\n".join(_array(f"{step.name}_{key}", values) for key, values in _arrays(step).items())
        yield _struct(step, "conv", _conv_fields(spec) | names)
    elif isinstance(spec, PoolSpec):
        keys = ("channels", "in_size", "out_size", "kernel", "stride", "padding")
        yield _struct(step, "pool", {key.replace("in_", ""): getattr(spec, key) for key in keys})
    else:
        yield _struct(step, "add", _add_fields(step.layer, spec))


def _conv_fields(spec: ConvSpec) -> dict[str, int]:
    return {
        "channels": spec.in_channels,
        "size": spec.in_size,
        "outputs": spec.out_channels,
        "out_size": spec.out_size,
        "rows": spec.kernel_size[0],
        "columns": spec.kernel_size[1],
        "stride": spec.stride,
        "top": spec.padding[0],
        "left": spec.padding[1],
        "groups": spec.groups,
        "x_zero": spec.x_zero,
        "y_zero": spec.y_zero,
    }


def _add_fields(layer: IntegerConv | IntegerPool | IntegerAdd, spec: ResidualSpec) -> dict[str, int]:
    assert isinstance(layer, IntegerAdd)
    return {
        "count": spec.channels * spec.size**2,
        "shortcut_zero": layer.zeros[0],
        "shortcut_value": layer.factors.value_1,
        "body_zero": layer.zeros[1],
        "body_value": layer.factors.value_2,
        "shift": layer.factors.shift,
        "y_zero": layer.zeros[2],
    }


def _struct(step: Step, kind: str, fields: dict[str, int] | dict[str, int | str]) -> str:
    body = ", ".join(f".{key} = {value}" for key, value in fields.items())
    return f"static const struct {kind} {step.name} = {{\n{_wrapped(body)}\n}};\n"


def _arrays(step: Step) -> dict[str, np.ndarray]:
    """Return a convolution's constants as its function reads them."""
    layer, spec = step.layer, step.spec
    assert isinstance(layer, IntegerConv)
    assert isinstance(spec, ConvSpec)
    weight = layer.weight.numpy().transpose(0, 2, 3, 1)
    if is_depthwise(spec):
        weight = weight[..., 0].transpose(1, 2, 0)
    return {
        "weight": weight.ravel(),
        "start": spec.bias if is_depthwise(spec) else layer.offset.numpy(),
        "value": layer.value.numpy(),
        "shift": layer.shift.numpy().astype(np.uint8),
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
