"""Damaged and hostile files: refused with a reason, never read as other weights."""

import contextlib
import functools
import json
import lzma
import pathlib
import struct
import tempfile
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError, DamagedFile
from bitflax.model import names
from bitflax.model.leaves import Packed, Split
from bitflax.packed import file as packed_file
from bitflax.packed import packing, tensors
from tests.helpers import packedfiles, small

CONFIG = small.config(1, hidden_size=12, num_attention_heads=2, vocab_size=20)
WORD, POOLER = "embeddings/word/embedding", "pooler/kernel"
FFN = "encoder/layer_0/ffn/in/kernel"
QUERY = "encoder/layer_0/attention/query/kernel"
TOKENIZER = '{"model":{"type":"WordPiece","vocab":{"[PAD]":0,"[UNK]":1}}}'


@functools.cache
def good() -> bytes:
    """The bytes of a file with 1, 1.6 and 8 bits, halves, padding, act and tokenizer."""
    rules = (
        (r"encoder/.*/in/kernel", bf.ternarize),
        (r"encoder/.*/kernel", bf.binarize),
        (WORD, functools.partial(bf.binarize, axis=-1)),
    )
    rng = np.random.default_rng(0)
    shapes = names.parameter_shapes(CONFIG)
    flat = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    flat[QUERY] = Split(flat[QUERY], rng.normal(size=shapes[QUERY]))
    params = jax.tree.map(jnp.float32, trees.unflatten(flat))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m"
        packed = packing.pack(params, rules)
        packed_file.save_packed(path, CONFIG, packed, bf.symmetric(), TOKENIZER)
        return path.read_bytes()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(good())
    return path


def said(model) -> list:
    """All that a file says, to be compared."""
    rest = [repr(model.config), repr(model.act), model.tokenizer, repr(model.extras)]
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params)]
    return [*rest, str(jax.tree.structure(model.params)), *leaves]


def test_every_single_cut_is_refused(file):
    raw = good()
    for size in range(0, len(raw), 31):
        file.write_bytes(raw[:size])
        with pytest.raises(DamagedFile):
            packed_file.read_packed(file)


def forged(path, change):
    """Change header and data of a file, and put the checksum right again."""
    header, data = packedfiles.split(path)
    data = bytearray(data)
    change(header, data)
    # Some of what is forged has no checksum; then the old one is no worse.
    with contextlib.suppress(AttributeError, UnicodeEncodeError):
        header["__metadata__"]["sha256"] = packedfiles.sha256(header, bytes(data))
    packedfiles.join(path, header, bytes(data))


def put(name, array):
    """Return a change that overwrites the start of a tensor."""
    array = np.asarray(array)

    def change(header, data):
        start, _ = header[name]["data_offsets"]
        data[start : start + array.nbytes] = array.tobytes()

    return change


def meta(key, edit):
    """Return a change of a metadata's JSON."""

    def change(header, data):
        found = json.loads(header["__metadata__"][key])
        found = edit(found) or found
        header["__metadata__"][key] = json.dumps(found)

    return change


def entry(name, **fields):
    return lambda header, data: header[name].update(fields)


def text(key, value):
    return lambda header, data: header["__metadata__"].__setitem__(key, value)


def drop(header, data):
    """Take the classifier's bias, the last bytes of its dtype, out of the file."""
    del header["classifier/bias"]


def tokenizer(raw):
    """Put other bytes in the tokenizer's place, at the end of the data."""

    def change(header, data):
        start, _ = header["tokenizer"]["data_offsets"]
        assert header["tokenizer"]["data_offsets"][1] == len(data)
        data[start:] = raw
        header["tokenizer"].update(shape=[len(raw)], data_offsets=[start, len(data)])

    return change


