"""Tokens against the tokenizers library and BERT's own truncation."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import transformers

from bitflax import files
from bitflax.data import text, tokenizer_folder
from bitflax.data.examples import object_column
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError, DamagedFile, InputMissing

TEXTS = object_column(
    [
        "Cholera, unspecified",
        "A café\u2019s naïve “façade” (don't!)",
        "",
        "汉字 and emoji 🙂",
        "antidisestablishmentarianism " * 3,
        "HELLO hello",
    ]
)


def rows(tokens):
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.fixture(scope="module")
def library(teacher_folder):
    """The library's own tokenizer of the same file, bare of truncation and padding."""
    backend = tokenizers.Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return backend


def test_tokens_are_the_library_s(tokenizer, library):
    tokens = tokenizer.encode((TEXTS,), 512)
    assert rows(tokens) == [library.encode(one).ids for one in TEXTS]
    assert (tokens.ids.dtype, tokens.types.dtype) == (np.int32, np.uint8)
    assert tokens.offsets.dtype == np.int64
    assert not tokens.types.any()
    assert tokens.lengths.tolist() == [len(row) for row in rows(tokens)]


def test_pairs_have_types(tokenizer, library):
    tokens = tokenizer.encode((TEXTS, TEXTS[::-1]), 512)
    expected = [library.encode(a, b) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert rows(tokens) == [one.ids for one in expected]
    assert tokens.types.tolist() == [t for one in expected for t in one.type_ids]


def test_a_stream_is_every_text_and_a_separator(tokenizer, library, monkeypatch):
    plain = [library.encode(one, add_special_tokens=False).ids for one in TEXTS]
    expected = [i for ids in plain if ids for i in (*ids, tokenizer.sep_id)]
    for chunk in (1, 30, 1 << 19):
        monkeypatch.setattr(text, "STREAM", chunk)
        found = tokenizer.stream(TEXTS.tolist(), tokenizer.sep_id)
        assert found.tolist() == expected
        assert found.dtype == np.int32
    assert tokenizer.stream([], 0).tolist() == []
    assert (tokenizer.cls_id, tokenizer.sep_id) == (101, 102)


def bert_cut(first, second, room):
    """BERT's ``_truncate_seq_pair``: token by token."""
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return len(first), len(second)


def test_pairs_are_cut_as_bert_cuts_them(tokenizer):
    cases = [(a, b) for a in range(1, 12) for b in range(1, 12)]
    for limit in range(5, 18):
        tokens = tokenizer.encode(
            (
                [" ".join(["hello"] * a) for a, _ in cases],
                [" ".join(["world"] * b) for _, b in cases],
            ),
            limit,
        )
        for (a, b), row in zip(cases, rows(tokens), strict=True):
            first, second = bert_cut(["x"] * a, ["x"] * b, limit - 3)
            hello, world = [row[1]] * first, [row[-2]] * second
            assert row == [101, *hello, 102, *world, 102]


def test_one_text_is_cut_at_its_end(tokenizer):
    whole = rows(tokenizer.encode((TEXTS[4:5],), 512))[0]
    cut = rows(tokenizer.encode((TEXTS[4:5],), 8))[0]
    assert cut == [*whole[:7], 102]


def test_what_the_file_says_of_length_is_dropped(tokenizer, teacher_folder):
    settings = json.loads((teacher_folder / "tokenizer.json").read_text())
    assert settings["truncation"]["max_length"] == 128
    tokens = tokenizer.encode((["word " * 300, "word"],), 400)
    assert tokens.lengths.tolist() == [302, 3]
    ours = json.loads(tokenizer.to_json())
    assert ours["truncation"] is None
    assert ours["padding"] is None


def test_json_carries_the_whole_tokenizer(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert rows(again.encode((TEXTS,), 64)) == rows(tokenizer.encode((TEXTS,), 64))
    assert (again.pad_id, again.vocab_size) == (0, 30522)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the un ##want ##ed café cafe Café [ ] sep 汉 字"
WORDS = WORDS.split()
VOCABULARY = "".join(f"{word}\n" for word in WORDS)
LINES = ("The unwanted Café!", "[SEP] it", "汉字 now", "<ent> it<ent>", "xyzzy [MASK]")


def whole():
    """A ``tokenizer.json`` without special tokens and with BERT's old processor."""
    made = tokenizers.BertWordPieceTokenizer({w: i for i, w in enumerate(WORDS)})
    return json.loads(made.to_str()) | {"added_tokens": []}


FOLDERS = {
    "vocab.txt": {"vocab.txt": VOCABULARY},
    "tokenizer.json": {"tokenizer.json": whole()},
    "cased": {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": {"do_lower_case": False, "strip_accents": False},
    },
    # BertTokenizer goes by its settings where tokenizer.json says something else.
    "cased, and tokenizer.json": {
        "tokenizer.json": whole(),
        "tokenizer_config.json": {"do_lower_case": False},
    },
    "added_tokens.json": {
        "vocab.txt": VOCABULARY,
        "added_tokens.json": {"<ent>": len(WORDS)},
    },
    "special_tokens_map.json": {
        "vocab.txt": VOCABULARY.replace("[UNK]", "<oov>"),
        "special_tokens_map.json": {"unk_token": "<oov>", "bos_token": "<ent>"},
    },
    "our own kind of model": {
        "tokenizer.json": whole(),
        "config.json": {"model_type": "bitflax-bert"},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    },
}


def write_folder(write, contents):
    for name, found in ({"config.json": {"model_type": "bert"}} | contents).items():
        path = write(name, found if isinstance(found, str) else json.dumps(found))
    return path.parent


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")  # tokenizers 0.22
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(write, name):
    folder = write_folder(write, FOLDERS[name])
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.from_folder(folder)
    expected = theirs(list(LINES), truncation=False, padding=False)["input_ids"]
    assert rows(ours.encode((LINES,), 64)) == expected
    assert theirs.vocab_size <= ours.vocab_size == len(theirs)
    packed = Tokenizer.from_json(ours.to_json())
    assert rows(packed.encode((LINES,), 64)) == expected


@pytest.mark.parametrize("kind", ["basic", "mecab"])  # mecab is not installed
def test_a_tokenizer_of_python_is_refused_by_its_name(write, kind):
    name = "BertJapaneseTokenizer"
    said = {"tokenizer_class": name, "word_tokenizer_type": kind}
    folder = {"vocab.txt": VOCABULARY, "tokenizer_config.json": said}
    with pytest.raises(ConfigError, match=name):
        Tokenizer.from_folder(write_folder(write, folder))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_folder_is_bounded_before_transformers_reads_it(write, monkeypatch, name):
    folder = write_folder(write, {name: FOLDERS[name][name]})
    monkeypatch.setattr(files, "MOST_PARTS", 10)
    monkeypatch.setattr(
        tokenizer_folder, "_quiet_transformers", lambda: pytest.fail("read")
    )
    with pytest.raises(DamagedFile, match="or 10 parts") as caught:
        Tokenizer.from_folder(folder)
    assert caught.value.place == str(folder / name)


def test_transformers_is_quiet_and_left_out_where_json_is_read(write):
    folder = write_folder(write, FOLDERS["vocab.txt"])
    code = (
        "import sys, logging; from bitflax.data import Tokenizer as T; "
        "json = T.from_folder(sys.argv[1]).to_json() if len(sys.argv) > 1 else None; "
        "T.from_json(json or sys.stdin.read()); "
        "print('transformers' in sys.modules)"
    )
    for where, imported in ([folder], True), ([], False):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *where],
            input=json.dumps(whole()),
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (f"{imported}\n", "")


def test_pad_id_is_looked_up(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nword\n")
    assert Tokenizer.from_folder(tmp_path).pad_id == 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer.json", b"{", "expected a tokenizer"),
        ("tokenizer.json", b"\xff", "not UTF-8"),
        ("tokenizer.json", b'{"model": {"type": "Unheard"}}', "expected a tokenizer"),
        ("vocab.txt", b"word\n", r"expected a tokenizer.*without \[UNK\]"),
    ],
)
def test_a_damaged_tokenizer_is_refused(write, tmp_path, name, content, problem):
    path = write(name, content)
    with pytest.raises(DamagedFile, match=problem) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.place == str(path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputMissing, match="found neither"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("columns", "limit"), [((TEXTS,), 2), ((TEXTS, TEXTS), 4)])
def test_too_little_room_is_refused(tokenizer, columns, limit):
    with pytest.raises(ConfigError, match="expected room"):
        tokenizer.encode(columns, limit)
    assert tokenizer.encode(columns, limit + 1).lengths.max() == limit + 1


def test_no_texts_make_no_tokens(tokenizer):
    tokens = tokenizer.encode((object_column([]),), 16)
    assert (len(tokens), tokens.ids.tolist(), tokens.offsets.tolist()) == (0, [], [0])


def test_more_texts_than_one_call_takes(tokenizer, monkeypatch):
    whole = tokenizer.encode((TEXTS, TEXTS), 32)
    monkeypatch.setattr(text, "CHUNK", 4)
    assert rows(tokenizer.encode((TEXTS, TEXTS), 32)) == rows(whole)


class Unused:
    """A stand-in that fails where the cache should have answered."""

    def __call__(self, *args):
        raise AssertionError("tokenised again")


def test_the_cache_answers_the_second_time(tokenizer, tmp_path, monkeypatch):
    first = tokenizer.encode((TEXTS,), 32, tmp_path / "cache")
    monkeypatch.setattr(tokenizer, "_encode", Unused())
    again = tokenizer.encode((TEXTS,), 32, tmp_path / "cache")
    assert rows(again) == rows(first)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for columns, limit in (((TEXTS,), 31), ((TEXTS[:2],), 32), ((TEXTS, TEXTS), 32)):
        with pytest.raises(AssertionError, match="tokenised again"):
            tokenizer.encode(columns, limit, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_made_anew(tokenizer, tmp_path, damage):
    first = tokenizer.encode((TEXTS,), 32, tmp_path)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    place = data.index(first.ids.tobytes())
    if damage == "flip":
        data[place + 5] ^= 4
    file.write_bytes({"flip": data, "cut": data[:place], "empty": b""}[damage])
    assert rows(tokenizer.encode((TEXTS,), 32, tmp_path)) == rows(first)
    assert rows(text._read(file)) == rows(first)


def test_what_makes_the_library_panic_is_no_crash(monkeypatch):
    class PanicException(BaseException):  # as the library's own, which has no module
        pass

    def stumble(error):
        def from_str(text):
            raise error

        monkeypatch.setattr(
            tokenizers, "Tokenizer", type("T", (), {"from_str": staticmethod(from_str)})
        )

    stumble(PanicException("no entry found for key"))
    with pytest.raises(DamagedFile, match="no entry found for key"):
        Tokenizer.from_json("{}")
    stumble(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_json("{}")
