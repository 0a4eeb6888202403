"""Arm Vela: from TOSA to commands for Ethos-U, with its estimate of what they take."""

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

from tilewright.errors import UnusableInput

_FAMILIES = {"ethos-u55": "EthosU55", "ethos-u65": "EthosU65", "ethos-u85": "EthosU85"}
_MACS = {
    "ethos-u55": ("32", "64", "128", "256"),
    "ethos-u65": ("256",),
    "ethos-u85": ("128", "256", "512", "1024", "2048"),
}
_ALL_MEMORY = 1 << 32  # the scheduler's limit where the memory mode has none


@dataclass(frozen=True)
class Device:
    """An accelerator such as "ethos-u85-256" in a system, by names of Vela's configuration."""

    accelerator: str
    system: str
    memory: str

    @classmethod
    def of(cls, settings: Mapping[str, Any], target: str) -> "Device":
        """Read a target's settings. Raises UnusableInput where one is missing or unknown."""
        try:
            device = cls(*(str(settings[k]) for k in ("accelerator", "system", "memory")))
        except KeyError as error:
            raise UnusableInput(
                f"Target {target} lacks the key {error}. Compare with targets/edge-npu.toml."
            ) from error
        config = _configuration()
        accelerators = [f"{family}-{n}" for family, macs in _MACS.items() for n in macs]
        if device.accelerator not in accelerators:
            raise UnusableInput(
                f'Target {target} asks for the accelerator "{device.accelerator}"; there are '
                f"{', '.join(accelerators)}."
            )
        for kind, name in (("System_Config", device.system), ("Memory_Mode", device.memory)):
            if f"{kind}.{name}" not in config:
                known = [s.partition(".")[2] for s in config.sections() if s.startswith(kind)]
                raise UnusableInput(
                    f'Target {target} asks for "{name}"; Vela has {", ".join(known)}.'
                )
        return device

    @property
    def wide_tables(self) -> bool:
        """Whether it has TABLE on 16-bit numbers: of these families Ethos-U85 alone."""
        return self.accelerator.startswith("ethos-u85")

    @property
    def model(self) -> str:
        """What estimates cycles, in words."""
        version = metadata.version("ethos-u-vela")
        return f"Vela {version}, {self.accelerator}, {self.system}, {self.memory}"


class VelaRefused(Exception):
    """Vela does not compile a graph; the message is what it said."""


def compile_tosa(data: bytes, device: Device, raw: bool) -> Any:
    """Return Vela's compiled model: a .tflite file, or the command stream itself if `raw`.

    Raises VelaRefused.
    """
    from ethosu import regor

    family, _, macs = device.accelerator.rpartition("-")
    system = (
        f"[architecture]\nmacs={macs}\ncores=1\n[vela]\nsystem_config_name={device.system}\n"
        f"memory_mode_name={device.memory}\n{_configuration_text()}"
    )
    try:
        return regor.compile(
            _FAMILIES[family],
            data,
            "TOSA",
            system,
            options=_options(device, raw),
            verbose=False,
        )
    except (RuntimeError, ValueError) as error:
        raise VelaRefused(" ".join(str(error).split())) from error


def _options(device: Device, raw: bool) -> str:
    """Return the options that Vela's own command line would pass on, as text."""
    from ethosu.vela import vela

    text: str = vela.get_compiler_config(
        enable_debug_db=False,
        verbose_all=False,
        verbose_high_level_command_stream=False,
        verbose_register_command_stream=False,
        optimize="Performance",
        arena_cache_size=_cache_bytes(device),
        verbose_schedule=False,
        verbose_allocation=False,
        verbose_graph=False,
        verbose_quantization=False,
        verbose_packing=False,
        verbose_performance=True,
        show_cpu_operations=False,
        output_format="raw" if raw else "tflite",
        disable_chaining=False,
        disable_fwd=False,
        disable_cascading=False,
        disable_buffering=False,
        disable_ifm_reuse=False,
        cop_format="COP1",
        separate_io_regions=False,
        cpu_tensor_alignment=16,
        tensor_allocator="HillClimb",
        softmax_int16_neg_exp_range=10.0,
    )
    return text


def _cache_bytes(device: Device) -> int:
    """Return how much fast memory the scheduler may fill."""
    section = _configuration()[f"Memory_Mode.{device.memory}"]
    return int(section.get("arena_cache_size", str(_ALL_MEMORY)))


def _configuration() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(_configuration_text())
    return parser


def _configuration_text() -> str:
    folder = resources.files("ethosu") / "config_files" / "Arm" / "vela.ini"
    return folder.read_text(encoding="utf-8")
