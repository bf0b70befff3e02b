"""A flat file is read as strictly as a packed one: what is odd is refused, no crash."""

import functools
import struct

import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, DamagedFile
from bitflax.inference.native import flat_file, library
from tests.helpers import natives, tinypacked

ASKED = natives.batch(2, 6)


@pytest.fixture(scope="module", autouse=True)
def _engine():
    natives.engine_or_skip()


@functools.cache
def sealed() -> bytes:
    """A small file of every kind of matrix: halves, 1, 2 and 8 bits, floats."""
    params = tinypacked._params()
    rules = (
        (r"encoder/.*/in/kernel", bf.ternarize),
        (r"encoder/.*/kernel", bf.binarize),
        (r"embeddings/word/embedding", functools.partial(bf.binarize, axis=-1)),
    )
    packed = bf.pack(params, rules)
    flat = flat_file.to_flat(tinypacked.CONFIG, packed, tinypacked.ACT, {"a": "ö"})
    flat_file.seal(flat)
    return flat.tobytes()


def aligned(raw: bytes, shift: int = 0) -> np.ndarray:
    whole = np.zeros(len(raw) + 128, np.uint8)
    start = -whole.ctypes.data % 64 + shift
    whole[start : start + len(raw)] = np.frombuffer(raw, np.uint8)
    return whole[start : start + len(raw)]


def opened(path) -> int:
    """The status of opening a file, which is freed."""
    found = library.load_library()
    model = library.ctypes.c_void_p()
    status = found.bitflax_open(str(path).encode(), b"portable", 1, model)
    found.bitflax_free(model)
    return status


def test_a_file_opens_by_its_name(tmp_path):
    path = tmp_path / "m.bitflax"
    path.write_bytes(sealed())
    assert opened(path) == library._OK
    assert opened(tmp_path / "none") == library._FILE
    assert opened(tmp_path) == library._FILE


@pytest.mark.parametrize("place", [0, 9, 40, 70, 200, -1])
def test_a_flipped_bit_is_another_digest(tmp_path, place):
    raw = bytearray(sealed())
    raw[place] ^= 4
    (tmp_path / "m").write_bytes(raw)
    assert opened(tmp_path / "m") == library._DAMAGED


@pytest.mark.parametrize("size", [0, 1, 63, 64, 1000, -1])
def test_a_shorter_file_is_damaged(tmp_path, size):
    (tmp_path / "m").write_bytes(sealed()[:size])
    status = library._FILE if size == 0 else library._DAMAGED
    assert opened(tmp_path / "m") == status
    with pytest.raises(DamagedFile):
        library.NativeModel(aligned(sealed()[:size]), "portable", 1)


def test_bytes_that_lie_askew_are_refused():
    library.NativeModel(aligned(sealed()), "portable", 1)
    with pytest.raises(DamagedFile):
        library.NativeModel(aligned(sealed(), shift=4), "portable", 1)


WRONG = (-1, 0, 1, 3, 7, 200, 1 << 20, (1 << 31) - 1, -(1 << 31), 0x7FC00000)


def test_no_word_of_the_description_crashes_the_reader():
    """Every word in turn is replaced; what is still taken answers."""
    raw = sealed()
    (words,) = struct.unpack_from("<I", raw, 12)
    flat, taken, refused = aligned(raw), 0, 0
    config = tinypacked.CONFIG
    for place in (*range(0, 32, 4), *range(64, 64 + 4 * words, 4)):
        before = flat[place : place + 4].copy()
        for value in WRONG:
            flat[place : place + 4] = np.frombuffer(struct.pack("<i", value), np.uint8)
            try:
                made = library.NativeModel(flat, "portable", 1)
            except DamagedFile:
                refused += 1
                continue
            ids = np.zeros((1, 3), np.int32)
            made({"input_ids": ids, "attention_mask": ids + 1, "token_type_ids": ids})
            del made
            taken += 1
        flat[place : place + 4] = before
    assert config.num_labels == library.NativeModel(flat, "portable", 1).labels
    assert taken > 100
    assert refused > 1000


def test_an_own_quantizer_is_refused_with_the_reason():
    def own(x):
        return x

    params, _ = natives.model("binary")
    with pytest.raises(ConfigError, match=r"does not round by .*none of bitflax's own"):
        flat_file.to_flat(natives.CONFIG, params, own)


def test_ranges_of_groups_are_refused():
    params, _ = natives.model("binary")
    with pytest.raises(ConfigError, match="neither a token's nor a tensor's"):
        flat_file.to_flat(natives.CONFIG, params, bf.symmetric(8, groups=2))


def test_probabilities_of_one_range_are_refused():
    params, _ = natives.model("binary")
    act = ((r".*/probs", bf.asymmetric(8, axis=None)), (r".*/input", bf.symmetric(8)))
    with pytest.raises(ConfigError, match=r"probs: .*shares its range"):
        flat_file.to_flat(natives.CONFIG, params, act)
