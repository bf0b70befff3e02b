"""Forged weights, quantizers and tokenizers: what a packed file holds, made odd."""

import json
import lzma

import numpy as np

from tests.helpers import packedfiles
from tests.helpers.forgery import pick, twist
from tests.helpers.tinypacked import TOKENIZER


def values(rng, file) -> None:
    """Put odd numbers in a tensor: some are allowed, and must come back as they are."""
    name = pick(rng, [name for name in file.tensors if name != "tokenizer"])
    dtype, _, raw = file.tensors[name]
    array = np.frombuffer(raw, packedfiles.DTYPES[dtype]).copy()
    if dtype == "U8":
        new = rng.integers(0, 256, array.size)
    else:
        new = np.array([np.nan, np.inf, -np.inf, -1, -0.0, 0, 1e-8, 65504, 1e38, 0.5])
        new = rng.choice(new, array.size)
    with np.errstate(over="ignore"):
        chosen = rng.random(array.size) < rng.choice([0.02, 1.0])
        array[chosen] = new[chosen].astype(array.dtype)
    file.tensors[name][2] = array.tobytes()


def widths(rng, file) -> None:
    """Store floats wider, or narrower, than they were: both are allowed."""
    for name, (dtype, _, raw) in file.tensors.items():
        if dtype != "U8" and rng.random() < 0.5:
            other = "F16" if dtype == "F32" else "F32"
            kind = packedfiles.DTYPES[other]
            wide = np.frombuffer(raw, packedfiles.DTYPES[dtype])
            file.tensors[name][0] = other
            file.tensors[name][2] = wide.astype(kind).tobytes()


