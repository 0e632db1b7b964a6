"""The speed guard: int8 only where it is faster on this machine, measured once a layer and kept on disk.

Each layer that a scheme would quantise is timed with what is fused to it, forward and backward, at the run's batch
size: as int8, as bf16, as fp32. Where int8 is not the fastest the layer keeps the fastest float type. Then the whole
net is timed so, and as the plain float net in fp32 and bf16: where one of those is faster, nothing is quantised.
"""

import copy
import dataclasses
import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.caches import add_json, read_json
from octo_exp.nn.convert import quantize, shapes_of
from octo_exp.nn.float_block import to_bf16
from octo_exp.nn.fuse import block_of, fuse
from octo_exp.nn.select import select
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme

Progress = Callable[[Sequence[str]], Iterable[str]]
# What is timed of a layer, and of the net.
_LAYER, _NET = ("int8", "bf16", "fp32"), ("guarded", "fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the guard found. keep: layer -> bf16 | fp32 instead of int8; whole: the plain net's type, or None.

    milliseconds: layer (or "(net)") -> candidate -> forward and backward, median.
    """

    keep: Mapping[str, str]
    whole: str | None
    milliseconds: Mapping[str, Mapping[str, float]]

    def lines(self) -> list[str]:
        """Return one line a layer that does not become int8, with the reason."""
        if self.whole is not None:
            return [f"speed guard: the whole net stays {self.whole}: {_reason(self.milliseconds['(net)'])}"]
        return [
            f"speed guard: {name} stays {kept}: {_reason(self.milliseconds[name])}" for name, kept in self.keep.items()
        ]


def _reason(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(times.items(), key=lambda item: item[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Times candidates at `batch_size`; `cache` is the JSON file that keeps what was measured on this machine.

    Where the file cannot be written a line says so, and the next run measures again.
    """

    batch_size: int
    cache: Path
    device: str = "cpu"
    rounds: int = 7
    progress: Progress = list

    def verdict(self, net: nn.Module, scheme: Scheme, *, impl: str, input_shape: Sequence[int]) -> Verdict:
        """Decide for the float `net`, which is neither changed nor trained; no random number is drawn for good."""
        with torch.random.fork_rng():
            return self._verdict(net, scheme, impl=impl, input_shape=input_shape)

    def _verdict(self, net: nn.Module, scheme: Scheme, *, impl: str, input_shape: Sequence[int]) -> Verdict:
        names = select(net, scheme).quantized
        shapes = shapes_of(net, names, (self.batch_size, *input_shape), lambda inputs, output: inputs[0].shape)
        known = read_json(self.cache)
        times: dict[str, Mapping[str, float]] = {}
        keep: dict[str, str] = {}
        for name in self.progress([*names, "(net)"]):
            if name != "(net)":
                key = self._key(str(block_of(net, name)), scheme.for_layer(name), impl, shapes[name])
                if not _is_sound(known.get(key), _LAYER):
                    known[key] = self._time_layer(net, name, scheme, impl, shapes[name])
                    add_json(self.cache, {key: known[key]})
                times[name] = known[key]
                best = min(times[name], key=lambda candidate: times[name][candidate])
                keep |= {} if best == "int8" else {name: best}
        key = self._key("(net)", str(net), scheme, impl, [shapes[name] for name in names], sorted(keep.items()))
        if not _is_sound(known.get(key), _NET):
            known[key] = self._time_net(net, scheme, impl, input_shape, keep)
            add_json(self.cache, {key: known[key]})
        times["(net)"] = known[key]
        best = min(times["(net)"], key=lambda candidate: times["(net)"][candidate])
        return Verdict(keep=keep, whole=None if best == "guarded" else best, milliseconds=times)

    def _key(self, *facts: Any) -> str:
        machine = (_machine(self.device), torch.get_num_threads(), torch.__version__)
        return hashlib.blake2b(repr((machine, facts)).encode(), digest_size=16).hexdigest()

    def _time_layer(
        self, net: nn.Module, name: str, scheme: Scheme, impl: str, shape: Sequence[int]
    ) -> Mapping[str, float]:
        block = nn.Sequential(*block_of(net, name))
        alone = dataclasses.replace(scheme.for_layer(name), skip=(), overrides=None)
        candidates = {kind: copy.deepcopy(block) for kind in _LAYER}
        x = torch.randn(shape, device=self.device, requires_grad=True)
        quantize(candidates["int8"], alone, impl=impl, clock=Clock(), input_shape=tuple(shape[1:]), keep={})
        to_bf16(candidates["bf16"][0])
        for kind in ("bf16", "fp32"):
            fuse(candidates[kind], impl=impl, norm_input=scheme.norm_input)
        return self._alternate({kind: _pass(module.train(), x) for kind, module in candidates.items()})

    def _time_net(
        self, net: nn.Module, scheme: Scheme, impl: str, input_shape: Sequence[int], keep: Mapping[str, str]
    ) -> Mapping[str, float]:
        x = torch.randn((self.batch_size, *input_shape), device=self.device).contiguous(
            memory_format=torch.channels_last
        )
        guarded = copy.deepcopy(net)
        quantize(guarded, scheme, impl=impl, clock=Clock(), input_shape=tuple(input_shape), keep=keep)
        plain = copy.deepcopy(net)
        return self._alternate(
            {
                "guarded": _pass(guarded.train(), x),
                "fp32": _pass(plain.train(), x),
                "bf16": _pass(plain.train(), x, autocast=True),
            }
        )

    def _alternate(self, passes: Mapping[str, Callable[[], None]]) -> Mapping[str, float]:
        times: dict[str, list[float]] = {name: [] for name in passes}
        for index in range(2 + self.rounds):
            for name, run in passes.items():
                start = time.perf_counter()
                run()
                if self.device == "cuda":
                    torch.cuda.synchronize()
                if index >= 2:
                    times[name].append((time.perf_counter() - start) * 1e3)
        return {name: statistics.median(values) for name, values in times.items()}


def _pass(net: nn.Module, x: Tensor, *, autocast: bool = False) -> Callable[[], None]:
    def run() -> None:
        net.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = net(x)
        y.float().square().mean().backward()

    return run


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return models[0] if models else platform.processor()


def _is_sound(entry: Any, names: Collection[str]) -> bool:
    """Whether an entry of the cache is a time above 0 for each candidate."""
    return (
        isinstance(entry, Mapping)
        and set(entry) == set(names)
        and all(isinstance(ms, int | float) and ms > 0 for ms in entry.values())
    )
