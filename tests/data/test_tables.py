"""Files into columns: quotes, line ends, and every bad row in one error."""

import pytest

from bitflax.data import tables
from bitflax.errors import DataError, InputMissing


def every(_path, names):
    return tuple(names)


def read(path, **settings):
    faults = tables.Faults()
    table = tables.read_table(path, every, faults, **settings)
    faults.check()
    return table


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\n"a" b\t1\nc,d\t0\n',
        '\ufefftext\tlabel\r\n"a" b\t1\r\nc,d\t0\r\n\r\n\n',
        'text\tlabel\n"a" b\t1\nc,d\t0',
    ],
    ids=["plain", "bom, crlf, blank lines at the end", "no last line end"],
)
def test_tsv_takes_quotes_as_letters(write, content):
    table = read(write("a.tsv", content))
    assert table.columns == {"text": ['"a" b', "c,d"], "label": ["1", "0"]}
    assert table.rows == [2, 3]


def test_tsv_lines_end_at_line_feeds_alone(write):
    table = read(write("a.tsv", "text\none\u2028line\x85and\x0ball\ntwo\n"))
    assert table.columns["text"] == ["one\u2028line\x85and\x0ball", "two"]


def test_csv_follows_the_standard(write):
    content = 'text,label\n"a, ""b""\nc",1\nd,0\n'
    table = read(write("a.csv", content))
    assert table.columns == {"text": ['a, "b"\nc', "d"], "label": ["1", "0"]}
    assert table.rows == [2, 4]


def test_csv_takes_a_field_of_any_length(write):
    long = "word " * 50_000
    assert read(write("a.csv", f"text\n{long}\n")).columns["text"] == [long]


def test_jsonl_keeps_kinds_and_joins_keys(write):
    content = '{"text": "a"}\n{"label": 1, "text": "b"}\n'
    table = read(write("a.jsonl", content))
    assert table.columns == {"text": ["a", "b"], "label": [None, 1]}


def test_header_and_short_rows_as_in_glue(write):
    path = write("a.tsv", "x\t1\ny\nz\t0\n")
    table = read(path, header=("text", "label"), skip_short=True)
    assert (table.rows, table.skipped) == ([1, 3], 1)


def test_every_bad_row_is_in_one_error(write):
    rows = ["a\t1", "b", "c\t0", "d\te\tf", *(["g"] * 5)]
    path = write("a.tsv", "\n".join(["text\tlabel", *rows]))
    with pytest.raises(DataError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:3: expected 2 columns, found 1"
    assert lines[1] == f"{path}:5: expected 2 columns, found 3"
    assert lines[5] == "and 2 more"
    assert lines[6] == "fix: put exactly one tab between two columns"
    assert caught.value.place == f"{path}:3"


def test_faults_come_in_the_order_of_files_and_rows():
    faults = tables.Faults()
    for path, row in (("train", 9), ("dev", 2), ("train", 3)):
        faults.add(path, row, "bad", "mend it")
    with pytest.raises(DataError) as caught:
        faults.check()
    message = str(caught.value)
    assert message == "train:3: bad\ntrain:9: bad\ndev:2: bad\nfix: mend it"


@pytest.mark.parametrize(
    ("name", "content", "row", "problem"),
    [
        ("a.csv", 'text,label\na,1\n"b,0\nc,1\n', 3, "stray quote"),
        ("a.csv", 'text,label\na,1\n"b"c,0\n', 3, "stray quote"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', 2, "JSON object"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', 2, "JSON object"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', 2, "found list"),
        ("a.jsonl", "[" * 100_000, 1, "JSON object"),
        ("a.tsv", b"text\na\n\xff\xfe\n", 3, "UTF-8, found the byte 0xff"),
        ("a.tsv", "text\tx\ttext\n1\t2\t3\n", 1, "one column named 'text'"),
    ],
)
def test_a_bad_file_is_refused_at_its_row(write, name, content, row, problem):
    path = write(name, content)
    with pytest.raises(DataError, match=problem) as caught:
        read(path)
    assert caught.value.place == f"{path}:{row}"


@pytest.mark.parametrize("content", ["", "text\n", "\n\n"])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_a_file_without_rows_is_refused(write, name, content):
    with pytest.raises(DataError):
        read(write(name, content))


def test_other_suffixes_are_refused(write):
    with pytest.raises(DataError, match=r"expected one of .tsv, .csv, .jsonl"):
        read(write("a.txt", "text\na\n"))


@pytest.mark.parametrize("name", ["trian", "folder", "folder/trian.txt"])
def test_what_is_no_file_is_not_blamed_for_its_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputMissing, match=r"no such file|Is a directory"):
        read(tmp_path / name)


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write("train.tsv", "text\na\n")
    with pytest.raises(InputMissing, match=r"did you mean .train\.tsv"):
        read(tmp_path / "trian.tsv")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(InputMissing, match="cannot be read"):
        read(tmp_path / "a.tsv")


def test_an_array_of_objects_is_to_be_lines(write):
    with pytest.raises(DataError, match=r"found '\.json'") as caught:
        read(write("a.json", '[{"text": "a"}]'))
    assert "one object a line, as .jsonl" in caught.value.fix


def test_a_fault_is_two_lines_whatever_the_file_is_called(write):
    path = write("a\nfix: b\x1b.jsonl", '{"text": "a"}\n1\n')
    with pytest.raises(DataError) as caught:
        read(path)
    place, fix = str(caught.value).splitlines()
    assert place.endswith(r"a\nfix: b\x1b.jsonl:2: expected a JSON object, found int")
    assert fix.startswith("fix: write one JSON object a line")
