"""What is said of data before anything is trained: counts, and what to do."""

import dataclasses

import numpy as np
import pytest
import tokenizers

from bitflax.data import Task, Tokens
from bitflax.data.examples import Examples, object_column
from bitflax.data.text import Tokenizer
from bitflax.runs import notices
from tests.helpers import tinyrun

WORDS = ["red cat", "old dog", "big cow", "my soup", "the rice", "a cake", "two rain"]


def part(texts, labels):
    labels = None if labels is None else np.array(labels, np.int32)
    return Examples((object_column(list(texts)),), labels, np.arange(len(texts)) + 1)


def told(train, dev, *, labels="abc", batch=4, length=16, tokenizer=None):
    """Return the notices of (texts, class numbers) of train and dev."""
    tokenizer = tokenizer or tinyrun.tokenizer()
    task = Task("own", part(*train), part(*dev), tuple(labels), "accuracy")
    read = [tokenizer.encode(each.texts, length) for each in (task.train, task.dev)]
    return [*notices.data_notices(task, read, tokenizer, 64, length, batch)]


def test_good_data_have_no_notice():
    assert told((WORDS, [0, 1, 2, 0, 1, 2, 0]), (["red dog", "a cat"], [0, 1])) == []
    bare = (WORDS, None)
    assert told(bare, (["red dog"], None), labels="") == []


@pytest.mark.parametrize(
    ("ready", "split", "labels", "count"),
    [
        (True, True, [0], 1),
        (True, False, [0], 0),
        (False, True, [0], 0),
        (True, True, None, 0),
    ],
)
def test_a_ready_teacher_may_know_what_was_split_off(ready, split, labels, count):
    trained = part(["red cat", "old dog"], labels and [0, 0])
    task = Task("own", trained, part(["big cow"], labels), ("a",), "accuracy")
    task = dataclasses.replace(task, split_off=split)
    read = [tinyrun.tokenizer().encode(x.texts, 16) for x in (task.train, task.dev)]
    said = notices.data_notices(task, read, tinyrun.tokenizer(), 64, 16, 1, ready)
    assert sum("its score is too high" in notice for notice in said) == count


@pytest.mark.parametrize(
    ("train", "dev", "said"),
    [
        (
            [0, 0, 2, 2, 0, 2, 0],
            [0, 2],
            "1 of 3 classes (33.3 %) have no training example: 'b'",
        ),
        ([1] * 7, [0, 2], "all 7 training examples are 'b'"),
        ([0, 1, 2, 0, 1, 2, 0], [2, 2], "all 2 dev examples are 'c'"),
    ],
)
def test_classes_that_teach_or_measure_nothing(train, dev, said):
    (found,) = told((WORDS, train), (["red dog", "a cat"], dev))
    problem, fix = found.split("\nfix: ")
    assert said in problem
    assert "examples" in fix


def test_a_regression_of_one_number():
    texts = object_column(["red dog", "a cat"])
    same, other = (
        Examples((texts,), np.array(labels, np.float32), np.arange(2) + 1)
        for labels in ([2.5, 2.5], [1.0, 2.0])
    )
    task = Task("own", other, same, (), "pearson", regression=True)
    (found,) = notices._class_notices(task)
    said = "all 2 dev examples have the label 2.5\nfix: add dev examples of others"
    assert found == said


def test_fewer_examples_than_a_batch():
    (found,) = told(
        (WORDS, [0, 1, 2] * 2 + [0]), (["red dog", "a cat"], [0, 1]), batch=8
    )
    assert found == (
        "7 training examples are fewer than a batch of 8\n"
        "fix: add examples, or --set data.batch_size=4"
    )


@pytest.mark.parametrize(("dev", "warned"), [(2, True), (50, False)])
def test_examples_that_train_and_dev_share(dev, warned):
    fresh = [f"red {i} cat" for i in range(dev - 1)]
    texts = [*fresh, WORDS[1]]
    known = Tokenizer(tokenizers.Tokenizer.from_str(tinyrun.tokenizer().to_json()))
    words = {w: i for i, w in enumerate([*tinyrun.VOCABULARY, *map(str, range(dev))])}
    known._backend.model = tokenizers.models.WordPiece(words, unk_token="[UNK]")
    labels = [i % 3 for i in range(dev)]
    (found,) = told((WORDS, [0, 1, 2] * 2 + [0]), (texts, labels), tokenizer=known)
    share = f"1 of {dev} dev examples ({100 / dev:.3g} %) are in train as well"
    assert found.split("\n")[0] == share
    assert ("\nfix: " in found) is warned


