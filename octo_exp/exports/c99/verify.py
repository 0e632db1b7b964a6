"""A C file compiled and run: its logits must be the graph's, byte for byte."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.errors import FailedError, UserError

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")

_DRIVER = """\
#include "{header}"

#include <stdio.h>

static int8_t input[{upper}_INPUT_BYTES], logits[{upper}_LOGITS_BYTES];

int main(void)
{{
    while (fread(input, 1, sizeof input, stdin) == sizeof input) {{
        {name}_run(input, logits);
        if (fwrite(logits, 1, sizeof logits, stdout) != sizeof logits)
            return 1;
    }}
    return 0;
}}
"""


def compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or cc, or gcc; UserError where there is none."""
    command = shlex.split(os.environ.get("CC", ""))
    if command:
        if shutil.which(command[0]) is None:
            raise UserError(f"CC={os.environ['CC']}: there is no such compiler; set CC to a C99 compiler")
        return command
    for name in ("cc", "gcc"):
        if shutil.which(name):
            return [name]
    raise UserError("format=c compiles its file to verify it, and there is no cc or gcc; install one, or set CC")


def version_of(command: list[str]) -> str:
    """Return what a compiler says of itself, the first line."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return next(iter(done.stdout.splitlines()), " ".join(command))


def build(
    command: list[str], source: Path, header: Path, name: str, program: Path, *, flags: tuple[str, ...] = FLAGS
) -> None:
    """Compile a file with a driver that turns codes on its input into logits on its output.

    Args:
        command: see `compiler`.
        source: the C file.
        header: its header.
        name: what its identifiers begin with.
        program: the executable to write; its folder takes the driver as well.
        flags: of the compiler.

    Raises:
        UserError: what does not compile without warnings, with the first of them.

    """
    driver = program.with_name("driver.c")
    driver.write_text(_DRIVER.format(header=header.name, name=name, upper=name.upper()))
    files = [str(path.absolute()) for path in (driver, source, program)]
    call = [*command, *flags, "-I", str(header.parent.absolute()), *files[:2], "-o", files[2]]
    done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "error" in line), next(iter(lines), "no message"))
        raise FailedError(
            f"{source.name} does not verify: {command[0]} does not compile it ({said}); set CC to another"
        )


def run(program: Path, codes: Tensor, classes: int) -> Tensor:
    """codes [N, C, S, S] int8 -> codes of the logits [N, classes] int8, from the compiled file."""
    images = np.ascontiguousarray(codes.permute(0, 2, 3, 1).numpy())
    try:
        done = subprocess.run([str(program)], input=images.tobytes(), capture_output=True, check=False)
    except OSError as error:
        raise FailedError(f"{program} cannot run ({error.strerror}); set TMPDIR to a folder for programs") from error
    if done.returncode or len(done.stdout) != len(codes) * classes:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = next((line for line in said if "error" in line), f"exit code {done.returncode}")
        raise FailedError(f"the compiled C file does not run to its end ({reason}); set CC to another compiler")
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.int8).reshape(len(codes), classes)


def logits_of(source: Path, header: Path, name: str, codes: Tensor, classes: int) -> Tensor:
    """Compile a file in a folder of its own and run it; see `build` and `run`."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        build(compiler(), source, header, name, program)
        return run(program, codes, classes)
