"""What Hugging Face's BERT has no place for goes to a stage's folder and comes back."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError, DamagedFile
from bitflax.model import hf_weights, names, pretrained
from bitflax.model.leaves import Split
from bitflax.quantization import splitting
from tests.helpers import small

CONFIG = small.config(1, id2label={0: "no", 1: "yes", 2: "perhaps"})
QUERY = "encoder/layer_0/attention/query"
LEARNED = {
    f"{QUERY}/input": jnp.array([-2.5, 2.5]),
    "encoder/layer_0/attention/probs": jnp.float32(0.25),
    "pooler/input": jnp.array([0.5]),
}
PROJECTION = {
    "projection/kernel": jnp.arange(48.0).reshape(16, 3),
    "projection/bias": jnp.ones(3),
}


@functools.cache
def flat():
    rng = np.random.default_rng(0)
    shapes = names.parameter_shapes(CONFIG)
    return {
        p: jnp.asarray(rng.normal(0, 0.1, s), jnp.float32) for p, s in shapes.items()
    }


def split_params(**more):
    halves = splitting.split(trees.unflatten(flat()), bf.xtc_2bit())
    return trees.unflatten(trees.flatten(halves) | more)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_split_student_comes_back_with_all_that_it_learned(tmp_path, caplog):
    params = split_params(**LEARNED, **PROJECTION)
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    config, found = pretrained.load_pretrained(tmp_path / "p")
    assert config == CONFIG
    assert_same(found, params)
    assert not caplog.records


def test_halves_have_binaryberts_names_and_torchs_layout(tmp_path):
    params = split_params(**LEARNED)
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    extra = safetensors.numpy.load_file(tmp_path / "p" / hf_weights.EXTRA_FILE)
    kernel = trees.flatten(params)[f"{QUERY}/kernel"]
    place = "bert.encoder.layer.0.attention.self"
    for half, value in ((1, kernel.a), (2, kernel.b)):
        np.testing.assert_array_equal(extra[f"{place}.query_{half}.weight"], value.T)
    halves = {name for name in extra if name not in LEARNED}
    assert len(halves) == 2 * 7
    assert extra.keys() - halves == LEARNED.keys()
    plain = safetensors.numpy.load_file(tmp_path / "p" / "model.safetensors")
    assert f"{place}.query.bias" in plain
    assert f"{place}.query.weight" not in plain
    assert plain.keys() <= {entry.name for entry in names.parameter_entries(CONFIG)}


def test_transformers_does_not_take_half_a_student_for_all(tmp_path):
    from transformers import AutoConfig

    pretrained.save_pretrained(tmp_path / "p", CONFIG, split_params(), extra=True)
    with pytest.raises(ValueError, match="bitflax-bert"):
        AutoConfig.from_pretrained(tmp_path / "p")


def test_a_whole_student_is_an_ordinary_folder_beside_its_extras(tmp_path):
    params = trees.unflatten(flat() | PROJECTION)
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    pretrained.save_pretrained(tmp_path / "q", CONFIG, trees.unflatten(flat()))
    for name in ("config.json", "model.safetensors"):
        found, plain = (tmp_path / x / name for x in "pq")
        assert found.read_bytes() == plain.read_bytes()
    assert not (tmp_path / "q" / hf_weights.EXTRA_FILE).exists()
    # The next save into the same folder leaves no extras of another model behind.
    pretrained.save_pretrained(tmp_path / "p", CONFIG, trees.unflatten(flat()))
    assert not (tmp_path / "p" / hf_weights.EXTRA_FILE).exists()


def test_an_export_drops_the_projection_and_refuses_halves(tmp_path):
    with_projection = trees.unflatten(flat() | PROJECTION)
    pretrained.save_pretrained(tmp_path / "p", CONFIG, with_projection)
    assert_same(pretrained.load_pretrained(tmp_path / "p")[1], trees.unflatten(flat()))
    with pytest.raises(ConfigError, match="split into two halves"):
        pretrained.save_pretrained(tmp_path / "q", CONFIG, split_params())
    merged = splitting.merge(split_params())
    pretrained.save_pretrained(tmp_path / "q", CONFIG, merged)
    with pytest.raises(ConfigError, match="unknown beside the configuration"):
        pretrained.save_pretrained(
            tmp_path / "r", CONFIG, trees.unflatten(flat() | LEARNED)
        )


def test_a_narrow_student_comes_back_with_the_size_of_its_heads(tmp_path):
    narrow = small.config(1, num_attention_heads=1, head_size=8, intermediate_size=5)
    shapes = names.parameter_shapes(narrow)
    params = trees.unflatten({p: jnp.ones(shape) for p, shape in shapes.items()})
    with pytest.raises(ConfigError, match="Hugging Face's BERT has no field"):
        pretrained.save_pretrained(tmp_path / "p", narrow, params)
    pretrained.save_pretrained(tmp_path / "p", narrow, params, extra=True)
    config, found = pretrained.load_pretrained(tmp_path / "p")
    assert config.head_width == 8
    assert config == narrow
    assert_same(found, params)


@pytest.mark.parametrize("labels", [("yes", "no", "perhaps"), ("a", "b")])
def test_a_split_head_is_put_in_order_or_starts_anew(labels, tmp_path):
    head = flat()["classifier/kernel"]
    params = trees.unflatten(flat() | {"classifier/kernel": Split(head, 2 * head)})
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    _, found = pretrained.load_pretrained(tmp_path / "p", id2label=labels)
    kernel = trees.flatten(found)["classifier/kernel"]
    if len(labels) == 2:
        assert kernel.shape == (16, 2)
        return
    np.testing.assert_array_equal(kernel.a, head[:, [1, 0, 2]])
    np.testing.assert_array_equal(kernel.b, 2 * head[:, [1, 0, 2]])


def edited(path, edit):
    """Change the extra file of a folder."""
    state = safetensors.numpy.load_file(path)
    edit(state)
    safetensors.numpy.save_file(state, path)


HALF = "bert.encoder.layer.0.attention.self.query_2.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s.pop(HALF), "missing: bert.encoder.layer.0.*query.weight"),
        (
            lambda s: s.update({HALF: s[HALF][:8]}),
            r"query_2.*expected shape \(16, 16\)",
        ),
        (lambda s: s[HALF].fill(np.nan), "query_2.*finite"),
        (lambda s: s["pooler/input"].fill(np.inf), "pooler/input.*finite"),
    ],
)
def test_a_damaged_extra_file_is_refused(edit, said, tmp_path):
    params = split_params(**LEARNED)
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    edited(tmp_path / "p" / hf_weights.EXTRA_FILE, edit)
    with pytest.raises(DamagedFile, match=said):
        pretrained.load_pretrained(tmp_path / "p")


def test_an_unknown_name_in_the_extra_file_is_said(tmp_path, caplog):
    pretrained.save_pretrained(tmp_path / "p", CONFIG, split_params(), extra=True)
    edited(
        tmp_path / "p" / hf_weights.EXTRA_FILE, lambda s: s.update({"x/y": np.ones(1)})
    )
    pretrained.load_pretrained(tmp_path / "p")
    assert "not used, because unknown: x/y" in caplog.text


def test_the_config_of_a_split_student_names_another_kind(tmp_path):
    pretrained.save_pretrained(tmp_path / "p", CONFIG, split_params(), extra=True)
    fields = json.loads((tmp_path / "p" / "config.json").read_text())
    assert fields["model_type"] == "bitflax-bert"
