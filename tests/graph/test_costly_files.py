"""Files made to cost memory or time are refused before they do; whatever is written is read."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.graph.files import pickle_walk
from octo_exp.graph.files.pickle_walk import check_pickle
from octo_exp.graph.files.reader import GLOBALS, read_model
from octo_exp.graph.files.writer import model_bytes, write_model
from octo_exp.graph.parts import Image, InputSpec
from octo_exp.graph.spec import ModelSpec
from tests.graph.helpers import conv_spec, same, tiny_model
from tests.graph.test_files import write

PROTOCOL_2, PROTOCOL_4 = b"\x80\x02", b"\x80\x04"


def pairs(depth: int) -> bytes:
    """A pair of one and the same pair of ... None: short to hold, 2^depth steps to hash."""
    return b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


def text(data: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(data)) + data


ENCODE = b"c_codecs\nencode\n"
DTYPE = b"cnumpy\ndtype\n(" + text(b"i1") + b"K\x00K\x01tR"
ARRAY = b"cnumpy\nndarray\n)R(K\x01%s" + DTYPE + b"\x89" + ENCODE + text(b"") + text(b"latin1") + b"\x86Rtb."

# pickle -> what its refusal says.
PICKLES: dict[str, tuple[bytes, str]] = {
    "a memo of 2^27 entries": (PROTOCOL_2 + b"Nr\x00\x00\x00\x08.", "memo has an entry 134217728 after 0"),
    "the same without protocol": (b"Nr\x00\x00\x00\x08.", "memo has an entry"),
    "a memo with a gap": (PROTOCOL_2 + b"Nq\x00q\x02.", "memo has an entry 2 after 1"),
    "a memo index in text": (b"Np134217728\n.", "a step b'p'"),
    "an entry that is not there": (b"j\x00\x00\x00\x08.", "reads entry 134217728 of a memo of 0"),
    "a short index that is not there": (b"Nq\x00h\x01.", "reads entry 1"),
    "an index in text that is not there": (b"g5\n.", "a step b'g'"),
    "numbering by itself": (PROTOCOL_4 + b"N" + b"\x94" * 10**5 + b".", "of protocol 4"),
    "numbering by itself without protocol": (b"N" + b"\x94" * 10**5 + b".", r"a step b'\x94'"),
    "40 nested pairs as a key": (PROTOCOL_2 + b"}" + pairs(40) + b"Ns.", "unfolded"),
    "40 nested pairs as keys of many": (PROTOCOL_2 + b"}(" + pairs(40) + b"Nu.", "unfolded"),
    "3 nested pairs as a key": (PROTOCOL_2 + b"}" + pairs(3) + b"Ns.", "a key that is no text"),
    "a number as a key": (b"}K\x01Ns.", "a key that is no text"),
    "40 nested pairs": (PROTOCOL_2 + pairs(40) + b".", "unfolded"),
    "40 nested pairs in a set": (PROTOCOL_4 + b"\x8f(" + pairs(40) + b"\x90.", "of protocol 4"),
    "a set without protocol": (b"\x8f(" + pairs(40) + b"\x90.", r"a step b'\x8f'"),
    "a frozen set": (b"(" + pairs(40) + b"\x91.", "unfolded"),
    "a small frozen set": (b"(" + pairs(3) + b"\x91.", r"a step b'\x91'"),
    "40 nested pairs for a call": (ENCODE + pairs(40) + b"\x85R.", "unfolded"),
    "40 nested pairs as a state": (b"cnumpy\nndarray\n)R" + pairs(40) + b"b.", "unfolded"),
    "lists that double": (b"](" * 24 + b"N" + b"".join(b"q%ch%ce" % (i, i) for i in range(24)) + b".", "unfolded"),
    "a list in itself": (b"]q\x00h\x00a.", "fills what is no new list"),
    "a list in a tuple in itself": (b"]q\x00h\x00\x85a.", "fills what is no new list"),
    "an array in itself": (b"cnumpy\nndarray\n)Rq\x00h\x00\x85b.", "fills what is no new object"),
    "a list filled behind its holder": (b"]q\x00\x85h\x00Na.", "fills what is no new list"),
    "10^5 nested lists": (b"]" * 50_000 + b"a" * 49_999 + b".", "nested more than 32"),
    "10^5 nested tuples": (b")" + b"\x85" * 10**5 + b".", "nested more than 32"),
    "10^5 nested dicts": ((b"}" + text(b"")) * 20_000 + b"N" + b"s" * 20_000 + b".", "nested more than 32"),
    "doubled values": (b"N" + b"2" * 10**5 + b".", "a step b'2'"),
    "10^6 steps": (b"N" * 10**6 + b".", "takes more than 131072 steps"),
    "10^6 marks": (b"(" * 10**6 + b".", "takes more than 131072 steps"),
    "10^6 dicts": (b"}" * 10**6 + b".", "takes more than 131072 steps"),
    "10^5 dicts in a list": (b"](" + b"}" * 10**5 + b"e.", "must be a dict of first_conv"),
    "one text as the bytes of 10^4 arrays": (
        text(bytes(2**20)) + b"q\x00" + text(b"latin1") + b"q\x01" + (ENCODE + b"h\x00h\x01\x86R") * 10**4,
        "unfolded",
    ),
    "text of four bytes a character": (text(bytes(2**24) + "\N{SNOWMAN}".encode()) + b".", "neither a name nor"),
    "a number of 255 bytes": (b"\x8a\xff" + b"\x7f" * 255 + b".", r"a step b'\x8a'"),
    "a number of 2 GiB": (b"\x8b\xff\xff\xff\x7f.", r"a step b'\x8b'"),
    "a number in text": (b"I" + b"9" * 10**6 + b"\n.", "a step b'I'"),
    "text beyond the end": (b"X\xff\xff\xff\xff.", "ends before its end"),
    "text of 8 EiB": (b"\x8d" + b"\xff" * 7 + b"\x7f.", r"a step b'\x8d'"),
    "bytes beyond the end": (b"B\xff\xff\xff\xff.", "a step b'B'"),
    "a frame beyond the end": (PROTOCOL_4 + b"\x95" + b"\xff" * 7 + b"\x7fN.", "of protocol 4"),
    "a name without end": (b"c" + b"a" * 10**6, "ends before its end"),
    "nothing on the stack": (b".", "takes more from its stack"),
    "two values at the end": (b"NN.", "leaves values"),
    "a mark at the end": (b"N(N.", "leaves values"),
    "values below a mark": (b"N(\x85.", "takes more from its stack"),
    "no mark": (b"Nt.", "a mark that is not there"),
    "a call of no name": (b"N)R.", "calls what is no name"),
    "a state of a name": (b"c_codecs\nencode\n)b.", "fills what is no new object"),
    "an array of 10^5 dimensions": (ARRAY % (b"(" + b"J\xff\xff\xff\x7f" * 10**5 + b"t"), "more than 4 dimensions"),
}


def zip_of(directory: bytes, entries: int) -> bytes:
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries % 65536, entries % 65536, len(directory), 0, 0)


def claiming(size: int) -> bytes:
    """A model's file whose directory says that data.pkl has this many bytes."""
    data = bytearray(model_bytes(tiny_model()))
    at = data.index(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<2L", size, size)
    return bytes(data)


FILES: dict[str, tuple[bytes, str]] = {
    "10^6 entries": (
        zip_of(struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 16) * 10**6, 10**6),
        "directory takes 46000000",
    ),
    "a directory beyond the file": (zip_of(b"", 0)[:12] + b"\xff\xff\xff\x7f" + bytes(6), "not a whole zip"),
    "an entry beyond the file": (claiming(2**31 - 1), "not a whole zip"),
    "no zip": (b"PK" * 10**6, "not a whole zip"),
}

