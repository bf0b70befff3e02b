"""A pickle of tensors, read opcode by opcode and never run.

A pickle may call any function there is. Here it is never given to ``pickle``: a small
stack machine knows the opcodes that a state of a model needs and the few names by which
torch builds a tensor, and refuses everything else. What it makes are plain
descriptions; nothing in the file becomes a call.

Source: ``torch/_utils.py`` and ``torch/serialization.py`` for the names,
``pickletools.py`` for the opcodes.
"""

import io
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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


def run(pickled: Any) -> tuple[Any, dict[str, Storage]]:
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
