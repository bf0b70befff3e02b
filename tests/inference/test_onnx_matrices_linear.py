"""Integer products in ONNX Runtime against NumPy's, which are exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.inference import onnx_activations, onnx_matrices
from bitflax.inference.onnx_graph import Graph
from bitflax.packed import packing
from bitflax.quantization.learned_activations import lsq
from bitflax.quantization.quantizers import asymmetric, symmetric
from tests.helpers import onnxrun

ROWS, IN, OUT = 9, 160, 24


def part(seed, ternary=False, by_column=False):
    rng = np.random.default_rng(seed)
    fields = rng.choice([-1, 0, 1] if ternary else [-1, 1], (IN, OUT)).astype(np.int8)
    scale = rng.uniform(0.01, 0.05, OUT if by_column else 1).astype(np.float32)
    return packing.read_off_codes(fields * scale)


PARTS = {
    "tensor": [part(0)],
    "columns": [part(1, by_column=True)],
    "ternary": [part(2, ternary=True)],
    "split": [part(3), part(4, by_column=True)],
}
ACTS = {
    "token": symmetric(8),
    "token, 4 bits": symmetric(4, levels="full"),
    "tensor": symmetric(8, axis=None),
    "asymmetric": asymmetric(8),
    "asymmetric tensor": asymmetric(8, axis=None, levels="full"),
    "lsq": lsq(8),
    "unsigned": lsq(8, signed=False),
    "unsigned, 4 bits": lsq(4, signed=False),
}


def activation():
    return np.random.default_rng(5).normal(size=(ROWS, IN)).astype(np.float32)


def quantised(quantizer, x):
    p = [] if parameter(quantizer) is None else [jnp.asarray(parameter(quantizer))]
    return np.asarray(quantizer(jnp.asarray(x), *p), np.float64)


def parameter(quantizer):
    return np.float32(0.02) if hasattr(quantizer, "init") else None


@pytest.mark.parametrize("level", ["all", "none"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("parts", PARTS)
def test_int8_products_are_exact_but_for_the_scales(parts, act, level):
    graph, x, quantizer = Graph(), activation(), ACTS[act]
    codes = onnx_activations.codes(
        graph,
        "site",
        quantizer,
        graph.input("x", np.float32, ["r", IN]),
        parameter(quantizer),
    )
    y = onnx_matrices.int8(graph, codes, PARTS[parts])
    y = graph.op("Add", y, np.full(OUT, 0.5, np.float32))
    found = onnxrun.run(graph, y, ["r", OUT], level=level, x=x)
    weights = sum(packing.on_host(p).astype(np.float64) for p in PARTS[parts])
    expected = quantised(quantizer, x) @ weights + 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
