"""Folders of strangers: what shifts ids, has none, or takes a library's hours."""

import dataclasses
import json

import hypothesis
import jax
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st

import bitflax as bf
from bitflax.data.text import Tokenizer, Tokens
from bitflax.errors import BitflaxError, ConfigError, DamagedFile
from bitflax.model import save_pretrained
from bitflax.packed import tokenizer as packed
from bitflax.types import BertConfig
from tests.data.test_text import LINES, VOCABULARY, rows, whole, write_folder
from tests.helpers import unigram

FILES = {"vocab.txt": VOCABULARY}


def changed(**parts):
    return {"tokenizer.json": whole() | parts}


def with_vocab(**ids):
    found = whole()
    found["model"]["vocab"] |= ids
    return {"tokenizer.json": found}


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
SPLIT = REGEX | {"invert": False}
HUGE = 4_000_000_000
PLAIN = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
DECODER = {"added_tokens_decoder": {str(HUGE): {"content": "<ent>"}}}
REFUSED = {
    "blank line": ({"vocab.txt": VOCABULARY.replace("un\n", "un\n\n")}, "blank"),
    "duplicate": ({"vocab.txt": VOCABULARY.replace("un\n", "un\nthe\n")}, "'the' in"),
    "no [CLS]": (changed(post_processor=None) | PLAIN, r"no \[CLS\]"),
    "two of one id": (with_vocab(the=7), "two tokens have one id"),
    "an id of 4e9": (with_vocab(huge=HUGE), "the id 4000000000"),
    "an id that is none": (with_vocab(huge=-1), "the id -1"),
    "added, an id of 4e9": (FILES | {"added_tokens.json": {"<e>": HUGE}}, "the id"),
    "decoder, an id of 4e9": (FILES | {"tokenizer_config.json": DECODER}, "the id"),
    "a regex": (changed(pre_tokenizer=SPLIT), "a regex of its own"),
    "another pad": (
        FILES | {"config.json": {"model_type": "bert", "pad_token_id": 5}},
        "config.json's pad_token_id 5",
    ),
}


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")
@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_misleads_is_refused(write, name):
    contents, problem = REFUSED[name]
    with pytest.raises(DamagedFile, match=problem):
        Tokenizer.from_folder(write_folder(write, contents))


def config(**changes):
    shape = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8)
    return BertConfig(vocab_size=64, num_hidden_layers=1, **shape, **changes)


def test_an_index_beyond_a_table_is_refused(write):
    made = Tokenizer.from_folder(write_folder(write, FILES))
    pairs = made.encode((["the"], ["un"]), 16)
    pairs.check(config())
    with pytest.raises(ConfigError, match=r"2 token types .*type_vocab_size is 1"):
        pairs.check(config(type_vocab_size=1))
    beyond = Tokens(pairs.ids + 60, pairs.types, pairs.offsets)
    with pytest.raises(ConfigError, match="vocab_size is 64"):
        beyond.check(config())


def transformers_ids(folder, lines=LINES):
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return theirs(list(lines), truncation=False, padding=False)["input_ids"]


