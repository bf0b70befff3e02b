"""What a run leaves to its devices."""

import types

import jax
import numpy as np
import pytest

from bitflax import trees
from bitflax.data import batches
from bitflax.model import init_params
from bitflax.training import device_choices, parallel
from bitflax.types import BertConfig


def device(platform, capability=None):
    more = {} if capability is None else {"compute_capability": capability}
    return types.SimpleNamespace(platform=platform, **more)


@pytest.mark.parametrize(
    ("found", "native"),
    [
        (device("tpu"), True),
        (device("gpu", "9.0"), True),
        (device("gpu", "12.0"), True),
        (device("gpu", "8.0"), True),
        (device("gpu", "7.5"), False),  # T4
        (device("gpu", "7.0"), False),  # V100
        (device("gpu", "gfx942"), False),
        (device("other"), False),
    ],
)
def test_what_an_accelerator_multiplies(found, native):
    assert device_choices.multiplies_bfloat16(found) is native


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu avx512f avx512_bf16 avx512_fp16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx512f avx2", False),
        ("fpu not_avx512_bf16", False),
    ],
)
def test_what_a_processor_multiplies(flags, native, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags : {flags}\n\nprocessor : 1\n")
    monkeypatch.setattr(device_choices, "_CPUINFO", path)
    assert device_choices.multiplies_bfloat16(jax.devices()[0]) is native
    assert device_choices.chosen_dtype("auto") == ("bfloat16" if native else None)


def test_a_processor_that_says_nothing_multiplies_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(device_choices, "_CPUINFO", tmp_path / "none")
    assert device_choices.chosen_dtype("auto") is None


def accelerator(monkeypatch):
    devices = np.array([device("gpu", "9.0")], object)
    made = types.SimpleNamespace(devices=devices)
    monkeypatch.setattr(parallel, "mesh", lambda: made)


def test_an_accelerator_has_few_lengths(monkeypatch):
    lengths = np.random.default_rng(0).gamma(4, 5, 60_000).astype(int) + 3
    on_cpu = batches.buckets_for(lengths, 128, device_choices.shape_tokens(10_600_000))
    assert on_cpu == batches.buckets_for(lengths, 128)
    accelerator(monkeypatch)
    few = batches.buckets_for(lengths, 128, device_choices.shape_tokens(10_600_000))
    assert len(few) == 1 < len(on_cpu)
    assert few[-1] == on_cpu[-1]


def test_a_large_model_on_much_text_has_more_lengths_than_one(monkeypatch):
    accelerator(monkeypatch)
    lengths = np.repeat([20, 120], 400_000)
    small, large = (
        batches.buckets_for(lengths, 128, device_choices.shape_tokens(size))
        for size in (10_600_000, 302_000_000)
    )
    assert (small, large) == ((24, 128), (24, 128))
    lengths = np.repeat([20, 120], 40_000)
    small, large = (
        batches.buckets_for(lengths, 128, device_choices.shape_tokens(size))
        for size in (10_600_000, 302_000_000)
    )
    assert (small, large) == ((128,), (24, 128))


SHORT, LONG = 1e12, 1e17


def test_xla_measures_nothing_on_a_gpu(monkeypatch):
    accelerator(monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for flop in (SHORT, LONG):
        assert device_choices.compiler_options(flop)["xla_gpu_autotune_level"] == 0


def test_a_gpu_looks_for_tiles_of_what_runs_for_long(monkeypatch):
    accelerator(monkeypatch)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    short, long = map(device_choices.compiler_options, (SHORT, LONG))
    assert short == long | {"xla_disable_hlo_passes": "triton-softmax-rewriter"}


def test_what_the_user_sets_is_left_alone(monkeypatch):
    accelerator(monkeypatch)
    flags = "--xla_gpu_autotune_level=4 --xla_disable_hlo_passes=dce"
    monkeypatch.setenv("XLA_FLAGS", flags)
    found = device_choices.compiler_options(SHORT)
    assert found == {"xla_gpu_enable_triton_gemm": False}


def test_a_tpu_optimises_what_runs_for_long(monkeypatch):
    made = types.SimpleNamespace(devices=np.array([device("tpu")], object))
    monkeypatch.setattr(parallel, "mesh", lambda: made)
    found = device_choices.compiler_options(SHORT)
    assert found == {"exec_time_optimization_effort": -1.0}
    assert device_choices.compiler_options(LONG) is None


def test_a_processor_compiles_as_ever():
    assert device_choices.compiler_options(SHORT) is None
    assert device_choices.compiler_options(LONG) is None


def test_jax_knows_the_effort_by_that_name():
    options = {"exec_time_optimization_effort": -1.0}
    double = jax.jit(lambda x: x + x, compiler_options=options)
    assert double(2.0) == 4.0


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch):
    accelerator(monkeypatch)
    others = device_choices.compiler_options(LONG)
    wanted = {"xla_gpu_no_such_option": 0, **others}
    monkeypatch.setattr(device_choices, "_GPU", wanted)
    assert device_choices.compiler_options(LONG) == others


def test_flop_are_those_of_the_matrices():
    config = BertConfig(
        hidden_size=8, num_attention_heads=2, head_size=3, intermediate_size=5,
        num_hidden_layers=2, vocab_size=9, max_position_embeddings=4,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    flat = trees.flatten(params["encoder"])
    weights = sum(x.size for path, x in flat.items() if path.endswith("kernel"))
    assert device_choices.forward_flop(config, 7) == 2 * 7 * weights
