"""SCALE-Sim's configuration (.cfg) as a profile, and a profile as a configuration.

Files of version 2 and of version 3 are both read, and the ones written are read by both.
"""

import configparser
import math
from dataclasses import dataclass
from pathlib import Path

from octo_exp.base.errors import UserError
from octo_exp.hw.cycles import DATAFLOWS
from octo_exp.hw.profile import HardwareProfile, number_rule
from octo_exp.hw.scalesim.texts import read_text, write_all

BANDWIDTH_MODES = ("CALC", "USER")

_ARCHITECTURE = "architecture_presets"
# Field of the profile -> key of the section above; all whole numbers.
_WHOLE_NUMBERS = {
    "rows": "ArrayHeight",
    "cols": "ArrayWidth",
    "sram_ifmap_kib": "IfmapSramSzkB",
    "sram_filter_kib": "FilterSramSzkB",
    "sram_ofmap_kib": "OfmapSramSzkB",
}
# Characters of a wrong value that are shown.
_SHOWN = 40
# Switches of version 3, in whichever section, that change what the closed form counts.
_MUST_BE_OFF = ("SparsitySupport", "IfmapCustomLayout", "FilterCustomLayout", "UseRamulatorTrace")
_CONFIG_TEXT = """\
[general]
run_name = {name}

[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {cols}
IfmapSramSzkB: {sram_ifmap_kib}
FilterSramSzkB: {sram_filter_kib}
OfmapSramSzkB: {sram_ofmap_kib}
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: {bandwidth}
Dataflow: {dataflow}
MemoryBanks: 1
ReadRequestBuffer: 32
WriteRequestBuffer: 32

[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2

[sparsity]
SparsitySupport: False
SparseRep: ellpack_block
OptimizedMapping: False
BlockSize: 8
RandomNumberGeneratorSeed: 40

[run_presets]
InterfaceBandwidth: {interface_bandwidth}
UseRamulatorTrace: False
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSimConfig:
    """What a .cfg says.

    Attributes:
        profile: the machine; its name is the file's run_name.
        interface_bandwidth: CALC, the bandwidth is what the array asks for and nothing stalls | USER, it is given.

    """

    profile: HardwareProfile
    interface_bandwidth: str

    @property
    def run_name(self) -> str:
        """Name of the folder that the reports are written to."""
        return self.profile.name


def read_config(path: str | Path) -> ScaleSimConfig:
    """Read a .cfg of version 2 or 3.

    A word is a byte and one kB 1024 of them. Of several bandwidths the first counts, as in version 2.0.2. The file has
    no clock and no vector unit: the frequency is assumed to be 1000 MHz.

    Raises:
        UserError: an unreadable file, a missing section or key, a value that is no number > 0, an unknown dataflow or
            mode, sparsity, custom layouts or Ramulator switched on.

    """
    file = _ConfigFile(Path(path))
    for key in _MUST_BE_OFF:
        file.check_off(key)
    source = f"{file.path.name}, SCALE-Sim config"
    numbers = {field: file.whole_number(field, key) for field, key in _WHOLE_NUMBERS.items()}
    given = ("dataflow", "dram_bytes_per_cycle", *numbers)
    profile = HardwareProfile(
        name=file.run_name(),
        dataflow=file.choice(_ARCHITECTURE, "Dataflow", DATAFLOWS),
        frequency_mhz=1000.0,
        dram_bytes_per_cycle=file.bandwidth(),
        vector_lanes=None,
        bf16_macs_per_pe_cycle=None,
        fp32_macs_per_pe_cycle=None,
        quoted_tops=None,
        sources={name: {"source": source, "status": "verified"} for name in given}
        | {"frequency_mhz": {"source": "assumed: SCALE-Sim's config has none", "status": "assumed"}},
        notes="",
        **numbers,
    )
    mode = file.choice("run_presets", "InterfaceBandwidth", BANDWIDTH_MODES)
    return ScaleSimConfig(profile=profile, interface_bandwidth=mode)


def write_config(profile: HardwareProfile, path: str | Path, *, interface_bandwidth: str = "CALC") -> None:
    """Write the array, the memories and the bandwidth of `profile`; SCALE-Sim has no place for the rest.

    Raises:
        UserError: a dataflow chosen for each GEMM, an unknown mode, an unwritable path; a memory, or in mode USER a
            bandwidth, that is no whole number.

    """
    if profile.dataflow not in DATAFLOWS:
        raise UserError(f"{profile.name}: SCALE-Sim knows one dataflow for all: choose one of {', '.join(DATAFLOWS)}")
    if interface_bandwidth not in BANDWIDTH_MODES:
        raise UserError(f"interface_bandwidth must be one of {', '.join(BANDWIDTH_MODES)}, got {interface_bandwidth!r}")
    numbers = {field: getattr(profile, field) for field in _WHOLE_NUMBERS}
    # SCALE-Sim reads the bandwidth in mode USER alone.
    given = {"dram_bytes_per_cycle": profile.dram_bytes_per_cycle} if interface_bandwidth == "USER" else {}
    for field, value in (numbers | given).items():
        if value != int(value):
            raise UserError(f"{profile.name}: SCALE-Sim takes whole numbers, got {field}={value}: round it first")
    text = _CONFIG_TEXT.format(
        name=profile.name,
        bandwidth=f"{profile.dram_bytes_per_cycle!r}".removesuffix(".0"),
        dataflow=profile.dataflow,
        interface_bandwidth=interface_bandwidth,
        **{field: int(value) for field, value in numbers.items()},
    )
    write_all({Path(path): text})


def _cut(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}... ({len(value)} characters)"


class _ConfigFile:
    """A parsed .cfg whose complaints name the file and the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path)
        self._lines = text.splitlines()
        self._parser = configparser.ConfigParser(interpolation=None)
        try:
            self._parser.read_string(text)
        except configparser.Error as error:
            faults = getattr(error, "errors", None)
            line = faults[0][0] if faults else getattr(error, "lineno", 1)
            raise UserError(
                f"{path}:{line}: not a config: write each [section] and each 'key: value' in it once, on its own line"
            ) from error

    def value(self, section: str, key: str) -> str:
        if not self._parser.has_section(section):
            raise UserError(f"{self.path}: section [{section}] is missing: add it, with its key {key}")
        if not self._parser.has_option(section, key):
            raise UserError(f"{self.path}: key {key} is missing: add it to section [{section}]")
        return self._parser.get(section, key).strip()

    def choice(self, section: str, key: str, known: tuple[str, ...]) -> str:
        value = self.value(section, key)
        if value not in known:
            raise self._wrong(key, f"must be one of {', '.join(known)}, got {value!r}")
        return value

    def whole_number(self, field: str, key: str) -> int:
        """The number of the profile's field."""
        value = self.value(_ARCHITECTURE, key)
        digits = value.lstrip("0")
        if not (value.isascii() and value.isdigit() and digits):
            raise self._wrong(key, f"must be a whole number greater than zero, got {_cut(value)!r}")
        high = number_rule(field)["high"]
        # Python refuses to read too many digits.
        if len(digits) > len(str(high)) or int(digits) > high:
            raise self._wrong(key, f"must be at most {high}, got {_cut(value)}")
        return int(digits)

    def bandwidth(self) -> float:
        value = self.value(_ARCHITECTURE, "Bandwidth")
        try:
            words = float(value.split(",")[0])
        except ValueError:
            words = math.nan
        if not words > 0:
            raise self._wrong("Bandwidth", f"must be a number of words a cycle greater than zero, got {_cut(value)!r}")
        rule = number_rule("dram_bytes_per_cycle")
        if not rule["low"] <= words <= rule["high"]:
            bounds = f"{rule['low']:g}..{rule['high']:g}"
            raise self._wrong("Bandwidth", f"must lie in {bounds} words a cycle, got {_cut(value)!r}")
        return words

    def run_name(self) -> str:
        value = self.value("general", "run_name")
        # It becomes a folder and a part of log keys.
        if not value.strip(".") or not all(mark.isalnum() or mark in "_.-" for mark in value):
            raise self._wrong("run_name", f"must be made of letters, digits, '_', '.' and '-', got {value!r}")
        return value

    def check_off(self, key: str) -> None:
        for section in self._parser.sections():
            value = self._parser.get(section, key, fallback="False")
            if value.strip().lower() not in ("false", "0", "no", "off"):
                raise self._wrong(key, f"is not modelled, got {value.strip()!r}: set it to False")

    def _wrong(self, key: str, complaint: str) -> UserError:
        names = (line.replace("=", ":").split(":")[0].strip().lower() for line in self._lines)
        line = next((number for number, name in enumerate(names, 1) if name == key.lower()), 1)
        return UserError(f"{self.path}:{line}: {key} {complaint}")
