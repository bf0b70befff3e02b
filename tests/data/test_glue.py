"""GLUE's own files: every task's layout, and the rows that are refused."""

import pytest

from bitflax.data import glue
from bitflax.errors import DataError, InputMissing

HEADERS = {
    "glue/sst2": "sentence label",
    "glue/mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "glue/stsb": "index genre filename year old_index source1 source2 sentence1 "
    "sentence2 score",
    "glue/qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "glue/mnli": "index promptID pairID genre sentence1_binary_parse "
    "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 label1 "
    "gold_label",
    "glue/qnli": "index question sentence label",
    "glue/rte": "index sentence1 sentence2 label",
    "glue/wnli": "index sentence1 sentence2 label",
}
HEADERS["glue/mnli-mm"] = HEADERS["glue/mnli"]


def lines(name, count=4):
    """Rows in a task's own layout, quotes and all."""
    task = glue.GLUE_TASKS[name]
    header = HEADERS.get(name, "")
    columns = header.split("|" if "|" in header else None) or list(task.header)
    rows = [columns] if header else []
    for i in range(count):
        label = task.values[i % len(task.values)] if task.values else f"{i + 0.5:.3f}"
        row = {column: f'"{column} {i}' for column in columns} | {task.label: label}
        rows.append([row[column] for column in columns])
    return "".join("\t".join(row) + "\n" for row in rows)


def load(name, folder):
    task = glue.from_folder(name, folder)
    return task.train, task.dev, task.notes


@pytest.mark.parametrize("name", sorted(glue.GLUE_TASKS))
def test_every_task_in_its_own_layout(write, tmp_path, name):
    task = glue.GLUE_TASKS[name]
    write(f"{task.folder}/train.tsv", "\ufeff" + lines(name))
    write(f"{task.folder}/{task.dev}.tsv", lines(name, 2))
    train, dev, notes = load(name, glue.find_folder(name, tmp_path))
    assert (len(train), len(dev), notes) == (4, 2, ())
    assert [column[1] for column in train.texts] == [f'"{c} 1' for c in task.texts]
    count = len(task.values)
    expected = [i % count for i in range(4)] if count else [0.5, 1.5, 2.5, 3.5]
    assert train.labels.tolist() == expected
    assert train.rows[0] == (2 if name in HEADERS else 1)
    assert len(task.values) == len(task.labels)
    assert len(task.features) == len(task.texts)


@pytest.mark.parametrize("folder", ["CoLA", "cola", "COLA", ""])
def test_the_folder_is_found(write, tmp_path, folder):
    path = write(f"{folder}/train.tsv" if folder else "train.tsv", lines("glue/cola"))
    assert glue.find_folder("glue/cola", tmp_path) == path.parent


def test_a_folder_that_is_not_there(tmp_path):
    assert glue.find_folder("glue/cola", tmp_path) is None
    with pytest.raises(InputMissing, match="no such folder"):
        glue.find_folder("glue/cola", tmp_path / "none")


def test_a_missing_dev_file_leaves_dev_empty(write, tmp_path):
    write("train.tsv", lines("glue/rte"))
    assert len(load("glue/rte", tmp_path)[1]) == 0


def test_a_wrong_label_and_a_short_row_are_refused_together(write, tmp_path):
    path = write("train.tsv", "x\t1\t\ta\nx\t2\t\tb\nx\t1\t\n")
    with pytest.raises(DataError) as caught:
        load("glue/cola", tmp_path)
    assert str(caught.value).splitlines()[:2] == [
        f"{path}:2: expected a label in column 'label' (0, 1), found '2'",
        f"{path}:3: expected 4 columns, found 3",
    ]


def test_qqp_leaves_short_rows_out_and_says_so(write, tmp_path):
    path = write("train.tsv", lines("glue/qqp") + "5\t6\n7\t8\t9\ta\t\t0\n")
    train, _, notes = load("glue/qqp", tmp_path)
    assert train.texts[1][-1] == ""
    assert len(train) == 5
    assert notes == (f"{path}: 1 rows of too few columns left out, as by TFDS",)


def test_another_task_s_file_is_refused(write, tmp_path):
    write("train.tsv", lines("glue/sst2"))
    with pytest.raises(DataError, match="expected RTE's column 'sentence1'"):
        load("glue/rte", tmp_path)
