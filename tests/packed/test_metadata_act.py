import json
import re
import time

import jax
import jax.numpy as jnp
import pytest

import bitflax as bf
from bitflax.errors import ConfigError
from bitflax.model import sites
from bitflax.packed import metadata
from bitflax.quantization import rules as quantization_rules
from bitflax.quantization.learned_activations import clipped, elastic
from tests.helpers import small

CONFIG = small.config(2)
LINEAR = r"encoder/layer_\d+/ffn/(in|out)/input"

ACTS = [
    None,
    bf.symmetric(bits=8),
    bf.symmetric(bits=4, axis=None, levels="full"),
    bf.symmetric(bits=4, axis=(0, -1)),
    bf.asymmetric(bits=8, axis=None, groups=4),
    (
        (LINEAR, bf.symmetric()),
        (r"encoder/.*/probs", bf.asymmetric(bits=2)),
    ),
    (),
    *(
        quantization_rules.binarybert_act(),
        quantization_rules.ternarybert_act(),
        quantization_rules.lsq_act(8),
        quantization_rules.elastic_act(1),
    ),
    clipped(bf.symmetric(bits=4, axis=(0, -1)), at=1.0),
    elastic(bits=2, signed=False),
]


@pytest.mark.parametrize("act", ACTS)
def test_activation_quantizers_come_back(act):
    assert metadata.act_from_json(metadata.act_to_json(act, CONFIG), CONFIG) == act


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"quantizer":"clipped","inner":null,"at":1.0}', "symmetric or asymmetric"),
        (
            '{"quantizer":"clipped","inner":{"quantizer":"lsq","bits":4,"signed":true},'
            '"at":1.0}',
            "symmetric or asymmetric",
        ),
        ('{"quantizer":"clipped","at":1.0}', "symmetric or asymmetric"),
        ('{"quantizer":"lsq","bits":4}', "not those of lsq"),
        ('{"quantizer":"lsq","bits":4,"signed":1}', "signed of lsq cannot be 1"),
        ('{"quantizer":"lsq","bits":1,"signed":true}', "2 to 16, not 1"),
        ('{"quantizer":"elastic","bits":"4","signed":true}', "bits of elastic"),
    ],
)
def test_a_quantizer_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=f"act: .*{message}"):
        metadata.act_from_json(text, CONFIG)


def test_a_clip_that_is_no_number_is_refused():
    text = metadata.act_to_json(clipped(bf.symmetric(8)), CONFIG)
    for at in ('"2.5"', "true", "1e999", "null"):
        with pytest.raises(ValueError, match="act"):
            metadata.act_from_json(text.replace("2.5", at), CONFIG)
    with pytest.raises(ValueError, match="at must be positive"):
        metadata.act_from_json(text.replace("2.5", "-1.0"), CONFIG)


@pytest.mark.parametrize("act", [abs, bf.binarize, (("a", abs),)])
def test_what_a_file_cannot_name_is_refused(act):
    with pytest.raises(ConfigError, match="cannot name the activation quantizer"):
        metadata.act_to_json(act, CONFIG)


def test_a_regex_that_no_reader_takes_is_not_written():
    with pytest.raises(ConfigError, match="no plain regex of sites"):
        metadata.act_to_json((("(a+)+b", bf.symmetric()),), CONFIG)


def pair(regex, **fields):
    """The JSON of one rule."""
    named = {"quantizer": "symmetric", "bits": 8, "axis": -1, "levels": "restricted"}
    return json.dumps([[regex, named | {"groups": None} | fields]])


@pytest.mark.parametrize(
    ("site", "fields", "fits"),
    [
        ("pooler/input", {"axis": -2}, True),
        ("pooler/input", {"axis": -3}, False),
        (".*/ffn/in/input", {"axis": [0, -1]}, True),
        (".*/ffn/in/input", {"axis": [2, -1]}, False),
        (".*/ffn/in/input", {"axis": [3]}, False),
        (".*/probs", {"axis": 3}, True),
        (".*/probs", {"axis": [0, 1, 2, 3]}, True),
        (".*/probs", {"axis": [0, 1, 2, 3, -1]}, False),
        (".*/probs", {"axis": 10**30}, False),
        (".*/ffn/out/input", {"groups": 32}, True),
        (".*/ffn/in/input", {"groups": 32}, False),
        (".*/ffn/in/input", {"groups": 16}, True),
        (".*/key/output", {"groups": 5}, False),
        (".*/probs", {"groups": 1}, False),
        ("pooler/input", {"groups": 0}, False),
        ("pooler/input", {"axis": [None]}, False),
    ],
)
def test_a_quantizer_fits_its_site(site, fields, fits):
    if not fits:
        with pytest.raises(ValueError, match=r"^act: "):
            metadata.act_from_json(pair(site, **fields), CONFIG)
        return
    act = metadata.act_from_json(pair(site, **fields), CONFIG)
    ids = jnp.zeros((2, 5), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    params = jax.eval_shape(lambda: bf.init_params(CONFIG, jax.random.key(0)))
    jax.eval_shape(bf.bert(CONFIG, act), params, batch)


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+b",
        ".*" * 9 + "b",
        r"(.|\w)" * 28 + "!",  # no repeat at all, and 2^28 ways
        r"(\w|.)?" * 20,
        r"\d*" * 40 + "x",
    ],
)
def test_a_regex_that_could_keep_a_reader_busy_is_refused_at_once(regex):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no plain regex|too intricate"):
        metadata.act_from_json(pair(regex), CONFIG)
    assert time.monotonic() - began < 0.5


def test_rules_without_end_are_refused():
    rules = json.loads(pair(".*/probs"))
    with pytest.raises(ValueError, match="more than 500 rules"):
        metadata.act_from_json(json.dumps(rules * 501), CONFIG)
    deep = small.config(900)
    with pytest.raises(ValueError, match="too many or too intricate"):
        metadata.act_from_json(json.dumps(rules * 500), deep)


def test_a_rule_for_each_site_is_not_too_many():
    config = small.config(24)
    act = tuple((re.escape(site), bf.symmetric()) for site in sites.site_names(config))
    assert metadata.act_from_json(metadata.act_to_json(act, config), config) == act
