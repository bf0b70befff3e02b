"""How XLA compiles a program of the model, and what it has to compute."""

import functools
import os
from typing import Any

import jax

from bitflax.types import BertConfig

TPU_EFFORT = ((3e13, -1.0), (5e14, -0.5))
"""Effort for programs that compute, in all their calls, less than so many FLOP.

A v5e's step of 8e10 FLOP compiles in 11, 22 and 80 CPU seconds at the efforts -1, -0.5
and -0.25, in more than 235 at XLA's own. Its compiler estimates 25.0, 14.4 and 5.8
million cycles: at 1.5 GHz -1 loses 7 ms against -0.5, and that 6 ms. Of 5 CPU seconds a
host of many cores waits one (estimated): 2 seconds are 300 such steps or 3e13 FLOP, and
40 seconds 7,000 or 6e14. Another step, of 2e11 FLOP, gives 3e13 and 4e14."""
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
    would be computed while it is optimised: on a TPU little effort, on a GPU no
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
    if platform == "tpu" and not asked:
        effort = next((each for most, each in TPU_EFFORT if flop < most), None)
        found = {} if effort is None else {"exec_time_optimization_effort": effort}
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
