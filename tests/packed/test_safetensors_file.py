import json
import os
import pathlib
import threading
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from bitflax import files
from bitflax.packed import safetensors_file

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.uint8),
    "c": np.arange(3, dtype=np.float16),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m"
    safetensors_file.write(path, safetensors_file.encode(TENSORS, {"who": "\u2603"}))
    return path


def test_what_is_written_is_read(path):
    with files.open_file(path) as file:
        header = safetensors_file.read_header(file)
        found = safetensors_file.read_tensors(file, header)
    assert header.metadata["who"] == "\u2603"
    for name, array in TENSORS.items():
        wide = np.float32 if array.dtype == np.float16 else array.dtype
        assert found[name].dtype == wide
        np.testing.assert_array_equal(found[name], array)


def test_what_is_read_lies_where_jax_can_take_it_over(path):
    with files.open_file(path) as file:
        found = safetensors_file.read_tensors(file, safetensors_file.read_header(file))
    for array in found.values():
        assert array.ctypes.data % 64 == 0
        np.testing.assert_array_equal(jnp.asarray(array, array.dtype), array)


def test_reading_takes_the_memory_of_its_result(tmp_path):
    path, size = tmp_path / "m", 8 << 20
    halves = np.ones(size // 2, np.float16)
    safetensors_file.write(path, safetensors_file.encode({"a": halves}, {}))
    tracemalloc.start()
    try:
        with files.open_file(path) as file:
            safetensors_file.read_tensors(file, safetensors_file.read_header(file))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 * size < peak < 2.4 * size


def test_a_file_that_changes_while_it_is_read_is_refused(path):
    # Longer than what is read ahead with the header.
    safetensors_file.write(
        path, safetensors_file.encode({"a": np.ones(99_999, np.uint8)}, {})
    )
    raw = path.read_bytes()
    for changed, problem in (
        (raw[:-1], "became shorter"),
        (raw[:-1] + b"!", "SHA-256"),
        (raw + b"!", None),
    ):
        path.write_bytes(raw)
        with files.open_file(path) as file:
            header = safetensors_file.read_header(file)
            path.write_bytes(changed)
            if problem is None:  # what is read is what was there
                safetensors_file.read_tensors(file, header)
                continue
            with pytest.raises(ValueError, match=problem):
                safetensors_file.read_tensors(file, header)


def test_a_file_that_is_replaced_is_read_as_it_was(path):
    with files.open_file(path) as file:
        header = safetensors_file.read_header(file)
        safetensors_file.write(
            path, safetensors_file.encode({"z": np.zeros(3, np.uint8)}, {})
        )
        found = safetensors_file.read_tensors(file, header)
    np.testing.assert_array_equal(found["b"], TENSORS["b"])


def test_a_pipe_or_a_device_is_no_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes to it: opened like a file, it would block
    for odd in (pipe, pathlib.Path(os.devnull), pathlib.Path("/dev/zero")):
        with pytest.raises(OSError, match="found a pipe or a device"):
            files.open_file(odd)
    with pytest.raises(IsADirectoryError):
        files.open_file(tmp_path)


def test_a_link_is_followed(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    files.open_file(link).close()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OSError, match="symbolic links"):
        files.open_file(link)


def test_every_tensor_is_aligned(tmp_path):
    parts = safetensors_file.encode(TENSORS, {})
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
    assert safetensors_file.digest(after, metadata) != safetensors_file.digest(
        before, {"who": "we"}
    )


def test_the_digest_needs_no_digest_and_no_order():
    one = safetensors_file.digest(TENSORS, {"b": "1", "a": "2"})
    other = dict(reversed(TENSORS.items()))
    assert one == safetensors_file.digest(other, {"a": "2", "b": "1", "sha256": "any"})


def test_a_header_over_a_megabyte_is_not_written():
    with pytest.raises(ValueError, match="over 1048576"):
        safetensors_file.encode({}, {"long": "x" * (1 << 20)})


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "m"
    files = [
        safetensors_file.encode({"a": np.full(99, n, np.uint8)}, {}) for n in (0, 1)
    ]
    safetensors_file.write(path, files[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for parts in files:
                safetensors_file.write(path, parts)

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
        ("[-1e999]", "-1e999 is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1", "what: "),
        (b"\xff\xfe\xff", "what: not UTF-8"),
        ("[" * 200_000, "what: nested too deeply"),
        ("1" * 5000, "what: "),
        ('["\\ud800"]', "what: .*surrogates not allowed"),
        ('["\\uDC00"]', "what: .*surrogates not allowed"),
        ('{"%s": 1, "%s": 2}' % (("k" * 5000,) * 2), "^.{,120}$"),
    ],
)
def test_strict_json_refuses(text, problem):
    with pytest.raises(ValueError, match=problem):
        safetensors_file.strict_json(text, "what")


def test_strict_json_reads_the_rest():
    assert safetensors_file.strict_json('{"a": [1, 2.5, null, "\\u00e4"]}', "what") == {
        "a": [1, 2.5, None, "ä"]
    }
    assert safetensors_file.strict_json('"\\ud83d\\ude00"', "what") == "\U0001f600"
