"""`octo fetch [FOLDER] [out=FOLDER]`: the released microcontroller graphs, checked and placed.

They are taken from FOLDER, or from where their authors publish them, and placed where `model=` looks: in OCTO_MCU_DIR,
or models/ where the command is typed, unless out= says otherwise. A file whose SHA-256 differs from the known one is
refused and replaces nothing. A wrong call ends with code 2, a file that cannot be had with 1, either in one line.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from octo_exp.base.errors import FailedError
from octo_exp.base.files import expanded, make_folder_of, write_bytes
from octo_exp.cli.words import Words

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
        make_folder_of(target, remedy="give another out=FOLDER")
        write_bytes(target, data, remedy="give another out=FOLDER")
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
            f"{SOURCE}{name} cannot be had ({reason}); download the files elsewhere, and octo fetch FOLDER"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(words: Words) -> int:
    """Place the files; return the exit code."""
    source = None if words.path is None else expanded(words.path)
    usual = os.environ.get("OCTO_MCU_DIR", "models")
    place = expanded(words.values.get("out", usual))
    sys.stdout.write("\n".join(fetch(source, place)) + "\n")
    if place.absolute() != Path(usual).absolute():
        sys.stdout.write(f"export OCTO_MCU_DIR={place.absolute()}\n")
    return 0
