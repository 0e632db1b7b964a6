"""Puts the three published models in their place: octo fetch [--from FOLDER] [--to FOLDER].

They are taken from a folder, or from where their authors publish them, and placed where `model=` looks: OCTO_MCU_DIR,
or models/ where the command is typed. A file whose SHA-256 differs from the known one is refused and replaces nothing.
A wrong call ends with code 2, a file that cannot be had with 1; either says why in one line.
"""

import argparse
import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from octo_exp.base.errors import ConfigError, FailedError, UserError
from octo_exp.base.files import expanded, make_folder_of, write_bytes

# MIT licence; github.com/mit-han-lab/tiny-training.
SOURCE = "https://raw.githubusercontent.com/mit-han-lab/tiny-training/main/algorithm/assets/mcu_models/"
SHA256 = {
    "mbv2-w0.35.pkl": "310d2871c50a89af9f11928e28418729984c2e402cf68560a19b6cbb75854163",
    "mcunet-5fps.pkl": "4de2e06ed39041fc3609de806461a9e1d1f82f186927474bd9e9b0de756a0f00",
    "proxyless-w0.3.pkl": "0da06d029506a36e5a5d0822493cdae11f37ba78662f9aca25ba5b3c958cf8e1",
}
_TIMEOUT_S = 30
# Of a file that is not the one looked for.
_MOST_BYTES = 2**24


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see octo fetch --help")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="octo fetch", description=f"The models of {SOURCE}, checked and placed.")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="a folder that holds them; else the network")
    parser.add_argument("--to", metavar="FOLDER", default=os.environ.get("OCTO_MCU_DIR", "models"), help="their place")
    return parser.parse_args(argv)


def fetch(source: Path | None, place: Path) -> list[str]:
    """Place the files; return a line on each. FailedError for one that cannot be had or is another."""
    lines = []
    for name, known in SHA256.items():
        target = place / name
        if target.is_file() and _sha256(target.read_bytes()) == known:
            lines.append(f"{target}: there already")
            continue
        data = _downloaded(name) if source is None else _read(source / name)
        if _sha256(data) != known:
            origin = f"{SOURCE}{name}" if source is None else source / name
            raise FailedError(f"{origin} is another file: its SHA-256 is {_sha256(data)[:12]}..., not {known[:12]}...")
        make_folder_of(target, remedy="choose another with --to")
        write_bytes(target, data, remedy="choose another folder with --to")
        lines.append(f"{target}: {len(data):,} bytes, SHA-256 as known")
    return lines


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedError(
            f"{path} cannot be read ({error.strerror}); it is published at {SOURCE}{path.name}"
        ) from error


def _downloaded(name: str) -> bytes:
    try:
        with urllib.request.urlopen(SOURCE + name, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read(_MOST_BYTES))
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise FailedError(
            f"{SOURCE}{name} cannot be had ({reason}); download the files elsewhere and give their folder with --from"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        options = _arguments(argv)
        source = None if options.source is None else expanded(options.source)
        place = expanded(options.to)
        sys.stdout.write("\n".join(fetch(source, place)) + "\n")
        if place.absolute() != Path(os.environ.get("OCTO_MCU_DIR", "models")).absolute():
            sys.stdout.write(f"export OCTO_MCU_DIR={place.absolute()}\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
