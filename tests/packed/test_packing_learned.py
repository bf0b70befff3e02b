"""Packed students whose activations learn: the parameters travel with the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError, DamagedFile
from bitflax.model import apply, sites
from bitflax.packed import file
from bitflax.quantization import rules
from tests.helpers import small

CONFIG = small.config(1, hidden_act="relu")
RULES = rules.binarybert_1bit()
ACTS = {
    "clipped": rules.binarybert_act(),
    "lsq": rules.lsq_act(4),
    "elastic": rules.elastic_act(1),
}


@functools.cache
def student(name):
    params = bf.take_layers(small.teacher_params(), (1,))
    quantize = functools.partial(bf.quantize, rules=RULES)
    return apply.init_act(params, ACTS[name], small.batch(4, 0), CONFIG, quantize)


@pytest.mark.parametrize("rest", ["int8", "float16"])
@pytest.mark.parametrize("name", ACTS)
def test_what_activations_learn_comes_back_to_the_last_bit(name, rest, tmp_path):
    path = tmp_path / "model.safetensors"
    packed = bf.pack(student(name), RULES, rest)
    bf.save_packed(path, CONFIG, packed, ACTS[name])
    found = bf.read_packed(path)
    assert found.act == ACTS[name]
    before, after = trees.flatten(student(name)), trees.flatten(found.params)
    assert set(before) == set(after)
    for site in sites.site_names(CONFIG):
        np.testing.assert_array_equal(before[site], after[site])
        assert after[site].shape == before[site].shape
    assert file.version_and_sizes(path)[0] == "2"
    rows = bf.size_report(path)
    assert {row.name for row in rows} >= set(sites.site_names(CONFIG))
    assert sum(row.bytes for row in rows) == path.stat().st_size


def test_a_packed_student_of_learned_steps_says_what_the_unpacked_says(tmp_path):
    path = tmp_path / "model.safetensors"
    act, params, batch = ACTS["lsq"], student("lsq"), small.batch(4, 0)
    bf.save_packed(path, CONFIG, bf.pack(params, RULES, "float32"), act)
    found = bf.read_packed(path)
    apply = jax.jit(bf.bert(found.config, found.act))
    expected = apply(bf.quantize(params, RULES), batch).logits
    np.testing.assert_allclose(apply(found.params, batch).logits, expected, atol=1e-5)


def test_parameters_and_quantizers_belong_together(tmp_path):
    path = tmp_path / "model.safetensors"
    packed = bf.pack(student("lsq"), RULES)
    with pytest.raises(ConfigError, match="is no parameter of a BERT"):
        bf.save_packed(path, CONFIG, packed, None)
    with pytest.raises(ConfigError, match=r"expected the shape \(2,\), found \(\)"):
        bf.save_packed(path, CONFIG, packed, ACTS["clipped"])
    bare = bf.pack(bf.take_layers(small.teacher_params(), (1,)), RULES)
    with pytest.raises(ConfigError, match="is missing"):
        bf.save_packed(path, CONFIG, bare, ACTS["lsq"])
    assert not path.exists()


def test_a_step_that_is_no_number_is_seen(tmp_path):
    path = tmp_path / "model.safetensors"
    packed = bf.pack(student("elastic"), RULES)
    packed["pooler"]["input"] = jnp.array(jnp.nan)
    file.save_packed(path, CONFIG, packed, ACTS["elastic"])
    with pytest.raises(DamagedFile, match="pooler/input: holds NaN"):
        bf.read_packed(path)
