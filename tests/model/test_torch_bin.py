"""PyTorch's files read without torch; hostile and damaged ones refused."""

import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.model import torch_bin

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
KINDS = {
    "bf16": GRID.astype(ml_dtypes.bfloat16),
    "half": GRID.astype(np.float16),
    "double": GRID.astype(np.float64),
    "int64": np.arange(5),
    "bool": GRID > 3,
    "t": GRID.T,
    "slice": GRID[1:3, 2:5],
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "param": np.ones(2, np.float32),
    "u8": np.arange(3, dtype=np.uint8),
    "i32": np.arange(3, dtype=np.int32),
}


@pytest.mark.parametrize("name", ["kinds", "kinds_legacy", "kinds_protocol4"])
def test_every_kind_of_tensor_is_read(golden, name):
    state = torch_bin.read(golden / "hf_tiny" / f"{name}.bin")
    assert state.keys() == KINDS.keys()
    for key, value in KINDS.items():
        assert state[key].dtype == value.dtype
        np.testing.assert_array_equal(state[key], value)


def test_a_model_is_what_its_safetensors_hold(golden):
    folder = golden / "hf_tiny"
    state = torch_bin.read(folder / "pytorch_model.bin")
    same = safetensors.numpy.load_file(folder / "model.safetensors")
    assert state.keys() == same.keys()
    for name, value in same.items():
        np.testing.assert_array_equal(state[name], value)


# -- Files made by hand: the pickle's opcodes, then the container.


def put(value) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tensor(
    shape=(2, 3), strides=(3, 1), offset=0, numel=6, kind="FloatStorage"
) -> bytes:
    """A state with the one tensor ``w``."""
    storage = b"(" + put("storage") + name("torch", kind) + put("0") + put("cpu")
    storage += put(numel) + b"tQ"
    call = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + put(offset)
    call += put(shape) + put(strides) + put(False) + b"}tR"
    return b"\x80\x02}" + put("w") + call + b"s."


def write_zip(path, pickled: bytes, data: bytes = bytes(24), **entries) -> None:
    with zipfile.ZipFile(path, "w", entries.pop("compression", 0)) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
        for entry, content in entries.items():
            archive.writestr(f"archive/{entry}", content)


def write_legacy(path, pickled: bytes, data: bytes = bytes(24), numel: int = 6) -> None:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [*(pickle.dumps(part, 2) for part in head), pickled, pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(parts) + struct.pack("<q", numel) + data)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_tensor_made_by_hand_is_read(tmp_path, write):
    data = np.arange(6, dtype="<f4")
    write(tmp_path / "m.bin", tensor(shape=(3, 2), strides=(1, 3)), data.tobytes())
    state = torch_bin.read(tmp_path / "m.bin")
    np.testing.assert_array_equal(state["w"], data.reshape(2, 3).T)


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    """An object whose pickle names its class."""


HOSTILE = {
    "system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "in a state": lambda mark: {"w": Calls(os.mkdir, str(mark))},
    "object": lambda mark: {"w": Plain()},
    "set": lambda mark: {"w": {1}},
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path, kind, protocol, write):
    mark = tmp_path / "mark"
    write(tmp_path / "m.bin", pickle.dumps(HOSTILE[kind](mark), protocol))
    with pytest.raises(DamagedFile, match="hostile pickle refused"):
        torch_bin.read(tmp_path / "m.bin")
    assert not mark.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        # A known name that is called on something else, or changed.
        b"\x80\x02" + name("torch._utils", "_rebuild_tensor_v2") + put((1, 2)) + b"R.",
        b"\x80\x02" + name("collections", "OrderedDict") + put({"a": 1}) + b"b.",
        b"\x80\x02" + put("text") + put(()) + b"R.",
        b"\x80\x04" + put("os") + put("system") + b"\x93.",
        b"\x80\x02ios\nsystem\n.",
        b"\x80\x02(" + put(("module", "torch")) + b"tQ" + b".",
    ],
)
def test_a_known_name_used_otherwise_is_refused(tmp_path, pickled):
    write_zip(tmp_path / "m.bin", pickled)
    with pytest.raises(DamagedFile, match=r"hostile pickle refused|not a whole"):
        torch_bin.read(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": (3, 3)}, "outside its storage"),
        ({"offset": 1}, "outside its storage"),
        ({"strides": (4, 1)}, "outside its storage"),
        ({"strides": (2**70, 1)}, "outside its storage"),
        ({"shape": (10**9, 3), "strides": (0, 1)}, "outside its storage"),
        ({"offset": -1}, "strides"),
        ({"shape": (-2, -3)}, "shape"),
        ({"strides": (-3, 1)}, "strides"),
        ({"strides": (1,)}, "strides"),
        ({"shape": (2.0, 3)}, "shape"),
        ({"shape": "ab"}, "shape"),
        ({"numel": 7}, "24 bytes"),
        ({"numel": -1}, "size is off"),
        ({"kind": "DoubleStorage"}, "24 bytes"),
    ],
)
def test_a_tensor_outside_its_bytes_is_refused(tmp_path, changes, problem):
    write_zip(tmp_path / "m.bin", tensor(**changes))
    with pytest.raises(DamagedFile, match=problem):
        torch_bin.read(tmp_path / "m.bin")


