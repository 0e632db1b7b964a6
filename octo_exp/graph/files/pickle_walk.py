"""Walk a model's pickle without loading it: what would cost more than a model is refused before anything is made.

A pickle is a program for a stack machine with a memo. The walk runs it on values of which only kind, depth and unfolded
size are kept, and knows no other steps than those of a model's pickle. Its own cost is bounded by MAX_STEPS, and by the
pickle's length what the loaded value costs to hold, to go through or to hash.

The released models: 7,202 steps, 1,490 memo entries, 617,138 bytes (mbv2-w0.35); 5,948, 1,238, 1,023,991 (mcunet-5fps);
8,456, 1,742, 714,634 (proxyless-w0.3). Each is 9 deep, unfolds to 0.999 of its bytes, and numbers its memo 0, 1, 2, ...
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from octo_exp.base.errors import UserError

# Protocol of torch.save.
PROTOCOL = 2
# 15 times the largest released model, about 900 convolutions.
MAX_STEPS = 2**17
MAX_DEPTH = 32
# What is shared counts wherever it stands: within this many times the pickle's bytes, and as many more of a short one,
# no sharing is exponential.
MAX_UNFOLDING = 4
SHORT = 2**20
# Lead bytes in UTF-8 of what no name and no byte of an array, as latin1, has: it would take 4 bytes a character.
_BEYOND_LATIN1 = re.compile(rb"[\xc4-\xff]")


@dataclass(slots=True)
class _Value:
    """kind; how deep it is; how many bytes it has, unfolded. is_open: it can be filled, for it stands in one place."""

    kind: str
    depth: int = 0
    size: int = 1
    is_open: bool = False

    def hold(self, parts: list["_Value"]) -> None:
        """Take in parts, which are then complete."""
        for part in parts:
            part.is_open = False
            self.depth = max(self.depth, part.depth + 1)
            self.size += part.size


class _Walk:
    def __init__(self, data: bytes, names: Collection[tuple[str, str]]) -> None:
        self.data, self.names, self.at = data, names, 0
        # The last part of the stack is what follows the last mark.
        self.stack: list[list[_Value]] = [[]]
        self.memo: list[_Value] = []
        # Bytes of all arguments of calls: each call makes something of its own, which need not be held.
        self.called = 0

    def run(self) -> None:
        """Go to the end of the pickle."""
        for _ in range(MAX_STEPS):
            opcode = self.take(1)
            if opcode == b".":
                return self.finish()
            if opcode not in _STEPS:
                raise UserError(f"its pickle has a step {opcode!r}, which no model needs")
            _STEPS[opcode](self)
        raise UserError(f"its pickle takes more than {MAX_STEPS} steps, no model does")

    def finish(self) -> None:
        """One value must be left."""
        self.pop(1)
        if self.stack != [[]]:
            raise UserError("its pickle leaves values on its stack")

    def take(self, count: int) -> bytes:
        """Return the next bytes of the pickle."""
        self.skip(count)
        return self.data[self.at - count : self.at]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise UserError("its pickle ends before its end")

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        start, end = self.at, self.data.find(b"\n", self.at)
        self.skip(len(self.data) if end < 0 else end + 1 - start)
        return self.data[start:end].decode(errors="replace")

    def push(self, value: _Value) -> None:
        self.stack[-1].append(value)

    def pop(self, count: int) -> list[_Value]:
        """Take values from the stack, none from below the last mark."""
        top = self.stack[-1]
        if len(top) < count:
            raise UserError("its pickle takes more from its stack than is there")
        values = top[len(top) - count :]
        del top[len(top) - count :]
        return values

    def pop_mark(self) -> list[_Value]:
        """Take all values above the last mark, and the mark."""
        if len(self.stack) == 1:
            raise UserError("its pickle looks for a mark that is not there")
        return self.stack.pop()

    def within_budget(self, value: _Value) -> None:
        if value.depth > MAX_DEPTH:
            raise UserError(f"its values are nested more than {MAX_DEPTH} deep, no model's are")
        if max(value.size, self.called) > MAX_UNFOLDING * (len(self.data) + SHORT):
            raise UserError(f"what it shares, unfolded, is over {MAX_UNFOLDING} times its bytes, no model's is")

    def fill(self, kind: str, parts: list[_Value]) -> None:
        """Let the container on top of the stack hold the parts."""
        (target,) = self.pop(1)
        if target.kind != kind or not target.is_open:
            raise UserError(f"its pickle fills what is no new {kind}")
        target.hold(parts)
        self.within_budget(target)
        self.push(target)

    def fill_dict(self, parts: list[_Value]) -> None:
        # Anything else as a key is hashed: a nested tuple for as long as it is unfolded.
        if len(parts) % 2 or any(key.kind != "text" for key in parts[::2]):
            raise UserError("a dict in it has a key that is no text")
        self.fill("dict", parts)

    def push_tuple(self, parts: list[_Value]) -> None:
        value = _Value("tuple")
        value.hold(parts)
        self.within_budget(value)
        self.push(value)

    def check_protocol(self) -> None:
        if (protocol := self.number(1)) > PROTOCOL:
            raise UserError(
                f"its pickle is of protocol {protocol}, a model's is of {PROTOCOL}, as torch.save writes it"
            )

    def push_name(self) -> None:
        module, name = self.line(), self.line()
        if (module, name) not in self.names:
            raise UserError(f"it names {f'{module}.{name}'[:80]!r}, which no model needs; it was not run")
        self.push(_Value("name"))

    def push_text(self) -> None:
        start, length = self.at + 4, self.number(4)
        self.skip(length)
        if _BEYOND_LATIN1.search(self.data, start, self.at):
            raise UserError("it holds text that is neither a name nor an array's bytes")
        self.push(_Value("text", size=1 + length))

    def call(self) -> None:
        function, arguments = self.pop(2)
        if (function.kind, arguments.kind) != ("name", "tuple"):
            raise UserError("its pickle calls what is no name")
        self.called += arguments.size
        made = _Value("object", is_open=True)
        made.hold([arguments])
        self.within_budget(made)
        self.push(made)

    def put(self, width: int) -> None:
        """Remember the top of the stack; a memo is as long as its largest index, whatever is in it."""
        index, (value,) = self.number(width), self.pop(1)
        if index > len(self.memo):
            raise UserError(f"its memo has an entry {index} after {len(self.memo)} entries")
        self.memo[index : index + 1] = [value]
        self.push(value)

    def get(self, width: int) -> None:
        index = self.number(width)
        if index >= len(self.memo):
            raise UserError(f"it reads entry {index} of a memo of {len(self.memo)} entries")
        # Filled later, it could hold itself.
        self.memo[index].is_open = False
        self.push(self.memo[index])


def _scalar(width: int) -> Callable[[_Walk], None]:
    def step(walk: _Walk) -> None:
        walk.skip(width)
        walk.push(_Value("scalar"))

    return step


# All steps of protocol 2 that dicts, lists, tuples, texts, numbers and arrays take; all that `reader` loads.
_STEPS: dict[bytes, Callable[[_Walk], None]] = {
    b"\x80": _Walk.check_protocol,
    # None, True, False; integers of 4, 1 and 2 bytes, a float.
    **{opcode: _scalar(0) for opcode in (b"N", b"\x88", b"\x89")},
    **{opcode: _scalar(width) for opcode, width in ((b"J", 4), (b"K", 1), (b"M", 2), (b"G", 8))},
    b"X": _Walk.push_text,
    b"(": lambda walk: walk.stack.append([]),
    b"}": lambda walk: walk.push(_Value("dict", is_open=True)),
    b"]": lambda walk: walk.push(_Value("list", is_open=True)),
    b")": lambda walk: walk.push_tuple([]),
    b"\x85": lambda walk: walk.push_tuple(walk.pop(1)),
    b"\x86": lambda walk: walk.push_tuple(walk.pop(2)),
    b"\x87": lambda walk: walk.push_tuple(walk.pop(3)),
    b"t": lambda walk: walk.push_tuple(walk.pop_mark()),
    b"a": lambda walk: walk.fill("list", walk.pop(1)),
    b"e": lambda walk: walk.fill("list", walk.pop_mark()),
    b"s": lambda walk: walk.fill_dict(walk.pop(2)),
    b"u": lambda walk: walk.fill_dict(walk.pop_mark()),
    b"q": lambda walk: walk.put(1),
    b"r": lambda walk: walk.put(4),
    b"h": lambda walk: walk.get(1),
    b"j": lambda walk: walk.get(4),
    b"c": _Walk.push_name,
    b"R": _Walk.call,
    b"b": lambda walk: walk.fill("object", walk.pop(1)),
}


def check_pickle(data: bytes, names: Collection[tuple[str, str]]) -> None:
    """Raise UserError in one line where a pickle is no model's; names: the (module, name) that it may load."""
    _Walk(data, names).run()
