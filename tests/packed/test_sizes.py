"""Bits and bytes from shapes against those of a packed tree."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import names
from bitflax.packed import file, packing, sizes
from bitflax.recipe import describe
from tests.recipe.test_describe import CONFIG, made


@pytest.mark.parametrize(
    "rest",
    [
        "int4",
        "int8",
        "float16",
        "float32",
        ((r"pooler/.*", "float32"), (r".*/(kernel|embedding)", "float16")),
    ],
    ids=["int4", "int8", "float16", "float32", "pairs"],
)
@pytest.mark.parametrize(
    "rules",
    [
        bf.xtc_1bit("tensor"),
        bf.xtc_1bit("channel"),
        bf.xtc_2bit("tensor"),
        ((r".*/ffn/in/kernel", functools.partial(bf.ternarize, groups=4)),),
        ((r".*/query/kernel", bf.binarize), *bf.xtc_2bit("channel")),
    ],
    ids=["1bit", "1bit-channel", "2bit", "groups", "mixed"],
)
@pytest.mark.parametrize("halved", [False, True], ids=["whole", "split"])
def test_bits_and_bytes_are_those_of_the_packed_file(rules, rest, halved):
    split = bf.xtc_2bit("channel") if halved else ()
    of = made(rules)
    student = describe.student_config(of, CONFIG)
    rng = np.random.default_rng(0)
    flat = {
        path: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for path, shape in names.parameter_shapes(student).items()
    }
    params = trees.unflatten(flat)
    params = bf.split(params, split)
    rows = file.size_report(packing.pack(params, rules, rest))
    packed = {row.name.split()[0]: (row.bits, row.values) for row in rows}
    lines = sizes.parameter_bits(rules, student, rest, split)
    assert {line.path for line in lines} == set(trees.flatten(params))
    for line in lines:
        values = trees.flatten(params)[line.path]
        assert line.shape == values.shape
        assert packed[line.path] == (line.bits, np.prod(values.shape))
    # A random scale is a float16 exactly only by chance; float32 is expected.
    size = sum(line.size for line in lines)
    assert sum(row.bytes for row in rows) == pytest.approx(size, rel=0.01)


def test_bits_that_no_file_has_are_said_all_the_same():
    of = made(bf.xtc_1bit())
    student = describe.student_config(of, CONFIG)
    rule = ((r".*/query/kernel", bf.symmetric(12, axis=0)),)
    (line, *_) = [e for e in sizes.parameter_bits(rule, student) if e.bits == 12]
    rows, cols = line.shape
    assert line.size == rows * (-(-cols * 12 // 8)) + 4 * cols
