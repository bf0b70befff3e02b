"""Own files: columns by name, classes and numbers, with and without labels."""

import json

import numpy as np
import pytest

from bitflax.data import own_files
from bitflax.errors import DataError, InputMissing


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "label\ttext\ngood\tone, two\nbad\tthree\n"),
        ("a.csv", 'text,label\n"one, two",good\nthree,bad\n'),
        (
            "a.jsonl",
            '{"text":"one, two","label":"good"}\n{"label":"bad","text":"three"}',
        ),
        ("A.CSV", 'text,label\n"one, two",good\nthree,bad\n'),
    ],
)
def test_the_three_formats_read_alike(write, name, content):
    found = own_files.load_own(write(name, content))
    assert found.train.texts[0].tolist() == ["one, two", "three"]
    assert found.labels == ("bad", "good")
    assert found.train.labels.tolist() == [1, 0]
    assert len(found.dev) == 0
    assert not found.regression


def test_columns_by_name_and_pairs(write):
    path = write("a.csv", "id,left,right,kind\n1,a,b,x\n2,c,d,y\n")
    found = own_files.load_own(path, text=("left", "right"), label="kind")
    assert [column.tolist() for column in found.train.texts] == [["a", "c"], ["b", "d"]]
    assert found.notes == (
        f"{path}: texts from 'left' and 'right', labels from 'kind', left out: 'id'",
    )


def test_usual_names_are_found(write):
    path = write("a.csv", "premise,hypothesis,score\na,b,0.5\nc,d,1\n")
    found = own_files.load_own(path)
    assert len(found.train.texts) == 2
    assert found.regression
    assert found.labels == ()
    assert found.train.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "regression", "real"),
    [
        ((1, 2), None, False),
        ((1, 2), True, True),
        ((1.5, 2), None, True),
        ((1.5, 2), False, False),
    ],
)
def test_classes_or_real_numbers(write, labels, regression, real):
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    found = own_files.load_own(
        write("a.jsonl", "\n".join(lines)), regression=regression
    )
    assert found.regression is real
    assert found.labels == (() if real else tuple(str(label) for label in labels))


@pytest.mark.parametrize(
    ("header", "settings", "note", "fix"),
    [
        ("id,text,label", {}, "labels from 'label', left out: 'id'", None),
        (
            "text,kind",
            {},
            "no labels, left out: 'kind'",
            "data.label, or --label), if",
        ),
        ("text,kind", {"label": "kind"}, "texts from 'text', labels from 'kind'", None),
        (
            *("question,sentence,label", {}, "texts from 'sentence'"),
            "data.text, or --text): sentence, or for pairs sentence,question",
        ),
        ("question,sentence,label", {"text": "sentence"}, "left out: 'question'", None),
        ("sentence1,sentence2,label", {}, "from 'sentence1' and 'sentence2'", None),
    ],
)
def test_what_is_taken_and_left_out_is_said(write, header, settings, note, fix):
    rows = ("a,b,x", "d,e,y") if header.count(",") == 2 else ("a,x", "d,y")
    path = write("a.csv", "\n".join([header, *rows]))
    (said,) = own_files.load_own(path, **settings).notes
    assert note in said
    assert (fix in said) if fix else ("fix:" not in said)


@pytest.mark.parametrize(
    ("header", "settings", "found", "fix"),
    [
        ("id,text,category", {}, "'id', 'category' beside", "data.label=category"),
        ("text,n,mood,id", {}, "'n', 'mood', 'id' beside", "--label mood"),
        ("text,my label", {}, "'my label' beside", "data.label='my label'"),
        ("text", {}, "found texts alone", "teacher.folder"),
        ("id,label,message", {}, "first row of names", "--text message"),
    ],
)
def test_the_column_that_is_missed_is_offered(write, header, settings, found, fix):
    path = write("a.csv", f"{header}\n" + header.replace("id", "1") + "\n")
    with pytest.raises(DataError) as caught:
        own_files.load_own(path, labelled=True, **settings)
    assert caught.value.place == f"{path}:1"
    assert found in caught.value.problem
    assert fix in caught.value.fix


def test_a_dev_file_warns_of_no_column_that_was_chosen_in_train(write):
    train, dev = (
        write(f"{name}.csv", "question,sentence,label\na,b,x\nc,d,y\n")
        for name in ("train", "dev")
    )
    notes = own_files.load_own(train, dev=dev).notes
    assert ["fix:" in note for note in notes] == [True, False]


def test_labels_that_differ_in_case_are_said_with_counts(write):
    path = write("a.csv", "text,label\na,food\nb,food\nc,FOOD\nd,sky\n")
    found = own_files.load_own(path)
    assert found.labels == ("FOOD", "food", "sky")
    assert found.notes[-1] == (
        f"{path}:4: the labels 'FOOD' (1 rows), and 'food' in row 2 (2 rows) are two "
        "classes, and differ in case alone\n"
        "fix: write 'food' for 'FOOD', unless they are two"
    )


def test_one_number_in_two_spellings_is_refused_with_both_rows(write):
    path = write("a.csv", "text,label\na,1\nb,0\nc,1.0\nd,1\n")
    with pytest.raises(
        DataError, match=r"found '1.0' \(1 rows\), and '1' in row 2"
    ) as caught:
        own_files.load_own(path)
    assert (caught.value.place, caught.value.fix) == (
        f"{path}:4",
        "write '1' for '1.0'",
    )


