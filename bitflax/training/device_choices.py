"""What a run leaves to its devices: rounding of products, shapes, how XLA compiles."""

import functools
import os
from pathlib import Path
from typing import Any

import jax

from bitflax.training import parallel
from bitflax.types import BertConfig

COMPILE_FLOP = 2e15
"""What an accelerator could compute while one more shape compiles: half a minute of an
H200 with autotuning on 16 cores, at the 1.5e14 FLOP/s of its float32 steps, is 4.5e15;
a minute of a T4 at a third of its 65 TFLOP/s, on two cores, 1.3e15 (estimated)."""
SHORT_FLOP = 1e14
"""What a TPU computes while XLA optimises a program for it: for a v5e, a step of 2e11
FLOP compiles in 118 CPU seconds, or in 12 at the least effort, which its compiler
estimates to run 4 times as slowly: 36 ms more. On a host of many cores 100 CPU seconds
are some 20 of waiting, which 550 such steps lose: 1.2e14 FLOP (estimated)."""
_GPU = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
"""Products go to cuBLAS, by its own rules. Else XLA measures its ways to compute each
of some hundred products, shape by shape, which took an H200 most of half a minute."""
_SHORT_GPU = {"xla_disable_hlo_passes": "triton-softmax-rewriter"}
GPU_SHORT_FLOP = 1e16
"""What a GPU computes while XLA looks for tiles of softmax and LayerNorm in Triton, all
fusions with them included: for an H100 that is 10 of the 20 CPU seconds in which a
1-bit step compiles, and is estimated to save 2 to 5 % of a step: 3 of 67 seconds, in
which an H200's float32 steps compute 1e16 FLOP."""
STEP_FLOP, EPOCHS = 6, 3
"""A step's products a parameter and token, forward and back; epochs of a stage."""
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


def shape_tokens(parameters: int) -> int | None:
    """Return what one more length of batches costs, in token positions an epoch.

    ``COMPILE_FLOP / (6 x parameters x epochs)`` on an accelerator, where a program
    compiles for half a minute and runs for milliseconds: one to three lengths are then
    best. None on a processor: as ``bitflax.data`` measured it there.

    Args:
      parameters: of the encoder, which every token goes through.
    """
    if parallel.mesh().devices.flat[0].platform == "cpu":
        return None
    return int(COMPILE_FLOP / (STEP_FLOP * EPOCHS * parameters))


def compiler_options(flop: float) -> dict[str, Any] | None:
    """Return how XLA compiles one program of a run: as ``jax.jit`` takes it.

    On a GPU no autotuning. Where the program computes less, in all its calls, than
    would be computed while it is optimised: on a TPU the least effort, on a GPU no
    softmax in Triton. What the user has set in ``XLA_FLAGS`` or in jax's configuration
    is left alone; on a processor nothing is set.

    Args:
      flop: what a device computes in all calls of the program.
    """
    platform, found = parallel.mesh().devices.flat[0].platform, {}
    if platform == "gpu":
        flags = os.environ.get("XLA_FLAGS", "")
        wanted = _GPU | (_SHORT_GPU if flop < GPU_SHORT_FLOP else {})
        found = {name: value for name, value in wanted.items() if name not in flags}
    asked = getattr(jax.config, "jax_exec_time_optimization_effort", None)
    if platform == "tpu" and flop < SHORT_FLOP and not asked:
        found = {"exec_time_optimization_effort": -1.0}
    return {name: found[name] for name in found if _known(name, found[name])} or None


@functools.cache
def _known(name: str, value: Any) -> bool:
    """Whether this XLA has an option: their names are no part of its promises."""
    try:
        jax.jit(lambda x: x + x, compiler_options={name: value})(0.0)
    except (jax.errors.JaxRuntimeError, ValueError, AttributeError):
        return False
    return True


def forward_flop(config: BertConfig, positions: int) -> float:
    """Return the FLOP of the encoder's matrices for so many token positions.

    >>> forward_flop(BertConfig(), 1) / 2  # BERT-base
    84934656.0
    """
    width = config.hidden_size
    attention = 4 * config.num_attention_heads * config.head_width
    layer = width * (attention + 2 * config.intermediate_size)
    return 2.0 * config.num_hidden_layers * layer * positions


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
