"""Sites, and the parameters that lie at them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import apply as model_apply
from bitflax.model import sites
from bitflax.quantization.learned_activations import clipped, elastic, lsq
from tests.helpers import small

CONFIG = small.config(2)
ACT = (
    (r".*/attention/probs", lsq(4, signed=False)),
    (r".*/ffn/out/input", bf.symmetric(8)),
    (r"pooler/input", clipped(bf.symmetric(8, axis=None))),
    (r".*/ffn/in/input", elastic()),
)
LEARNED = {
    "encoder/layer_0/attention/probs": (),
    "encoder/layer_0/ffn/in/input": (),
    "encoder/layer_1/attention/probs": (),
    "encoder/layer_1/ffn/in/input": (),
    "pooler/input": (2,),
}


def params_of():
    return bf.take_layers(small.teacher_params(), range(2))


@functools.cache
def learned_params():
    return model_apply.init_act(params_of(), ACT, small.batch(4, 0), CONFIG)


def test_there_are_ten_sites_a_layer_and_the_pooler():
    found = sites.site_names(CONFIG)
    assert len(found) == len(set(found)) == 21
    assert sum(site.startswith("encoder/layer_1/") for site in found) == 10


def test_shapes_of_what_is_learned():
    assert sites.learned_shapes(ACT, CONFIG) == LEARNED
    assert sites.learned_shapes(bf.symmetric(8), CONFIG) == {}
    assert sites.learned_shapes(None, CONFIG) == {}


def test_first_parameters_lie_at_their_sites_and_nothing_else_changes():
    found, before = trees.flatten(learned_params()), trees.flatten(params_of())
    assert {p: leaf.shape for p, leaf in found.items() if p not in before} == LEARNED
    assert all(found[path] is leaf for path, leaf in before.items())
    assert all(float(jnp.min(jnp.abs(found[path]))) > 0 for path in LEARNED)


@pytest.mark.slow
def test_each_site_sees_what_the_sites_before_it_have_quantised():
    params, batch = params_of(), small.batch(4, 0)
    # With all parameters but one in place, the last is made of the very activation.
    for last in (f"encoder/layer_{i}/ffn/in/input" for i in (0, 1)):
        seen = []

        def spy(x, p, seen=seen):
            seen.append(x)
            return elastic()(x, p)

        flat = trees.flatten(learned_params())
        act = [(last, functools.partial(spy, p=flat[last])), *ACT]
        bf.bert(CONFIG, act)(learned_params(), batch)
        np.testing.assert_allclose(flat[last], elastic().init(seen[0]), rtol=1e-6)
    # The first layer's quantizers are seen in the second's first steps.
    alone = model_apply.init_act(params, [(last, elastic())], batch, CONFIG)
    assert abs(float(trees.flatten(alone)[last] - flat[last])) > 1e-4


def test_first_parameters_may_fit_quantised_weights():
    quantize = functools.partial(bf.quantize, rules=bf.xtc_1bit())
    batch = small.batch(4, 0)
    found = model_apply.init_act(params_of(), ACT, batch, CONFIG, quantize)
    expected = model_apply.init_act(quantize(params_of()), ACT, batch, CONFIG)
    for path in LEARNED:
        a, b = trees.flatten(found)[path], trees.flatten(expected)[path]
        np.testing.assert_array_equal(a, b)
    kernel = found["encoder"]["layer_0"]["ffn"]["in"]["kernel"]
    assert kernel is params_of()["encoder"]["layer_0"]["ffn"]["in"]["kernel"]
    assert small.largest_difference(found, learned_params()) > 1e-4


def test_what_was_learned_before_is_dropped():
    act = [("pooler/input", elastic())]
    found = model_apply.init_act(learned_params(), act, small.batch(4, 0), CONFIG)
    assert set(trees.flatten(found)) - set(trees.flatten(params_of())) == {
        "pooler/input"
    }
    assert found["pooler"]["input"].shape == ()
    bare = model_apply.init_act(learned_params(), None, {})
    assert set(trees.flatten(bare)) == set(trees.flatten(params_of()))


def test_a_configuration_is_needed_only_where_activations_are_looked_at():
    clips = ((".*", clipped(bf.symmetric(8, axis=None), at=1.5)),)
    found = trees.flatten(model_apply.init_act(params_of(), clips, {}))
    for site in sites.site_names(CONFIG):
        np.testing.assert_array_equal(found[site], [-1.5, 1.5])
    with pytest.raises(ValueError, match=r"layer_0/attention/probs: lsq.*give"):
        model_apply.init_act(params_of(), ACT, small.batch(4, 0))


def test_a_rule_of_no_site_is_refused():
    with pytest.raises(ValueError, match="matches no parameter path"):
        model_apply.init_act(params_of(), [("encoder/layer_2/.*", elastic())], {})


def test_a_missing_parameter_names_its_site():
    with pytest.raises(ValueError, match=r"layer_0/attention/probs: its.*init"):
        bf.bert(CONFIG, ACT)(params_of(), small.batch(4, 0))


def test_learned_parameters_get_gradients_and_train():
    apply, batch = bf.bert(CONFIG, ACT), small.batch(6, 0)
    tx = bf.make_optimizer(bf.Optim(lr=1e-3, act_lr=1e-2, warmup=0.0), 10)
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    step = jax.jit(bf.make_train_step(apply, None, loss, tx))
    state = bf.init_state(learned_params(), tx, key=jax.random.key(0))
    state, _ = step(state, None, batch)
    before, after = trees.flatten(learned_params()), trees.flatten(state.params)
    for path in LEARNED:
        moved = float(jnp.max(jnp.abs(after[path] - before[path])))
        # A clip that nothing reaches has no gradient; the pooler's is at 2.5.
        assert 0.005 < moved < 0.02 or path == "pooler/input", path
    assert after["encoder/layer_0/attention/probs"].shape == ()


def test_an_own_quantizer_that_learns_is_a_quantizer():
    class Own:
        bits, shape = 8, (1,)

        def init(self, x):
            return jnp.max(jnp.abs(x))[None]

        def __call__(self, x, p):
            return jnp.clip(x, -p[0], p[0])

    act = ((".*/ffn/in/input", Own()),)
    params = model_apply.init_act(params_of(), act, small.batch(4, 0), CONFIG)
    out = bf.bert(CONFIG, act)(params, small.batch(4, 0)).logits
    plain = bf.bert(CONFIG)(params_of(), small.batch(4, 0)).logits
    np.testing.assert_array_equal(out, plain)