@pytest.mark.parametrize("table", [b"", unigram.CHARSMAP])
@pytest.mark.parametrize("kind", ["XLMRobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_unigram_tokenizer_goes_everywhere(write, kind, table):
    folder = write_folder(write, unigram.folder(kind, table))
    ours = Tokenizer.from_folder(folder)
    expected = transformers_ids(folder, unigram.LINES)
    assert (ours.cls_id, ours.sep_id, ours.pad_id, ours.max_length) == (0, 2, 1, 12)
    shape = config(max_position_embeddings=16)
    stored = packed.tokenizer_to_bytes(ours.to_json(), shape)
    again = Tokenizer.from_json(packed.tokenizer_from_bytes(stored, shape))
    save_pretrained(
        folder / "out", shape, bf.init_params(shape, jax.random.key(0)), ours
    )
    out = Tokenizer.from_folder(folder / "out")
    assert transformers_ids(folder / "out", unigram.LINES) == expected
    for each in (ours, again, out):
        assert rows(each.encode((unigram.LINES,), 64)) == expected
    assert out.max_length == 12


NAMES = ("vocab.txt", "tokenizer.json", "both")
SPECIAL = st.fixed_dictionaries({}, optional={"mask_token": st.just("<m>")})
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "do_lower_case": st.booleans(),
        "strip_accents": st.sampled_from([None, True, False]),
        "tokenize_chinese_chars": st.booleans(),
        "model_max_length": st.sampled_from([7, 512, int(1e30)]),
        "tokenizer_class": st.sampled_from(
            [
                *("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"),
                *("DistilBertTokenizer", "ElectraTokenizerFast"),
            ]
        ),
    },
)
ADDED = st.dictionaries(
    st.sampled_from(["<ent>", "xyzzy"]), st.integers(20, 22), max_size=2
)


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.sampled_from(NAMES), SETTINGS, SPECIAL, st.none() | ADDED)
def test_ids_are_transformers_own_wherever_a_tokenizer_goes(
    tmp_path_factory, which, settings, special, added
):
    folder = tmp_path_factory.mktemp("model")
    contents: dict = {"tokenizer_config.json": settings}
    contents["config.json"] = {"model_type": "bert", "vocab_size": 64}
    if which != "tokenizer.json":
        contents["vocab.txt"] = VOCABULARY
    if which != "vocab.txt":
        contents["tokenizer.json"] = whole()
    if special:
        contents["special_tokens_map.json"] = special
    if added is not None:
        contents["added_tokens.json"] = added
    for name, found in contents.items():
        text = found if isinstance(found, str) else json.dumps(found)
        (folder / name).write_text(text)
    try:
        ours = Tokenizer.from_folder(folder)
    except BitflaxError:
        return  # said, and never silent
    expected = transformers_ids(folder)
    assert rows(ours.encode((LINES,), 64)) == expected
    shape = config()
    stored = packed.tokenizer_to_bytes(ours.to_json(), shape)
    again = Tokenizer.from_json(packed.tokenizer_from_bytes(stored, shape))
    assert rows(again.encode((LINES,), 64)) == expected
    params = bf.init_params(shape, jax.random.key(0))
    save_pretrained(folder / "out", shape, params, ours)
    assert transformers_ids(folder / "out") == expected
    out = Tokenizer.from_folder(folder / "out")
    assert out.max_length == (ours.max_length or shape.max_position_embeddings)
    assert rows(out.encode((LINES,), 64)) == expected


def byte_level(kind):
    """A folder with a BPE of bytes, as RoBERTa has it."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "the", "\u0120the"]
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {word: i for i, word in enumerate(words)},
            [("t", "h"), ("th", "e"), ("\u0120", "the")],
        )
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    found.add_special_tokens(words[:4])
    settings = {"tokenizer_class": kind, "model_max_length": 12}
    return {
        "tokenizer.json": json.loads(found.to_str()),
        "config.json": {"model_type": "bert", "vocab_size": 300, "pad_token_id": 1},
        "tokenizer_config.json": settings,
    }


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")
@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        *((k, None) for k in ("BertTokenizer", "DistilBertTokenizer")),
        *((k, None) for k in ("ElectraTokenizer", "ElectraTokenizerFast")),
        *((k, byte_level) for k in ("RobertaTokenizer", "RobertaTokenizerFast")),
    ],
)
def test_an_exported_folder_has_the_ids_of_its_class(write, kind, contents):
    files = contents(kind) if contents else FILES
    folder = write_folder(
        write, files | {"tokenizer_config.json": {"tokenizer_class": kind}}
    )
    ours = Tokenizer.from_folder(folder)
    shape = dataclasses.replace(config(), vocab_size=300, pad_token_id=1)
    stored = packed.tokenizer_to_bytes(ours.to_json(), shape)
    again = Tokenizer.from_json(packed.tokenizer_from_bytes(stored, shape))
    params = bf.init_params(shape, jax.random.key(0))
    save_pretrained(folder / "out", shape, params, again)
    lines = [*LINES, "the  unwanted the\u00e9", "<s> the </s>[SEP]"]
    assert transformers_ids(folder / "out", lines) == transformers_ids(folder, lines)