def bits(rng, file) -> None:
    """Store a packed matrix in other bits or groups, shapes and bytes as they ask."""
    packed = json.loads(file.meta["packed"])
    name = pick(rng, list(packed))
    rows, cols = packed[name]["shape"]
    b = pick(rng, [1, 1.6, 2, 4, 8])
    groups = [int(rng.choice([1, rows])), pick(rng, [1, 2, 3, cols, 5])]
    a_byte = {1: 8, 1.6: 5, 2: 4, 4: 2, 8: 1}[b]
    top, size = 243 if b == 1.6 else 256, -(-cols // a_byte)
    codes = rng.integers(0, top, (rows, size), np.uint8)
    if b == 2:
        codes &= 0x55
    codes[:, -1] = 0
    packed[name] |= {"bits": b, "groups": groups}
    file.tensors[f"{name}.codes"] = ["U8", [rows, size], codes.tobytes()]
    scale = rng.random(groups).astype("<f2")
    file.tensors[f"{name}.scale"] = ["F16", groups, scale.tobytes()]
    file.meta["packed"] = json.dumps(packed)
    file.meta["version"] = pick(rng, ["1", "2", "3", "3"])


def labels(rng, file) -> None:
    """Change the number of labels, weights and names with it: this is allowed."""
    config = json.loads(file.meta["config"])
    n = pick(rng, [1, 2, 7, 40, 2000])
    odd = ["a", "", "\u2603", "\t", "\x9b2J", "x" * 100]
    config["num_labels"] = n
    config["id2label"] = {str(i): f"{pick(rng, odd)}{i}" for i in range(n)}
    packed = json.loads(file.meta["packed"])
    packed.pop("classifier/kernel", None)
    for name in [name for name in file.tensors if name.startswith("classifier/")]:
        del file.tensors[name]
    width = config["hidden_size"]
    for name, shape in ("kernel", [width, n]), ("bias", [n]):
        new = rng.normal(size=shape).astype("<f4")
        file.tensors[f"classifier/{name}"] = ["F32", shape, new.tobytes()]
    file.meta |= {"config": json.dumps(config), "packed": json.dumps(packed)}


def vocabulary(rng, file) -> None:
    """Make a file of many words, which a few bytes hold: this is allowed, up to a size."""
    n = pick(rng, [41, 5000, 30_522, 131_072, 131_073])
    packed, name = json.loads(file.meta["packed"]), "embeddings/word/embedding"
    config = json.loads(file.meta["config"]) | {"vocab_size": n}
    _, cols = packed[name]["shape"]
    packed[name] = {"bits": 1, "shape": [n, cols], "groups": [1, 1]}
    codes = rng.integers(0, 256, (n, -(-cols // 8)), np.uint8)
    codes[:, -1] &= 2 ** ((cols - 1) % 8 + 1) - 1
    file.tensors[f"{name}.codes"] = ["U8", list(codes.shape), codes.tobytes()]
    file.tensors[f"{name}.scale"] = ["F16", [1, 1], b"\0\x38"]
    file.meta |= {"config": json.dumps(config), "packed": json.dumps(packed)}
    plain = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": None}}
    named = pick(rng, ["%x", "%d\u2603", "##%x"])
    words = ["[UNK]", *(named % i for i in range(n - 1))]
    text = "\n".join([json.dumps(plain), *words]).encode()
    file.tensors["tokenizer"] = ["U8", [0], lzma.compress(text, preset=0)]


def acts(rng, file) -> None:
    """Make activation quantizers up, with regexes that are slow, many, or wrong."""
    parts = [".*", r"\d+", "(.|\\w)", "(a+)+", "encoder", "/", "x", r"\w*", "(a|b|c)"]
    parts += ["[a-z]*", "?", r"(\w|.)?", "layer_0", "/input", "|", "(", r"\1", "ä*"]
    parts += [r"encoder/layer_\d+/", "(query|key)", "(?i)", r"\b", "+?", ".*/input"]

    def quantizer():
        kind = pick(rng, ["symmetric", "asymmetric", "clipped", "lsq", "elastic", "os"])
        fields = {
            "bits": pick(rng, [1, 2, 4, 8, 16, 17, 0, 8.0]),
            "axis": pick(rng, [-1, None, 0, 3, [0, -1], [2, -1], [], 10**30, True]),
            "levels": pick(rng, ["restricted", "full", "widened", ""]),
            "groups": pick(rng, [None, None, 1, 2, 5, 0, -1]),
        }
        if kind in ("lsq", "elastic"):
            return {"quantizer": kind, "bits": fields["bits"], "signed": True}
        if kind == "clipped":
            inner = {"quantizer": "symmetric", **fields}
            return {"quantizer": kind, "inner": inner, "at": pick(rng, [1.0, -1, 1e99])}
        return {"quantizer": kind, **fields}

    def regex():
        plain = [".*/input", ".*", "pooler/input", "encoder/.*", r".*/probs"]
        many = "".join(pick(rng, parts) for _ in range(rng.integers(1, 40)))
        return pick(rng, [*plain, many, "(.|\\w)" * 30, ".*" * int(rng.integers(9))])

    learned = [name for name in file.tensors if name.endswith(("/input", "/probs"))]
    for name in learned if rng.random() < 0.8 else ():
        del file.tensors[name]
    count = pick(rng, [1, 1, 2, 3, 50, 501])
    found = [[regex(), quantizer()] for _ in range(count)]
    file.meta["act"] = json.dumps(quantizer() if rng.random() < 0.3 else found)


def tokenizer_json(rng, file) -> None:
    """Twist the tokenizer's JSON."""
    tree = json.loads(json.dumps(TOKENIZER))
    for _ in range(rng.integers(1, 4)):
        twist(rng, tree)
    if rng.random() < 0.3:
        part = pick(rng, ["normalizer", "pre_tokenizer", "decoder", "post_processor"])
        kinds = ["Replace", "Split", "Precompiled", "Sequence", "NFKD", "ByteLevel"]
        kinds += ["Metaspace", "Strip", "Digits", "Punctuation", "RobertaProcessing"]
        odd = {"pattern": {"Regex": "(a+)+$"}, "content": "aa", "behavior": "Isolated"}
        tree[part] = {
            "type": pick(rng, kinds),
            **odd,
            "sep": ["b", 9],
            "cls": ["a", 99],
        }
    text = json.dumps(tree).encode()
    file.tensors["tokenizer"] = ["U8", [0], compressed(rng, text)]


def tokenizer_bytes(rng, file) -> None:
    """Put bombs, cuts and odd texts in the tokenizer's place."""
    size = int(rng.integers(1, 1 << 22))
    head = json.dumps(TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": None}})
    words = lambda n: "".join(f"\n{i:x}" for i in range(n))  # noqa: E731
    texts = [
        lambda: bytes(1 << 24),
        lambda: b"[" * size,
        lambda: b"[" + b"[]," * (size // 3) + b"[]]",
        lambda: b'"' + "\U0001f600".encode() + b"a" * size + b'"',
        lambda: b"\xff" * size,
        lambda: b"[" + b'"ab",' * (size // 5) + b"1]",
        lambda: b"\n" * size,
        lambda: b"{" + b",".join(b'"%d":{}' % i for i in range(size // 12)) + b"}",
        *[lambda n=n: (head + words(n)).encode() for n in (36, 40, 41, 140_000)],
    ]
    text = pick(rng, texts)()
    file.tensors["tokenizer"] = ["U8", [0], compressed(rng, text)]


def compressed(rng, text: bytes) -> bytes:
    """Compress with xz, mostly: whole, cut, doubled, or by filters of one's own."""
    ways = [
        *[lambda: lzma.compress(text, preset=0)] * 6,
        lambda: lzma.compress(text, preset=0)[: -int(rng.integers(1, 40))],
        lambda: lzma.compress(text, preset=0) * 2,
        lambda: lzma.compress(text, preset=0) + bytes(4),
        lambda: text[:100_000],
        lambda: lzma.compress(text, lzma.FORMAT_ALONE, preset=0),
        lambda: lzma.compress(
            text[:9999],
            filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}],
        ),
        lambda: lzma.compress(
            text,
            filters=[
                {"id": lzma.FILTER_DELTA, "dist": 5},
                {"id": lzma.FILTER_LZMA2, "preset": 0},
            ],
        ),
    ]
    return pick(rng, ways)()


CHANGES = [values] * 3 + [widths, bits, bits, labels, vocabulary, acts, acts]
CHANGES += [tokenizer_json, tokenizer_json, tokenizer_bytes]
