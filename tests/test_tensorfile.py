import json
import threading

import numpy as np
import pytest

from bitflax import tensorfile

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.uint8),
    "c": np.arange(3, dtype=np.float16),
}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "m"
    tensorfile.write(path, tensorfile.encode(TENSORS, {"who": "\u2603"}))
    header = tensorfile.read_header(path)
    assert header.metadata["who"] == "\u2603"
    found = tensorfile.read_tensors(path, header)
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_tensor_is_aligned(tmp_path):
    parts = tensorfile.encode(TENSORS, {})
    header = json.loads(parts[0][8:])
    assert len(parts[0]) % 8 == 0
    for name, array in TENSORS.items():
        assert header[name]["data_offsets"][0] % array.itemsize == 0


def change_name(t, m):
    t["d"] = t.pop("a")


def change_shape(t, m):
    t["b"] = t["b"].reshape(3, 2)


def change_type(t, m):
    t["a"] = np.zeros(2, np.float16)
    t["a"].view(np.uint8)[:] = np.arange(4)


def change_value(t, m):
    t["a"] = t["a"][::-1].copy()


def change_text(t, m):
    m["who"] = "they"


def change_key(t, m):
    m["whom"] = m.pop("who")


@pytest.mark.parametrize(
    "change",
    [change_name, change_shape, change_type, change_value, change_text, change_key],
)
def test_the_digest_sees_every_change(change):
    before = {**TENSORS, "a": np.arange(4, dtype=np.uint8)}
    after, metadata = dict(before), {"who": "we"}
    change(after, metadata)
    assert tensorfile.digest(after, metadata) != tensorfile.digest(
        before, {"who": "we"}
    )


def test_the_digest_needs_no_digest_and_no_order():
    one = tensorfile.digest(TENSORS, {"b": "1", "a": "2"})
    other = dict(reversed(TENSORS.items()))
    assert one == tensorfile.digest(other, {"a": "2", "b": "1", "sha256": "any"})


def test_a_header_over_a_megabyte_is_not_written():
    with pytest.raises(ValueError, match="over 1048576"):
        tensorfile.encode({}, {"long": "x" * (1 << 20)})


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "m"
    files = [tensorfile.encode({"a": np.full(99, n, np.uint8)}, {}) for n in (0, 1)]
    tensorfile.write(path, files[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for parts in files:
                tensorfile.write(path, parts)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            raw = path.read_bytes()
            assert raw.endswith((bytes(99), b"\1" * 99))
    finally:
        stop.set()
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' is there twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1", "what: "),
        (b"\xff\xfe\xff", "what: not UTF-8"),
        ("[" * 200_000, "what: nested too deeply"),
        ("1" * 5000, "what: "),
    ],
)
def test_strict_json_refuses(text, problem):
    with pytest.raises(ValueError, match=problem):
        tensorfile.strict_json(text, "what")


def test_strict_json_reads_the_rest():
    assert tensorfile.strict_json('{"a": [1, 2.5, null, "\\u00e4"]}', "what") == {
        "a": [1, 2.5, None, "ä"]
    }