@pytest.mark.parametrize(
    ("classes", "label", "fix"),
    [
        (("food", "sky"), "FOOD", "write 'food'"),
        (("0", "1"), "1.0", "write '1'"),
        (("no", "so so", "yes"), "1", "0 is 'no', 1 is 'so so', 2 is 'yes'"),
        (("no", "so so", "yes"), "2.0", "0 is 'no', 1 is 'so so', 2 is 'yes'"),
        (("no", "yes"), "2", "write one of the known labels"),
        (("no", "yes"), "1" * 5000, "write one of the known labels"),
        (("no", "yes"), "", "give the row a label, or leave the row out"),
    ],
)
def test_a_mapping_to_the_known_labels_is_offered(write, classes, label, fix):
    path = write("a.csv", f"text,label\na,{classes[0]}\nb,{label}\n")
    with pytest.raises(DataError) as caught:
        own_files.load_own(path, classes=classes)
    assert caught.value.place == f"{path}:3"
    assert fix in caught.value.fix
    assert "delete" not in caught.value.fix


def test_blanks_around_a_known_label_do_not_count(write):
    path = write("a.csv", "text,label\na,food\nb, sky\n")
    found = own_files.load_own(path, classes=("sky ", " food"))
    assert found.train.labels.tolist() == [1, 0]


def test_texts_without_labels(write):
    found = own_files.load_own(write("a.tsv", "text\none\ntwo\n"))
    assert found.train.labels is None
    assert found.labels == ()
    assert found.notes[0].endswith("no labels")


def test_dev_alone_may_have_labels(write):
    train, dev = (
        write("t.tsv", "text\none\n"),
        write("d.tsv", "text\tlabel\na\tx\nb\ty\n"),
    )
    found = own_files.load_own(train, dev=dev)
    assert found.train.labels is None
    assert found.labels == ("x", "y")
    assert found.dev.labels.tolist() == [0, 1]


def test_a_folder_of_train_and_dev(write, tmp_path):
    write("set/train.csv", "text,label\na,x\nb,y\n")
    write("set/dev.tsv", "text\tlabel\nc\ty\n")
    found = own_files.load_own(tmp_path / "set")
    assert found.dev.texts[0].tolist() == ["c"]
    assert found.dev.labels.tolist() == [1]
    with pytest.raises(InputMissing, match=r"expected one train.tsv.*found set"):
        own_files.load_own(tmp_path)


def test_one_file_as_train_and_dev_is_read_once(write):
    path = write("a.tsv", "text\tlabel\na\tx\nb\n")
    with pytest.raises(DataError) as caught:
        own_files.load_own(path, dev=path)
    assert str(caught.value).count(f"{path}:3") == 1


def test_given_classes_keep_their_order(write):
    path = write("a.tsv", "text\tlabel\na\tno\n")
    assert own_files.load_own(path, classes=("yes", "no")).train.labels.tolist() == [1]
    with pytest.raises(DataError, match=r"expected a label .* \(yes, maybe\)"):
        own_files.load_own(path, classes=("yes", "maybe"))


def test_bad_rows_of_both_files_are_in_one_error(write):
    train = write("train.tsv", "text\tlabel\na\tx\n\ty\nb\tnan\nc\ty\n")
    dev = write("dev.tsv", "text\tlabel\na\tx\nb\tz\nc\n")
    with pytest.raises(DataError) as caught:
        own_files.load_own(train, dev=dev)
    assert str(caught.value).splitlines() == [
        f"{train}:3: expected words as the text, found an empty text",
        f"{train}:4: expected a label in column 'label' (x, y), found none",
        f"{dev}:3: expected a label in column 'label' (x, y), found 'z'",
        f"{dev}:4: expected 2 columns, found 1",
        "fix: give the row a text, or delete the row; give the row a label, or leave the "
        "row out; write one of the known labels; put exactly one tab between two "
        "columns",
    ]


def test_bad_numbers_are_faults_of_a_regression(write):
    path = write("a.csv", "text,score\na,0.5\nb,1.5\nc,n/a\n")
    with pytest.raises(DataError, match="expected a real number") as caught:
        own_files.load_own(path)
    assert caught.value.place == f"{path}:4"


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"text": "txt"}, "did you mean 'text'?"),
        ({"label": "Lable"}, "did you mean 'label'?"),
        ({"text": ("text", "text_2")}, "did you mean 'text'?"),
        ({"text": "zzz"}, "the columns are: text, label"),
    ],
)
def test_a_wrong_column_names_the_nearest(write, settings, fix):
    path = write("a.tsv", "text\tlabel\na\tx\nb\ty\n")
    with pytest.raises(DataError, match="found 'text', 'label'") as caught:
        own_files.load_own(path, **settings)
    assert caught.value.place == f"{path}:1"
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "text;label\na;x\n", "expected a .csv of several columns"),
        ("a.csv", "text|label\na|x\n", "expected a .csv of several columns"),
        ("a.tsv", "text,label\na,x\n", "expected a .tsv of several columns"),
        ("a.tsv", "It was fine\t1\nSo so\t0\n", "expected a first row of names"),
        ("a.tsv", "text\tlabel\na\tx\nb\tx\n", "found 'x' only"),
        ("a.jsonl", "nonsense\n", "expected a JSON object"),
    ],
)
def test_files_that_mislead_are_refused(write, name, content, problem):
    with pytest.raises(DataError, match=problem):
        own_files.load_own(write(name, content))


def test_of_many_columns_a_few_are_named():
    assert own_files._listed([*"abcdefghij"]).endswith("'g', 'h' and 2 more")


def test_three_text_columns_are_refused(write):
    with pytest.raises(DataError, match="one or two text columns"):
        own_files.load_own(write("a.tsv", "a\tb\tc\n1\t2\t3\n"), text=("a", "b", "c"))
