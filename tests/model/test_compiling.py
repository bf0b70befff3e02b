"""How XLA compiles on which device."""

import math

import jax

from bitflax import trees
from bitflax.model import compiling, init_params
from bitflax.types import BertConfig

SHORT, LONG = 1e12, 1e17


def on(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)


def test_xla_measures_nothing_on_a_gpu(monkeypatch):
    on("gpu", monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for flop in (SHORT, LONG):
        assert compiling.compiler_options(flop)["xla_gpu_autotune_level"] == 0


def test_a_gpu_looks_for_tiles_of_what_runs_for_long(monkeypatch):
    on("gpu", monkeypatch)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    short, long = map(compiling.compiler_options, (SHORT, LONG))
    assert short == long | {"xla_disable_hlo_passes": "triton-softmax-rewriter"}


def test_what_the_user_sets_is_left_alone(monkeypatch):
    on("gpu", monkeypatch)
    flags = "--xla_gpu_autotune_level=4 --xla_disable_hlo_passes=dce"
    monkeypatch.setenv("XLA_FLAGS", flags)
    found = compiling.compiler_options(SHORT)
    assert found == {"xla_gpu_enable_triton_gemm": False}


def test_a_tpu_optimises_what_runs_for_long(monkeypatch):
    on("tpu", monkeypatch)
    for flop, effort in ((SHORT, -1.0), (1e14, -0.5)):
        found = compiling.compiler_options(flop)
        assert found == {"exec_time_optimization_effort": effort}
    assert compiling.compiler_options(LONG) is None
    assert compiling.compiler_options(math.inf) is None


def test_a_processor_compiles_as_ever():
    assert compiling.compiler_options(SHORT) is None
    assert compiling.compiler_options(LONG) is None


def test_jax_knows_the_effort_by_that_name():
    options = {"exec_time_optimization_effort": -1.0}
    double = jax.jit(lambda x: x + x, compiler_options=options)
    assert double(2.0) == 4.0


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch):
    on("gpu", monkeypatch)
    others = compiling.compiler_options(LONG)
    wanted = {"xla_gpu_no_such_option": 0, **others}
    monkeypatch.setattr(compiling, "_GPU", wanted)
    assert compiling.compiler_options(LONG) == others


def test_flop_are_those_of_the_matrices():
    config = BertConfig(
        hidden_size=8, num_attention_heads=2, head_size=3, intermediate_size=5,
        num_hidden_layers=2, vocab_size=9, max_position_embeddings=4,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    flat = trees.flatten(params["encoder"])
    weights = sum(x.size for path, x in flat.items() if path.endswith("kernel"))
    assert compiling.forward_flop(config, 7) == 2 * 7 * weights
