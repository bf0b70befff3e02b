"""How XLA compiles a program of the model, and what it has to compute."""

import functools
import os
from typing import Any

import jax

from bitflax.types import BertConfig

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


def compiler_options(flop: float) -> dict[str, Any] | None:
    """Return how XLA compiles a program on the devices here: as ``jax.jit`` takes it.

    On a GPU no autotuning. Where the program computes less, in all its calls, than
    would be computed while it is optimised: on a TPU the least effort, on a GPU no
    softmax in Triton. What the user has set in ``XLA_FLAGS`` or in jax's configuration
    is left alone; on a processor nothing is set.

    Args:
      flop: what a device computes in all calls of the program.
    """
    platform, found = jax.default_backend(), {}
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