@pytest.mark.parametrize(("long", "warned"), [(0, None), (1, False), (3, True)])
def test_texts_that_are_cut(long, warned):
    texts = [f"{a} {b} cat" for a in tinyrun.FILL for b in tinyrun.FILL[:2]]
    train = [*texts, *[f"{text} dog cow" for text in texts[:long]]]
    labels = [i % 3 for i in range(len(train))]
    found = told((train, labels), (["red dog", "a cat"], [0, 1]), length=5)
    if warned is None:
        assert found == []
        return
    count = 18 + long
    share = f"{long} of {count} texts ({100 * long / count:.3g} %) are cut at 5 tokens"
    assert found[0].split("\n")[0] == share
    assert ("\nfix: raise data.max_length (up to 64, " in found[0]) is warned


def test_how_many_were_cut_is_kept_with_the_tokens(tmp_path):
    texts = (object_column(["red cat", "red cat dog", "red cat dog cow"]),)
    first, again = (
        tinyrun.tokenizer().encode(texts, 5, cache=tmp_path) for _ in range(2)
    )
    assert first.cut == again.cut == 1
    assert again.lengths.tolist() == [4, 5, 5]


def test_texts_that_the_tokenizer_does_not_know():
    strange = ["xyz", "q q q", *WORDS]
    texts = told((strange, [i % 3 for i in range(9)]), (["a dog"], [0]))[-1]
    assert texts.startswith("2 of 10 texts (20 %) are [UNK] alone\nfix: ")


@pytest.mark.parametrize(("count", "warned"), [(7, True), (77, False)])
def test_single_words_that_the_tokenizer_does_not_know(count, warned):
    texts = ["red xyz", *(WORDS * 11)[:count]]
    train = texts, [0, *(WORDS.index(word) % 3 for word in texts[1:])]
    (found,) = told(train, (["a dog", "my cat"], [0, 1]))
    words = 2 * count + 6
    share = f"1 of {words} tokens ({100 / words:.3g} %) are [UNK]"
    assert found.startswith(share)
    assert ("\nfix: " in found) is warned


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_cased_vocabulary_that_is_lower_cased(lowercase):
    words = [*tinyrun.VOCABULARY, "Cat", "Rome", "##S", "[MASK2]", "<X>"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {w: i for i, w in enumerate(words)}, unk_token="[UNK]"
        )
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", 3), ("[CLS]", 2)
    )
    cased = Tokenizer(made)
    found = told(
        (WORDS, [0, 1, 2] * 2 + [0]), (["a dog", "my cat"], [0, 1]), tokenizer=cased
    )
    assert cased.unreached() == (3 if lowercase else 0)
    if not lowercase:
        assert found == []
        return
    (note,) = found
    assert note.startswith(
        f"3 of {len(words)} words (10 %) have capitals, but the "
        "tokenizer lower-cases texts\nfix: in tokenizer_config.json, do_lower_case: false"
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_texts_with_capitals_that_no_word_has(lowercase):
    uncased = Tokenizer(tokenizers.Tokenizer.from_str(tinyrun.tokenizer().to_json()))
    normal = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    uncased._backend.normalizer = normal
    texts = ["Red cat", "old DOG", *WORDS]
    train = texts, [i % 3 for i in range(9)]
    found = told(train, (["a dog"], [0]), tokenizer=uncased)
    assert uncased.unreached() == (0 if lowercase else None)
    said = (
        "2 of 10 texts (20 %) have capitals, which no word of the tokenizer has\n"
        "fix: in tokenizer_config.json, do_lower_case: true, if the model is uncased"
    )
    assert (said in found) is not lowercase


def test_notices_come_before_the_first_step_and_into_the_report(tmp_path, capsys):
    tinyrun.write_recipe(tmp_path)
    tinyrun.write_teacher(tmp_path / "pretrained")
    rows = tinyrun.texts(12)
    tinyrun.write_tsv(tmp_path / "few.tsv", rows)
    settings = (
        *(f"task={tmp_path / 'few.tsv'}", f"teacher={tmp_path / 'pretrained'}"),
        *("stages=0", "teacher.epochs=1"),
    )
    tinyrun.run(tmp_path / "tiny.py", tmp_path / "run", *settings)
    err = capsys.readouterr().err
    said = (
        "bitflax: warning: 11 training examples are fewer than a batch of 16\nfix: add"
    )
    assert 0 < err.index(said) < err.index("teacher")
    assert err.count("no dev file: 1 of 12 examples were split off by seed 0") == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "11 training examples are fewer than a batch of 16" in page
    assert "--set data.batch_size=8" in page
    assert "no dev file: 1 of 12" in page


def test_offsets_of_one_token_a_text_are_read():
    unknown = Tokens(np.array([1, 7], np.int32), np.zeros(2, np.uint8), np.arange(3))
    *_, found = notices._unknown([unknown], tinyrun.tokenizer())
    assert found.startswith("1 of 2 texts")


def test_texts_that_have_several_labels():
    train = [*WORDS, *WORDS[:2]], [i % 3 for i in range(len(WORDS))] + [1, 1]
    found = [*told(train, (["a dog"], [0]))]
    (said,) = [note for note in found if "another label" in note]
    assert said.startswith(f"2 of {len(WORDS) + 2} training examples (")
    assert said.endswith("fix: give a text one label")