BIASES = ("pooler/bias_1", "pooler/bias_2")
QUARTERS = (f"{QUERY}_1_1", f"{QUERY}_1_2")
HOSTILE = {
    "a negative scale": (put(f"{FFN}.scale", np.float32(-1)), "scale is negative"),
    "minus zero": (put(f"{FFN}.scale", np.float32(-0.0)), "scale is negative"),
    "an infinite scale": (put(f"{FFN}.scale", np.float32(np.inf)), "NaN or infinity"),
    "a NaN scale": (put(f"{WORD}.scale", np.float16(np.nan)), "NaN or infinity"),
    "a NaN bias": (put("pooler/bias", np.float16(np.nan)), "NaN or infinity"),
    "a padding bit": (put(f"{WORD}.codes", np.uint8([0, 0x10])), "padding bits"),
    "a byte of no trits": (put(f"{FFN}.codes", np.uint8([243])), f"{FFN}: .*over 242"),
    "a padding trit": (
        put(f"{FFN}.codes", np.uint8([0] * 6 + [9])),
        "padding fields are not zero",
    ),
    "4 bits in place of 8": (
        meta("packed", lambda p: p[POOLER].update(bits=4)),
        rf"{POOLER}.codes: expected U8 \(12, 6\)",
    ),
    "1.6 bits in version 2": (text("version", "2"), r"bits are one of 1, 2, 8\n"),
    "two bits as a fraction": (
        meta("packed", lambda p: p[FFN].update(bits=2.0)),
        "bits are one of 1, 2, 8, 1.6",
    ),
    "one bit as a truth": (
        meta("packed", lambda p: p[WORD].update(bits=True)),
        "bits are one of",
    ),
    "a wrong dtype": (entry("pooler/bias", dtype="I16"), "dtype is none of"),
    "a dtype that is no text": (
        entry("pooler/bias", dtype=["F16"]),
        "dtype is none of",
    ),
    "bytes in a float's place": (
        entry("pooler/bias", dtype="U8", shape=[24]),
        "expected F16 or F32",
    ),
    "another shape": (
        entry("pooler/bias", shape=[6, 2]),
        r"expected F16 or F32 \(12,\)",
    ),
    "a huge shape": (
        entry("pooler/bias", shape=[1 << 60]),
        "shape and offsets disagree",
    ),
    "a negative shape": (entry("pooler/bias", shape=[-12]), "not whole numbers"),
    "a shape of truths": (entry("pooler/bias", shape=[True]), "not whole numbers"),
    "an offset beyond": (
        lambda h, d: h["tokenizer"].update(
            shape=[h["tokenizer"]["shape"][0] + 9],
            data_offsets=[h["tokenizer"]["data_offsets"][0], len(d) + 9],
        ),
        "where the header says",
    ),
    "bytes after the end": (lambda h, d: d.extend(b"more"), "where the header says"),
    "overlapping tensors": (
        lambda h, d: h["pooler/bias"].update(h["classifier/bias"], shape=[3]),
        "not where the tensor before it ends",
    ),
    "more in an entry": (entry("pooler/bias", more=1), "more or less than a tensor"),
    "a missing tensor": (drop, "not where the tensor before it ends"),
    "an unknown key": (text("more", "1"), "unknown or missing keys: .'more'."),
    "another version": (text("version", "4"), "version '4', where 1, 2, 3 are"),
    "another format": (text("format", "gguf"), "no packed student"),
    "a number among the texts": (text("version", 1), "not a table of texts"),
    "a config of a list": (text("config", "[]"), "not those of a BertConfig"),
    "a config that is no JSON": (text("config", "{"), "config: "),
    "a double key": (text("config", '{"a":1,"a":2}'), "the key 'a' is there twice"),
    "a deep config": (text("config", "[" * 100_000), "config: "),
    "a wide config": (
        meta("config", lambda c: c.update(hidden_size=1 << 40)),
        "the configuration asks for",
    ),
    "a tall config": (
        meta("config", lambda c: c.update(num_hidden_layers=999)),
        "more layers than there are tensors",
    ),
    "a config of text": (
        meta("config", lambda c: c.update(vocab_size="20")),
        "vocab_size cannot be 20",
    ),
    "a config of truth": (
        meta("config", lambda c: c.update(num_labels=True)),
        "num_labels cannot be True",
    ),
    "a config of infinity": (
        lambda h, d: h["__metadata__"].update(
            config=h["__metadata__"]["config"].replace("1e-12", "1e999")
        ),
        "1e999 is no number",
    ),
    "a config of NaN": (
        meta("config", lambda c: c.update(layer_norm_eps=float("nan"))),
        "NaN is no number",
    ),
    "a config of nothing": (
        meta("config", lambda c: c.update(vocab_size=0)),
        "vocab_size must be at least 1",
    ),
    "an unknown field": (meta("config", lambda c: c.update(more=1)), "not those of"),
    "labels without a number": (
        meta("config", lambda c: c.update(id2label={"0": "a", "2": "b", "1": "c"})),
        "does not number 3 labels",
    ),
    "labels that are no texts": (
        meta("config", lambda c: c.update(id2label={"0": "a", "1": "b", "2": 3})),
        "not a text",
    ),
    "3 bits": (
        meta("packed", lambda p: p[FFN].update(bits=3)),
        "bits are one of 1, 2, 8",
    ),
    "other bits": (
        meta("packed", lambda p: p[FFN].update(bits=1)),
        r"expected U8 \(12, 4\)",
    ),
    "no groups": (
        meta("packed", lambda p: p[FFN].update(groups=[1, 0])),
        "groups do not",
    ),
    "odd groups": (
        meta("packed", lambda p: p[FFN].update(groups=[1, 5])),
        "groups do not",
    ),
    "groups of others": (
        meta("packed", lambda p: p[FFN].update(groups=[12, 1])),
        r"scale: expected F16 or F32 \(12, 1\)",
    ),
    "another shape packed": (
        meta("packed", lambda p: p[FFN].update(shape=[32, 12])),
        "the configuration asks for",
    ),
    "a packed vector": (
        meta("packed", lambda p: p.update({"pooler/bias": p[FFN]})),
        "no matrix of this model",
    ),
    "a packed nothing": (
        meta("packed", lambda p: p.update({"../../etc/passwd": p[FFN]})),
        "no matrix of this model",
    ),
    "one half": (meta("packed", lambda p: p.pop(f"{QUERY}_2").clear()), "two halves"),
    "halves and a whole": (
        meta("packed", lambda p: p.update({QUERY: p[f"{QUERY}_1"]})),
        "two halves, and no whole",
    ),
    "halves of a vector": (
        meta("packed", lambda p: p.update(dict.fromkeys(BIASES, p[FFN]))),
        "no matrix of this model",
    ),
    "halves of a half": (
        meta("packed", lambda p: p.update(dict.fromkeys(QUARTERS, p[FFN]))),
        "expected two halves, and no whole",
    ),
    "a third half": (
        meta("packed", lambda p: p.update({f"{QUERY}_3": p[FFN]})),
        "no matrix of this model",
    ),
    "halves in version 1": (text("version", "1"), "no matrix of this model"),
    "halves that are not stored": (
        meta(
            "packed",
            lambda p: p.update(
                {f"{POOLER}_1": p[POOLER], f"{POOLER}_2": p.pop(POOLER)}
            ),
        ),
        "pooler/kernel.codes' is unknown",
    ),
    "a negative scale of a half": (
        put(f"{QUERY}_2.scale", np.float32(-1)),
        f"{QUERY}: a scale is negative",
    ),
    "a padding bit of a half": (
        put(f"{QUERY}_1.codes", np.uint8([0, 0x10])),
        f"{QUERY}: padding bits",
    ),
    "less in packed": (
        meta("packed", lambda p: p[FFN].pop("bits") * 0),
        "expected bits",
    ),
    "packed as a list": (text("packed", "[]"), "packed: not a JSON object"),
    "unpacked": (meta("packed", lambda p: {**p, FFN: None}), "expected bits"),
    "extras as a list": (text("extras", "[]"), "extras: not a JSON object"),
    "an unknown class": (
        text("act", '{"quantizer":"Popen","bits":8}'),
        "none of symmetric, asymmetric",
    ),
    "an act of less": (
        text("act", '{"quantizer":"symmetric"}'),
        "fields are not those",
    ),
    "an act of text": (
        meta("act", lambda a: a.update(bits="8")),
        "bits of symmetric cannot be .8.",
    ),
    "an act of 99 bits": (meta("act", lambda a: a.update(bits=99)), "bits must be"),
    "an act of too many": (
        meta("act", lambda a: [["pooler/input", a]] * 501),
        "more than 500 rules",
    ),
    "an act of no site": (
        meta("act", lambda a: [["encoder/nowhere", a]]),
        "matches no parameter path",
    ),
    "an act that learns, and no parameter": (
        text("act", '{"quantizer":"lsq","bits":4,"signed":true}'),
        "is missing",
    ),
    "an act of a number": (text("act", "1"), "neither a quantizer nor pairs"),
    "a slow regex": (
        meta("act", lambda a: [["(a+)+b", a]]),
        "no plain regex",
    ),
    "many repeats": (meta("act", lambda a: [[".*.*.*.*.*b", a]]), "too intricate"),
    "many ways": (
        meta("act", lambda a: [[r"(.|\w)" * 28 + "x", a]]),
        "too many or too intricate",
    ),
    "groups that do not divide": (
        meta("act", lambda a: a.update(groups=5)),
        "5 groups do not divide encoder/layer_0/attention/query/input",
    ),
    "labels without end": (
        meta("config", lambda c: c.update(num_labels=10**18, id2label={"0": "a"})),
        "does not number 1000000000000000000 labels",
    ),
    "a label that commands": (
        meta("config", lambda c: c.update(id2label=dict.fromkeys("012", "\x1b[2J"))),
        "control characters",
    ),
    "a huge number": (
        meta("config", lambda c: c.update(layer_norm_eps=10**400)),
        "layer_norm_eps cannot be 1000",
    ),
    "a negative epsilon": (
        meta("config", lambda c: c.update(layer_norm_eps=-1.0)),
        "layer_norm_eps must lie between",
    ),
    "layers for a few names": (
        meta("config", lambda c: c.update(num_hidden_layers=3)),
        "more layers than there are tensors",
    ),
    "no regex": (meta("act", lambda a: [["a(", a]]), "no regular"),
    "half a surrogate": (text("extras", '{"a": "\ud800"}'), "surrogates not allowed"),
    "no tokenizer": (tokenizer(b"no xz data, but text"), "not whole xz data"),
    "half a tokenizer": (tokenizer(lzma.compress(b"{}" * 999)[:-9]), "or cut"),
    "two tokenizers": (tokenizer(lzma.compress(b"{}") * 2), "followed by more"),
    "a tokenizer bomb": (tokenizer(lzma.compress(bytes(1 << 24))), "too long"),
    "a tokenizer of many parts": (
        tokenizer(lzma.compress(b"[" + b"[]," * 600_000 + b"[]]")),
        "more parts",
    ),
    "a tokenizer of no text": (tokenizer(lzma.compress(b"\xff")), "not UTF-8"),
    "a vocabulary without place": (
        tokenizer(lzma.compress(b'{"model":{"vocab":{}}}\n[PAD]')),
        "no place for it",
    ),
    "a tokenizer with a regex": (
        tokenizer(
            lzma.compress(
                b'{"model":{"type":"WordPiece","vocab":{"[UNK]":0}},"normalizer":'
                b'{"type":"Replace","pattern":{"Regex":"(a+)+b"},"content":""}}'
            )
        ),
        "its normalizer is 'Replace', none of",
    ),
    "a token of a row beyond": (
        tokenizer(lzma.compress(b'{"model":{"type":"BPE","vocab":{"[UNK]":20}}}')),
        "an id that the model has no row for",
    ),
    "double tokens": (
        tokenizer(lzma.compress(b'{"model":{"vocab":null}}\na\na')),
        "double tokens",
    ),
    "more tokens than rows": (
        tokenizer(
            lzma.compress(
                b'{"model":{"vocab":null}}' + b"".join(b"\n%d" % i for i in range(21))
            )
        ),
        "more than 20 tokens",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_the_right_checksum_is_refused(name, file):
    change, problem = HOSTILE[name]
    forged(file, change)
    with pytest.raises(DamagedFile, match=problem):
        packed_file.read_packed(file)


@pytest.mark.parametrize("version", ["1", "2"])
def test_an_older_version_is_read_as_ever(version, golden):
    path = golden / f"packed_v{version}.safetensors"
    found = packed_file.read_packed(path)
    assert found.config == CONFIG
    header, data = packedfiles.split(path)
    assert header["__metadata__"]["version"] == version
    values = packedfiles.dense(header, data)
    for path, leaf in trees.flatten(packing.unpack(found.params)).items():
        np.testing.assert_array_equal(leaf, values[path])


@pytest.mark.parametrize(
    ("rules", "halved", "version"),
    [
        (bf.xtc_1bit(), False, "1"),
        (bf.xtc_1bit(), True, "2"),
        (bf.xtc_2bit(), False, "3"),
        (bf.xtc_2bit(), True, "3"),
    ],
)
def test_a_file_names_the_lowest_version_that_knows_it(rules, halved, version, file):
    params = small.params(CONFIG)
    params = bf.split(params, bf.xtc_2bit()) if halved else params
    packed_file.save_packed(file, CONFIG, packing.pack(params, rules))
    header, _ = packedfiles.split(file)
    assert header["__metadata__"]["version"] == version
    packed_file.read_packed(file)


@pytest.mark.parametrize("version", ["1", "2"])
def test_an_older_version_is_written_again_as_the_same_weights(version, file, golden):
    old = golden / f"packed_v{version}.safetensors"
    found = packed_file.read_packed(old)
    packed_file.save_packed(file, *found)
    assert said(packed_file.read_packed(file)) == said(found)
    # Ternary fields shrink; nothing else changes.
    before, after = (packedfiles.split(path) for path in (old, file))
    shrunk = packedfiles.arrays(*after)
    for name, array in packedfiles.arrays(*before).items():
        if name == f"{FFN}.codes":
            assert (array.shape, shrunk[name].shape) == ((12, 8), (12, 7))
        else:
            np.testing.assert_array_equal(array, shrunk[name])


@pytest.mark.parametrize(
    ("fields", "problem"), [([0b110000], "holds 3"), ([0] * 7 + [0x40], None)]
)
def test_two_bits_of_an_older_version_are_checked(fields, problem, file, golden):
    file.write_bytes((golden / "packed_v1.safetensors").read_bytes())
    forged(file, put(f"{FFN}.codes", np.uint8(fields)))
    if problem is None:  # 32 fields fill their bytes
        packed_file.read_packed(file)
    else:
        with pytest.raises(DamagedFile, match=f"{FFN}: .*{problem}"):
            packed_file.read_packed(file)


def test_a_split_whose_halves_are_not_packed_is_not_written(file):
    found = packed_file.read_packed(file)
    flat = trees.flatten(found.params)
    whole = flat[QUERY].a
    assert isinstance(whole, Packed)
    flat[QUERY] = Split(whole, jnp.zeros(whole.shape))
    with pytest.raises(ConfigError, match=f"{QUERY}: its halves are not two packed"):
        packed_file.save_packed(file, found.config, trees.unflatten(flat))


def test_forging_nothing_changes_nothing(file):
    expected = said(packed_file.read_packed(file))
    forged(file, lambda header, data: None)
    assert said(packed_file.read_packed(file)) == expected


def test_a_wrong_checksum_is_said(file):
    raw = bytearray(good())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedFile, match="SHA-256 of its contents"):
        packed_file.read_packed(file)


def test_a_double_tensor_is_refused(file):
    header, data = packedfiles.split(file)
    line = json.dumps({"pooler/bias": header["pooler/bias"]})[1:-1].encode()
    doubled = json.dumps(header).encode()[:-1] + b"," + line + b"}"
    packedfiles.join(file, doubled, data)
    with pytest.raises(DamagedFile, match="'pooler/bias' is there twice"):
        packed_file.read_packed(file)


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_too_much_is_not_read(file, length):
    file.write_bytes(struct.pack("<Q", length) + good()[8:])
    with pytest.raises(DamagedFile, match=r"over 1048576|ends in its header"):
        packed_file.read_packed(file)


def test_a_large_deep_header_is_refused_in_bounded_memory(file):
    packedfiles.join(file, b"[" * (1 << 20), b"")
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFile):
            packed_file.read_packed(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * file.stat().st_size + (64 << 20)


def test_narrow_keeps_every_value():
    x = np.array([0.5, 65504.0, 2.0**-24, 0.0], np.float32)
    assert tensors.narrow(x).dtype == np.float16
    for other in (0.1, 65505.0, 2.0**-25, 1e30):
        exact = tensors.narrow(np.array([*x, other], np.float32))
        assert exact.dtype == np.float32
        assert exact[-1] == np.float32(other)
