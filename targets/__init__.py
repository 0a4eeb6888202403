"""Targets: devices as .toml files, and the backends that build for them."""

from pathlib import Path

# Backend name -> "module:class"; nothing is imported until it is used.
BACKENDS: dict[str, str] = {
    "cpu": "tilewright.targets.cpu:CpuBackend",
    "arm-edge": "tilewright.targets.arm:ArmBackend",
    "edge-npu": "tilewright.targets.npu.backend:NpuBackend",
    "gpu": "tilewright.targets.gpu:GpuBackend",
}

# Where the descriptions of the known devices are: one .toml a target.
FOLDER = Path(__file__).parent