CHILD = """
import os, resource, sys
from pathlib import Path
from octo_exp.base.errors import UserError
from octo_exp.graph.files.reader import read_model
assert "torch" not in sys.modules
held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000,) * 2)
# Seconds for all files together: what is exponential never ends.
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, "read", type(read_model(path)).__name__)
    except UserError as error:
        print(path.name, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc and limits of a process")
def test_no_file_takes_100_mb_or_for_ever(tmp_path, root):
    expected = {f"{i:03}": said for i, (_, said) in enumerate([*PICKLES.values(), *FILES.values()])} | {
        "tiny": "read Mod"
    }
    for i, (data, _) in enumerate(PICKLES.values()):
        write(tmp_path / f"{i:03}", None, data)
    for i, (data, _) in enumerate(FILES.values(), len(PICKLES)):
        (tmp_path / f"{i:03}").write_bytes(data)
    write_model(tiny_model(), tmp_path / "tiny")
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert done.returncode == 0, (done.stderr, list(said)[-1:])
    names = dict(zip(expected, [*PICKLES, *FILES, "tiny"], strict=True))
    assert {names[k]: said.get(k) for k, phrase in expected.items() if phrase not in said.get(k, "")} == {}
    assert len(done.stdout.splitlines()) == len(expected)


def test_a_models_steps_are_a_fifteenth_of_the_budget():
    # 8,456 of the largest released model, 60 convolutions.
    assert pickle_walk.MAX_STEPS >= 15 * 8_456


def test_a_deep_network_is_read(tmp_path):
    rng, image = np.random.default_rng(0), Image(2, 4, 0.1, 0)
    convs = []
    for _ in range(500):
        convs.append(conv_spec(rng, image, 2, 1))
        image = convs[-1].gives
    head = conv_spec(rng, image, 3, 4, padding=0)
    spec = ModelSpec(input=InputSpec(scale=0.1, zero=0), layers=tuple(convs), classifier=head)
    write_model(spec, tmp_path / "x.pkl")
    assert same(read_model(tmp_path / "x.pkl"), spec)


names = st.text(st.characters(max_codepoint=255), max_size=5)
leaves = st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats() | names
trees = st.recursive(
    leaves,
    lambda part: (
        st.lists(part, max_size=4)
        | st.dictionaries(names, part, max_size=4)
        | st.lists(part, max_size=5).map(tuple)
        | part.map(lambda value: [value, value])
    ),
)


@settings(deadline=None)
@given(trees)
def test_every_tree_of_plain_values_passes(tree):
    check_pickle(pickle.dumps(tree, protocol=2), GLOBALS)


WHOLE = zipfile.ZipFile(io.BytesIO(model_bytes(tiny_model()))).read("archive/data.pkl")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=5))
def test_a_damaged_pickle_raises_nothing_else(at, change):
    with contextlib.suppress(UserError):
        check_pickle(WHOLE[:at] + change + WHOLE[at + 1 :], GLOBALS)
