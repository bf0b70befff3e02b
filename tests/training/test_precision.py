"""What products are computed in where a recipe leaves it to the device."""

import types

import jax
import pytest

from bitflax.training import precision


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
    assert precision.multiplies_bfloat16(found) is native


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
    monkeypatch.setattr(precision, "_CPUINFO", path)
    assert precision.multiplies_bfloat16(jax.devices()[0]) is native
    assert precision.chosen_dtype("auto") == ("bfloat16" if native else None)


def test_a_processor_that_says_nothing_multiplies_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "none")
    assert precision.chosen_dtype("auto") is None
