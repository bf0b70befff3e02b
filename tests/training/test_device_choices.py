"""What a run leaves to its devices."""

import os
import types

import jax
import numpy as np
import pytest

from bitflax.data import batches
from bitflax.training import device_choices, parallel


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


def accelerator(monkeypatch, capability="9.0", count=1, platform="gpu"):
    devices = np.array([device(platform, capability)] * count, object)
    made = types.SimpleNamespace(devices=devices)
    monkeypatch.setattr(parallel, "mesh", lambda: made)


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (2, 1), (8, 2), (96, 4)])
def test_an_accelerator_compiles_ahead(cores, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert device_choices.compile_threads() == 0
    accelerator(monkeypatch)
    assert device_choices.compile_threads() == threads
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert device_choices.compile_threads() == 0


def test_a_tpu_draws_dropout_by_its_own_generator(monkeypatch):
    key, other = jax.random.key(0), jax.random.key(0, impl="unsafe_rbg")
    accelerator(monkeypatch)
    assert device_choices.dropout_key(key) is key
    accelerator(monkeypatch, platform="tpu")
    assert device_choices.dropout_key(other) is other
    drawn = [device_choices.dropout_key(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert {str(jax.random.key_impl(each)) for each in drawn} == {"rbg"}
    first, again, second = (jax.random.bernoulli(each, 0.9, (4096,)) for each in drawn)
    np.testing.assert_array_equal(first, again)
    assert abs(first.mean() - 0.9) < 0.03
    assert 0.1 < np.mean(first != second) < 0.26


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


LOGITS, STATES = 32 * 21 * 4, 61_000_000
"""Bytes a batch of MiniLM's outputs, 32 x 96."""


@pytest.mark.parametrize(
    ("capability", "count", "size", "kept"),
    [("9.0", 1, LOGITS, True), ("9.0", 1, STATES, False), ("9.0", 8, LOGITS, True),
     ("7.5", 1, LOGITS, True), ("7.5", 1, STATES, True), ("7.5", 8, STATES, False)],
)  # fmt: skip
def test_outputs_are_kept_where_that_is_quicker(
    capability, count, size, kept, monkeypatch
):
    flop = 1.63e11
    assert device_choices.keeps_outputs(flop, 10**12)  # a processor
    accelerator(monkeypatch, capability, count)
    assert device_choices.keeps_outputs(flop, size) is kept
