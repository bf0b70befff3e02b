"""What matrix products are computed in where a recipe leaves it to the device."""

from pathlib import Path
from typing import Any

import jax

from bitflax.training import parallel

_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
_CPUINFO = Path("/proc/cpuinfo")


def chosen_dtype(dtype: str | None) -> str | None:
    """Return what the operands of products are rounded to: ``"bfloat16"``, or None.

    ``"auto"`` is bfloat16 where all devices multiply it by themselves: TPUs, NVIDIA
    GPUs from compute capability 8.0 on (not T4 and V100), x86 processors with AMX or
    AVX-512 BF16. Elsewhere rounding only costs time. None and ``"float32"`` round
    nothing.

    >>> chosen_dtype("bfloat16"), chosen_dtype("float32"), chosen_dtype(None)
    ('bfloat16', None, None)
    """
    if dtype == "auto":
        devices = parallel.mesh().devices.flat
        return "bfloat16" if all(map(multiplies_bfloat16, devices)) else None
    return None if dtype == "float32" else dtype


def multiplies_bfloat16(device: jax.Device | Any) -> bool:
    """Whether a device has an instruction for products of bfloat16."""
    if device.platform == "cpu":
        try:
            flags = _CPUINFO.read_text("utf-8", "replace").split("\n\n")[0].split()
        except OSError:  # not Linux
            return False
        return any(flag in flags for flag in _CPU_FLAGS)
    if device.platform == "tpu":
        return True
    try:
        return float(getattr(device, "compute_capability", "")) >= 8.0
    except ValueError:  # AMD's have names
        return False
