"""What a run leaves to its devices: rounding, shapes, what is compiled ahead."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bitflax.training import parallel

COMPILE_FLOP = 2e15
"""What an accelerator could compute while one more shape compiles: half a minute of an
H200 with autotuning on 16 cores, at the 1.5e14 FLOP/s of its float32 steps, is 4.5e15;
a minute of a T4 at a third of its 65 TFLOP/s, on two cores, 1.3e15 (estimated)."""
STEP_FLOP, EPOCHS = 6, 3
"""A step's products a parameter and token, forward and back; epochs of a stage."""
KEPT_BYTES = 3e9
"""Bytes of a teacher's kept outputs that a host gathers and sends in a second: a Xeon's
core gathered 61 MB in 10 ms (measured); to send them takes as long (estimated)."""
NATIVE_FLOP, OTHER_FLOP = 1e14, 4e12
"""What a device computes in a second, where it multiplies bfloat16 and where not: an
H200 took 13.3 ms for a step of 1.7e12 FLOP (measured); half of a T4's peak in float32
(estimated)."""
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


def has_accelerator() -> bool:
    """Whether a GPU or a TPU computes, for which programs compile so long."""
    return parallel.mesh().devices.flat[0].platform != "cpu"


def shape_tokens(parameters: int) -> int | None:
    """Return what one more length of batches costs, in token positions an epoch.

    ``COMPILE_FLOP / (6 x parameters x epochs)`` on an accelerator, where a program
    compiles for half a minute and runs for milliseconds: one to three lengths are then
    best. None on a processor: as ``bitflax.data`` measured it there.

    Args:
      parameters: of the encoder, which every token goes through.
    """
    if not has_accelerator():
        return None
    return int(COMPILE_FLOP / (STEP_FLOP * EPOCHS * parameters))


def compile_threads() -> int:
    """Return how many threads compile a stage's programs before they are called.

    One for four cores, at most four: XLA itself compiles a program on several
    (estimated). 0 is none ahead: on a processor, whose cores the steps need; with many
    processes, which save and stop at a step that all agree on: one that gave up waiting
    for a program would leave the others in a step.
    """
    if not has_accelerator() or jax.process_count() > 1:
        return 0
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def keeps_outputs(flop: float, size: int) -> bool:
    """Whether a teacher's kept outputs come quicker than the teacher runs.

    Steps are sent ahead, so that a host gathers outputs while its devices compute.
    They cost nothing where that takes no longer than the steps with the teacher in
    them would: ``size / KEPT_BYTES <= flop / (devices x a device's FLOP a second)``.
    Logits always are kept; hidden states and scores on a T4, but not where bfloat16 is
    multiplied. On a processor all are, whose own cores the teacher would need.

    Args:
      flop: of an epoch's steps, the teacher's with them.
      size: bytes of the outputs of an epoch.
    """
    devices = parallel.mesh().devices
    if devices.flat[0].platform == "cpu":
        return True
    native = all(map(multiplies_bfloat16, devices.flat))
    rate = devices.size * (NATIVE_FLOP if native else OTHER_FLOP)
    return size / KEPT_BYTES <= flop / rate


def dropout_key(key: jax.Array) -> jax.Array:
    """Return the key that dropout's masks are drawn from.

    On a TPU they come from XLA's own generator (jax's ``rbg``): a v5e's step of
    fine-tuning compiles in 23 CPU seconds in place of 40, since threefry is 20 unrolled
    rounds in the masks of six layers. A GPU would gain 1 of 17. Elsewhere the key is
    returned as it is, and so is one of another generator than jax's usual.

    Args:
      key: of a step; a threefry one has two words.

    >>> key = jax.random.key(0)
    >>> dropout_key(key) is key  # on a processor
    True
    """
    data = jax.random.key_data(key)
    if parallel.mesh().devices.flat[0].platform != "tpu" or data.shape != (2,):
        return key
    return jax.random.wrap_key_data(jnp.concatenate([data, data]), impl="rbg")


def multiplies_bfloat16(device: Any) -> bool:
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
