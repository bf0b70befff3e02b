"""Read ``pytorch_model.bin`` without torch, and run nothing in it.

A machine of our own reads what the pickle says of its tensors; their sizes, strides and
offsets are held against the bytes that are there before an array is made of them.

Source: ``torch/serialization.py``, both formats.
"""

import io
import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from bitflax import files
from bitflax.errors import DamagedFile

_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
_KNOWN = {*_DTYPES, *_TENSOR, _ORDERED_DICT, _PARAMETER}


class HostilePickleError(ValueError):
    """The pickle asks for what no state of a model needs."""


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


class _Name(NamedTuple):
    """An allowed global; it is a name and never becomes the object."""

    name: str


class Storage(NamedTuple):
    """A run of ``numel`` numbers that lies elsewhere in the file, under ``key``."""

    key: str
    dtype: np.dtype
    numel: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(pickled: Any) -> tuple[Any, dict[str, Storage]]:
    """Return what a pickle stands for, and the storages it asks for by key.

    Args:
      pickled: its bytes, or a file, which is read up to the pickle's end.

    Raises:
      HostilePickleError: it holds an opcode or a name that no state needs.
      ValueError, LookupError, TypeError: it is broken.
    """
    file = io.BytesIO(pickled) if isinstance(pickled, bytes) else pickled
    machine = _Machine()
    while (opcode := _OPCODES[file.read(1)]).name != "STOP":
        # An argument is read only after its opcode is known to be allowed.
        carry_out = machine.handler(opcode.name)
        if opcode.name == "GLOBAL":
            argument = f"{_line(file)} {_line(file)}"
        else:
            argument = opcode.arg.reader(file) if opcode.arg else None
        carry_out(argument)
    (value,) = machine.stack
    return value, machine.storages


def _line(file: Any) -> str:
    return file.readline().decode("ascii").removesuffix("\n")


_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
_NEW: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_SKIPPED = ("PROTO", "FRAME")


class _Machine:
    """A stack machine for the opcodes that a state needs; it calls nothing."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def handler(self, opcode: str) -> Callable[[Any], None]:
        """Return what carries out an opcode, given its argument.

        Raises:
          HostilePickleError: no state needs the opcode.
        """
        if opcode in _PUSHED:
            return self.stack.append
        if opcode in _NEW:
            return lambda _: self.stack.append(_NEW[opcode]())
        if opcode in _SKIPPED:
            return lambda _: None
        carry_out = getattr(self, f"_op_{opcode.lower()}", None)
        if carry_out is None:
            raise HostilePickleError(f"opcode {opcode}")
        return carry_out

    def _op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _op_long_binget, _op_long_binput = _op_binget, _op_binput

    def _op_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise HostilePickleError(f"it asks for {name.replace(' ', '.'):.80}")
        self.stack.append(_Name(name))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise HostilePickleError("it asks for a name that is no text")
        self._op_global(f"{module} {name}")

    def _op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _op_tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _op_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _op_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _op_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _op_append(self, _: Any) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _op_appends(self, _: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _op_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([(key, value)])

    def _op_setitems(self, _: Any) -> None:
        items = self._since_mark()
        self._put(zip(items[::2], items[1::2], strict=True))

    def _put(self, items: Iterable[Any]) -> None:
        target = self._top(dict)
        for key, value in items:
            # Hashing a deep tuple would overflow the interpreter's own stack.
            if type(key) not in (str, int):
                raise ValueError(f"a key is a {type(key).__name__}")
            target[key] = value

    def _op_build(self, _: Any) -> None:
        """Drop the state of an object: a dict's ``_metadata`` is of no use here."""
        self.stack.pop()
        self._top((dict, Tensor))

    def _top(self, kind: Any) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise HostilePickleError(f"it changes a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _op_binpersid(self, _: Any) -> None:
        kind, storage, key, _device, numel, *view = self.stack.pop()
        if (
            kind != "storage"
            or not isinstance(storage, _Name)
            or view not in ([], [None])
        ):
            raise HostilePickleError("it asks for a storage of an unknown kind")
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError("a storage's key or size is off")
        found = Storage(key, _DTYPES[storage.name], numel)
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"storage {key} is there twice")
        self.stack.append(found)

    def _op_reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise HostilePickleError("it calls what is no allowed name")
        if name.name == _ORDERED_DICT:
            self.stack.append({})
            self._put(*arguments or [()])
        elif name.name in _TENSOR and isinstance(arguments[0], Storage):
            storage, offset, shape, strides, *_ = arguments
            self.stack.append(Tensor(storage, offset, tuple(shape), tuple(strides)))
        elif name.name == _PARAMETER and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        else:
            raise HostilePickleError(f"it calls {name.name} on something else")