def test_a_file_that_swells_is_refused(tmp_path):
    write_zip(tmp_path / "m.bin", tensor(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedFile, match="compressed"):
        torch_bin.read(tmp_path / "m.bin")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """Many entries over one run of bytes would be read into far more memory."""
    write_zip(tmp_path / "m.bin", tensor(), bytes(4096))
    whole = (tmp_path / "m.bin").read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", whole[end + 16 : end + 20])[0]
    entry = whole[whole.rindex(b"PK\x01\x02") : end]
    copies = b"".join(
        entry.replace(b"archive/data/0", f"archive/data/{i}".encode())
        for i in range(10)
    )
    directory = whole[start:end] + copies
    tail = whole[end : end + 8] + struct.pack("<HHII", 12, 12, len(directory), start)
    (tmp_path / "m.bin").write_bytes(whole[:start] + directory + tail + b"\0\0")
    with pytest.raises(DamagedFile, match="overlap"):
        torch_bin.read(tmp_path / "m.bin")


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\x80\x02" + put([1, 2]) + b".",
        b"\x80\x02" + put({"model": {"w": 1}}) + b".",
        b"\x80\x02" + put({"epoch": 3}) + b".",
        b"\x80\x02}" + b")" + b"\x85" * 50_000 + put(1) + b"s.",  # a deep tuple as key
        tensor()[:-1],
        tensor()[:-2] + b".",
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_broken_pickle_is_refused(tmp_path, pickled, write):
    write(tmp_path / "m.bin", pickled)
    with pytest.raises(DamagedFile, match="not a whole PyTorch state"):
        torch_bin.read(tmp_path / "m.bin")


def test_other_byte_orders_are_refused(tmp_path):
    write_zip(tmp_path / "m.bin", tensor(), byteorder=b"big")
    with pytest.raises(DamagedFile, match="little-endian"):
        torch_bin.read(tmp_path / "m.bin")


@pytest.mark.parametrize("numel", [5, -1, 2**62])
def test_a_legacy_storage_of_another_size_is_refused(tmp_path, numel):
    write_legacy(tmp_path / "m.bin", tensor(), numel=numel)
    with pytest.raises(DamagedFile, match=f"{numel} values"):
        torch_bin.read(tmp_path / "m.bin")


def test_a_legacy_storage_that_is_not_there_is_refused(tmp_path):
    write_legacy(tmp_path / "m.bin", tensor(numel=2**40), numel=2**40)
    with pytest.raises(DamagedFile, match="has 24 bytes"):
        torch_bin.read(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ["kinds.bin", "kinds_legacy.bin"])
def test_every_cut_is_noticed(golden, tmp_path, name):
    whole = (golden / "hf_tiny" / name).read_bytes()
    for length in range(0, len(whole), 23):
        (tmp_path / "m.bin").write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            torch_bin.read(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ["kinds.bin", "kinds_legacy.bin"])
def test_a_changed_byte_ends_in_no_other_error(golden, tmp_path, name):
    """The legacy format has no checksum, so a change may pass; a crash may not."""
    whole = (golden / "hf_tiny" / name).read_bytes()
    refused = 0
    places = range(0, len(whole), 13)
    for at in places:
        changed = bytearray(whole)
        changed[at] ^= 0x41
        (tmp_path / "m.bin").write_bytes(changed)
        try:
            torch_bin.read(tmp_path / "m.bin")
        except DamagedFile:
            refused += 1
    assert refused > len(places) // 4


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputMissing, match="no such file"):
        torch_bin.read(tmp_path / "m.bin")


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot be read: Is a dir"):
        torch_bin.read(tmp_path)  # a folder


def test_text_is_no_model(tmp_path):
    (tmp_path / "m.bin").write_text("a text\n")
    with pytest.raises(DamagedFile, match="not a whole PyTorch state"):
        torch_bin.read(tmp_path / "m.bin")


def test_a_file_of_torch_itself_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"w": torch.randn(3, 4).t(), "b": torch.randn(5).bfloat16()}
    for legacy in (False, True):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=not legacy)
        (tmp_path / "m.bin").write_bytes(file.getvalue())
        found = torch_bin.read(tmp_path / "m.bin")
        np.testing.assert_array_equal(found["w"], state["w"].numpy())
        np.testing.assert_array_equal(
            found["b"].astype(np.float32), state["b"].float().numpy()
        )