# What reading a file that was cut or changed may end in.
_BROKEN = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)

_MAGIC = 0x1950A86A20F9469CFC6C  # before the legacy format's pickles
_PROTOCOL = 1001


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state that ``torch.save`` wrote.

    Both formats are read: the zip file, and the one before torch 1.6. The arrays are
    read-only; bfloat16 is that of ``ml_dtypes``.

    Raises:
      InputMissing: there is no such file.
      DamagedFile: it is damaged, hostile, or no flat ``{name: tensor}``.
    """
    whole = "not a whole PyTorch state"
    with files.reading(path, whole, broken=_BROKEN, but="zip|pickle") as file:
        try:
            read_format = _read_zip if _is_zip(file) else _read_legacy
            state, storages = read_format(file)
            return {name: _array(tensor, storages) for name, tensor in _items(state)}
        except HostilePickleError as error:
            raise DamagedFile(
                path,
                f"hostile pickle refused: {error}",
                fix="do not use this file; a state saved as safetensors holds no code",
            ) from None


def _is_zip(file: BinaryIO) -> bool:
    start = file.read(4)
    file.seek(0)
    return start == b"PK\x03\x04"


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Return the state, its tensors not yet arrays, and the storages' bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch compresses nothing, so that no entry can swell beyond the file.
        length = file.seek(0, os.SEEK_END)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("an entry is compressed")
        if sum(entry.file_size for entry in entries) > length:
            raise ValueError("its entries overlap")
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("the bytes are not little-endian")
        state, asked = unpickle(archive.read(pickled))
        return state, {key: archive.read(f"{root}data/{key}") for key in asked}


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    # Of a map, no read is longer than the file, whatever length is asked for.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if unpickle(view)[0] != _MAGIC or unpickle(view)[0] != _PROTOCOL:
            raise ValueError("neither a zip file nor the older format")
        if unpickle(view)[0]["little_endian"] is not True:
            raise ValueError("the bytes are not little-endian")
        state, asked = unpickle(view)
        storages = {}
        for key in unpickle(view)[0]:
            (numel,) = struct.unpack("<q", view.read(8))
            if numel != asked[key].numel:
                raise ValueError(f"storage {key} has {numel} values")
            storages[key] = view.read(numel * asked[key].dtype.itemsize)
    return state, storages


def _items(state: Any) -> list[tuple[str, Tensor]]:
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__} and no state")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{str(name)[:80]} is no tensor")
    return list(state.items())


def _array(tensor: Tensor, storages: dict[str, bytes]) -> np.ndarray:
    """Return the array, after all it says is held against its storage."""
    storage, offset, shape, strides = tensor
    data = storages[storage.key]
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"a tensor has shape {shape}, strides {strides}")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size and (last >= storage.numel or size > storage.numel):
        raise ValueError(f"a tensor of shape {shape} lies outside its storage")
    if not size:
        return np.zeros(shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(data, storage.dtype)[offset:],
        shape,
        tuple(step * storage.dtype.itemsize for step in strides),
        writeable=False,
    )
