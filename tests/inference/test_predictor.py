import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import bitflax as bf
from bitflax.data import examples
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError, DamagedFile, DataError, InputMissing
from bitflax.inference import engines
from bitflax.inference import predictor as inference_predictor
from bitflax.model import pretrained
from bitflax.packed import file, packing
from tests.helpers import small

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrst"]
LABELS = {0: "no", 1: "yes", 2: "perhaps"}
CONFIG = small.config(2, id2label=LABELS)
TEXTS = ["a", "b c d", "e f g h i j k l m n", "b", "o p q", "a b", "t"]


@functools.cache
def tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", 3), ("[CLS]", 2)
    )
    return Tokenizer(made)


@functools.cache
def params(labels=3):
    made = bf.init_params(small.config(2, num_labels=labels), jax.random.key(0))
    return jax.tree.map(lambda w: 6 * w if w.ndim == 2 else w, made)


@functools.cache
def compiled(config, act=None):
    return jax.jit(bf.bert(config, act))


def alone(text, config=CONFIG, tree=None, act=None):
    """The logits of one text in a batch of its own, of the longest length."""
    ids, types = [2], [0]
    for number, part in enumerate((text,) if isinstance(text, str) else text):
        found = [*(WORDS.index(word) for word in part.split()), 3]
        ids += found
        types += [number] * len(found)
    rows = np.zeros((3, 1, 16), np.int32)
    rows[:, 0, : len(ids)] = ids, types, np.ones(len(ids))
    names = ("input_ids", "token_type_ids", "attention_mask")
    batch = dict(zip(names, rows, strict=True))
    return compiled(config, act)(tree or params(), batch).logits[0]


@pytest.fixture
def packed_file(tmp_path):
    path = tmp_path / "model.safetensors"
    packed = packing.pack(params(), bf.xtc_1bit())
    file.save_packed(path, CONFIG, packed, None, tokenizer())
    return path


@pytest.fixture(scope="module")
def predictor():
    return inference_predictor.Predictor(CONFIG, params(), tokenizer())


def test_logits_are_those_of_each_text_alone(predictor):
    logits = predictor.logits(TEXTS, batch_size=4)
    for row, text in zip(logits, TEXTS, strict=True):
        np.testing.assert_allclose(row, alone(text), atol=2e-5)


def test_logits_do_not_depend_on_the_company(predictor):
    whole = predictor.logits(TEXTS, batch_size=4)
    for size in (1, 2, 32):
        np.testing.assert_allclose(predictor.logits(TEXTS, size), whole, atol=2e-5)
    np.testing.assert_allclose(predictor.logits(TEXTS[::-1])[::-1], whole, atol=2e-5)


def test_pairs_have_two_token_types(predictor):
    pairs = [("a b", "c"), ("d", "e f g")]
    logits = predictor.logits(pairs)
    for row, pair in zip(logits, pairs, strict=True):
        np.testing.assert_allclose(row, alone(pair), atol=2e-5)


def test_predictions_say_label_probability_and_text(predictor):
    logits = predictor.logits(TEXTS)
    for row, said in zip(logits, predictor.predict(TEXTS), strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        assert said.label == LABELS[int(row.argmax())]
        assert said.probability == pytest.approx(shares.max(), rel=1e-5)
    assert [said.text for said in predictor.predict(TEXTS)] == TEXTS
    assert len({said.label for said in predictor.predict(TEXTS)}) > 1


def test_no_texts_are_no_predictions(predictor):
    assert predictor.predict([]) == []
    assert predictor.logits([]).shape == (0, 3)


def test_large_logits_are_no_nan():
    tree = {
        **params(),
        "classifier": {
            "kernel": jnp.zeros((16, 3)),
            "bias": jnp.array([0.0, 1e4, -1e4]),
        },
    }
    (said,) = inference_predictor.Predictor(CONFIG, tree, tokenizer()).predict(["a"])
    assert said == ("yes", 1.0, "a")


def test_a_regression_gives_real_numbers():
    config = small.config(2, num_labels=1, problem_type="regression")
    found = inference_predictor.Predictor(config, params(1), tokenizer())
    for said in found.predict(TEXTS):
        expected = float(alone(said.text, config, params(1))[0])
        assert said.label == pytest.approx(expected, abs=2e-5)
        assert math.isnan(said.probability)


def shapes_of(predictor):
    """Return the set of shapes that a predictor's engine is going to be called with."""
    shapes, engine = set(), predictor._engine

    def counted(batch):
        shapes.add(batch["input_ids"].shape)
        return engine(batch)

    predictor._engine = counted
    return shapes


def test_few_shapes_compile():
    found = inference_predictor.Predictor(CONFIG, params(), tokenizer())
    shapes = shapes_of(found)
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 8, 20, 33, 40, 64):
        words = [
            " ".join(rng.choice(WORDS[4:], rng.integers(1, 12))) for _ in range(count)
        ]
        found.logits(words)
    # Rows are powers of two up to 32; lengths 8, 12 and 16 (all the positions).
    assert {rows for rows, _ in shapes} == {1, 2, 4, 8, 32}
    assert {length for _, length in shapes} <= {8, 12, 16}


def test_an_accelerator_pads_to_one_length(monkeypatch):
    found = inference_predictor.Predictor(CONFIG, params(), tokenizer())
    texts = [WORDS[4]] * 800 + [" ".join(WORDS[4:7] * 4)]
    shapes = shapes_of(found)
    expected = found.logits(texts)
    assert {length for _, length in shapes} == {8, 16}
    shapes.clear()
    monkeypatch.setattr(engines, "_has_accelerator", lambda: True)
    np.testing.assert_allclose(found.logits(texts), expected, atol=2e-5)
    assert shapes == {(32, 16)}


def test_long_texts_are_cut():
    cut = inference_predictor.Predictor(CONFIG, params(), tokenizer(), max_length=6)
    row = cut.logits(["a b c d e f g h"])[0]
    np.testing.assert_allclose(row, alone("a b c d"), atol=2e-5)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["a", 3], "text 2: expected a text, found int 3"),
        (["a", ("b", "c")], "text 2: expected a text"),
        ([("a", "b"), "c"], "text 2: expected a pair of texts"),
        ([("a", "b", "c")], "text 1: expected a pair of texts"),
        ([None], "text 1: expected a"),
    ],
)
def test_what_is_no_text_is_named(predictor, texts, problem):
    with pytest.raises(DataError, match=problem):
        predictor.predict(texts)


def test_a_tokenizer_of_another_model_is_refused():
    config = small.config(2, vocab_size=10)
    with pytest.raises(
        ConfigError, match="24 tokens, but the model's vocab_size is 10"
    ):
        inference_predictor.Predictor(config, params(), tokenizer())


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ConfigError, match="max_position_embeddings is 16"):
        inference_predictor.Predictor(CONFIG, params(), tokenizer(), max_length=17)


def test_a_packed_file_predicts_what_its_tree_does(packed_file):
    found = inference_predictor.load(packed_file)
    _, packed = file.load_packed(packed_file)
    for row, text in zip(found.logits(TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(row, alone(text, tree=packed), atol=2e-5)
    assert found.config == CONFIG


def test_activation_quantizers_travel_along(tmp_path):
    path, act = tmp_path / "m", bf.symmetric(bits=4)
    packed = packing.pack(params(), bf.xtc_1bit())
    file.save_packed(path, CONFIG, packed, act, tokenizer())
    found = inference_predictor.load(path)
    assert found.act == act
    row = found.logits(["a b c"], batch_size=1)[0]
    coarse, exact = alone("a b c", tree=packed, act=act), alone("a b c", tree=packed)
    assert np.abs(row - coarse).max() < 0.1 * np.abs(exact - coarse).max()


def test_the_length_of_training_travels_along(tmp_path):
    packed = packing.pack(params(), ())
    file.save_packed(
        tmp_path / "m", CONFIG, packed, None, tokenizer(), {"max_length": 6}
    )
    assert inference_predictor.load(tmp_path / "m").max_length == 6
    # From there into a folder, and from a folder again.
    out = bf.export(tmp_path / "m", tmp_path / "hf")
    assert inference_predictor.load(out).max_length == 6
    again = bf.export(out, tmp_path / "again")
    assert inference_predictor.load(again).max_length == 6


@pytest.mark.parametrize("engine", ["jax", "onnx"])
def test_a_token_type_beyond_the_table_is_refused(engine):
    one = dataclasses.replace(CONFIG, type_vocab_size=1)
    tree = params() | {}
    tree["embeddings"] = tree["embeddings"] | {
        "token_type": {"embedding": tree["embeddings"]["token_type"]["embedding"][:1]}
    }
    found = inference_predictor.Predictor(one, tree, tokenizer(), engine=engine)
    assert found.logits(["a b"]).shape == (1, 3)
    with pytest.raises(ConfigError, match="2 token types"):
        found.predict([("a", "b")])


@pytest.mark.parametrize("limit", [0, 17, "6", True, None])
def test_a_length_that_makes_no_sense_is_not_used(tmp_path, limit):
    packed = packing.pack(params(), ())
    file.save_packed(
        tmp_path / "m", CONFIG, packed, None, tokenizer(), {"max_length": limit}
    )
    assert inference_predictor.load(tmp_path / "m").max_length == 16


def test_a_packed_file_without_tokenizer_is_said(tmp_path):
    file.save_packed(tmp_path / "m", CONFIG, packing.pack(params(), ()))
    with pytest.raises(InputMissing, match="no tokenizer"):
        inference_predictor.load(tmp_path / "m")


def test_a_packed_file_with_something_else_for_a_tokenizer_is_said(tmp_path):
    packed = packing.pack(params(), ())
    text = '{"model":{"type":"WordPiece","vocab":{"[UNK]":0}}}'
    file.save_packed(tmp_path / "m", CONFIG, packed, tokenizer=text)
    with pytest.raises(DamagedFile, match="expected a tokenizer"):
        inference_predictor.load(tmp_path / "m")


def write_stage(run, number, name, factor=1.0):
    tree = jax.tree.map(lambda w: factor * w, params())
    folder = run / f"{number}-{name}"
    folder.mkdir()
    pretrained.save_pretrained(folder / "params", CONFIG, tree, tokenizer())


def write_recipe(run, **stages):
    found = [
        {"name": name, "rules": rules, "act": None} for name, rules in stages.items()
    ]
    (run / "recipe.json").write_text(json.dumps({"recipe": {"stages": found}}))


def test_a_run_predicts_with_its_packed_file(packed_file):
    expected = inference_predictor.load(packed_file).logits(TEXTS)
    np.testing.assert_array_equal(
        inference_predictor.load(packed_file.parent).logits(TEXTS), expected
    )


def test_a_run_without_one_predicts_with_its_last_stage(tmp_path):
    write_stage(tmp_path, 9, "fp32", factor=0.5)
    write_stage(tmp_path, 10, "longer")
    write_recipe(tmp_path, fp32=[], longer=[])
    rows = inference_predictor.load(tmp_path).logits(TEXTS)
    np.testing.assert_allclose(rows[1], alone(TEXTS[1]), atol=2e-5)


def test_latent_weights_do_not_pass_for_the_model(tmp_path, caplog):
    write_stage(tmp_path, 1, "fp32")
    write_stage(tmp_path, 2, "1bit")
    write_recipe(tmp_path, fp32=[], **{"1bit": [["encoder/.*", "binarize"]]})
    with pytest.raises(
        ConfigError, match="2-1bit: this stage trains quantised weights"
    ):
        inference_predictor.load(tmp_path)
    inference_predictor.load(tmp_path / "1-fp32" / "params")
    assert "latent" not in caplog.text
    rows = inference_predictor.load(tmp_path / "2-1bit" / "params").logits(["a"])
    np.testing.assert_allclose(rows[0], alone("a"), atol=2e-5)
    assert "params: latent weights: the student computes with" in caplog.text


def test_a_folder_of_nothing_is_said(tmp_path):
    with pytest.raises(InputMissing, match=r"neither a packed model\.safetensors"):
        inference_predictor.load(tmp_path)


def test_a_path_of_nothing_is_said(tmp_path):
    with pytest.raises(InputMissing, match="no such file"):
        inference_predictor.load(tmp_path / "nowhere")


def task(labels, names, regression=False):
    dev = examples.Examples(
        (examples.object_column(TEXTS),), labels, np.arange(1, len(TEXTS) + 1)
    )
    return examples.Task("mine", dev, dev, names, "accuracy", regression)


def test_the_score_matches_labels_by_their_names(predictor):
    said = [row.argmax() for row in predictor.logits(TEXTS)]
    names = ("perhaps", "no", "yes")
    right = np.array([names.index(LABELS[int(i)]) for i in said], np.int32)
    assert predictor.score(task(right, names)) == {"accuracy": 1.0}
    assert predictor.score(task((right + 1) % 3, names)) == {"accuracy": 0.0}


def test_the_score_keeps_labels_apart_that_differ_in_case():
    names = {0: "polish", 1: "Polish", 2: "other"}
    config = dataclasses.replace(CONFIG, id2label=names)
    found = inference_predictor.Predictor(config, params(), tokenizer())
    said = np.argmax(found.logits(TEXTS), axis=1)
    right = np.array([1, 0, 2], np.int32)[said]
    its = ("Polish", "polish", "other")
    assert found.score(task(right, its)) == {"accuracy": 1.0}
    with pytest.raises(ConfigError, match="the model's are polish, Polish"):
        found.score(task(right, ("POLISH", "polish", "other")))


def test_the_score_says_how_far_it_is(predictor):
    right, seen = np.zeros(len(TEXTS), np.int32), []
    predictor.score(task(right, ("no", "yes", "perhaps")), 4, seen.append)
    assert sum(seen) == len(TEXTS)
    assert len(seen) == 2


def test_the_score_of_a_model_without_names_goes_by_number():
    found = inference_predictor.Predictor(small.config(2), params(), tokenizer())
    right = np.argmax(found.logits(TEXTS), axis=1).astype(np.int32)
    assert found.score(task(right, ("x", "y", "z"))) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("names", "regression"),
    [(("no", "yes"), False), (("a", "b", "c"), False), ((), True)],
)
def test_another_tasks_labels_are_refused(predictor, names, regression):
    labels = np.zeros(len(TEXTS), np.float32 if regression else np.int32)
    with pytest.raises(ConfigError, match="the model's are no, yes, perhaps"):
        predictor.score(task(labels, names, regression))


def test_a_score_needs_labels(predictor):
    with pytest.raises(DataError, match="no labels"):
        predictor.score(task(None, ("no", "yes", "perhaps")))


def test_one_text_for_a_model_of_pairs_is_refused():
    one = small.config(2)
    found = inference_predictor.Predictor(one, params(), tokenizer(), pairs=True)
    with pytest.raises(DataError, match="trained on pairs of texts") as caught:
        found.predict(["a"])
    assert "--pair" in caught.value.fix
    assert found.predict([]) == []
    (said,) = found.predict([("a", "b")])
    (shares,) = found.probabilities([("a", "b")])
    assert shares.sum() == pytest.approx(1, abs=1e-6)
    assert said.probability == shares.max()


def test_a_pair_for_a_model_of_single_texts_is_refused():
    one = small.config(2)
    found = inference_predictor.Predictor(one, params(), tokenizer(), pairs=False)
    for ask in (found.predict, found.logits, found.probabilities):
        with pytest.raises(DataError, match="trained on single texts, found a pair"):
            ask([("a", "b")])
    assert len(found.predict(["a"])) == 1
    assert found.predict([]) == []


@pytest.mark.parametrize(
    ("extras", "known"),
    [
        ({"pairs": False}, False),
        ({"pairs": True}, True),
        ({"pairs": 1}, None),
        ({}, None),
    ],
)
def test_a_file_says_whether_its_model_knows_pairs(extras, known, tmp_path):
    path, text = tmp_path / "model.safetensors", tokenizer().to_json()
    packed = bf.pack(params(), bf.xtc_1bit())
    bf.save_packed(path, small.config(2), packed, tokenizer=text, extras=extras)
    assert bf.load(path, "jax").pairs is known


@pytest.mark.parametrize("texts", ["a b", b"a b", {"a": 1}, {"a", "b"}])
def test_what_is_no_list_of_texts_is_refused(predictor, texts):
    asks = (predictor.predict, predictor.logits, predictor.probabilities)
    for ask in (
        asks if isinstance(texts, str | bytes) else [inference_predictor._listed]
    ):
        with pytest.raises(TypeError, match="put it in a list"):
            ask(texts)


@pytest.mark.parametrize("text", ["", " ", "\u200b", ("a", "")])
def test_an_empty_text_is_refused_as_in_a_file(predictor, text):
    with pytest.raises(DataError, match="found an empty text"):
        predictor.predict([text])


@pytest.mark.parametrize("size", [0, -1, True])
def test_a_batch_is_of_one_text_or_more(predictor, size):
    with pytest.raises(ValueError, match="batch_size must be at least 1 and whole"):
        predictor.predict(["a", "b"], batch_size=size)


def test_a_text_with_a_nul_is_named(predictor):
    with pytest.raises(DataError, match="a NUL") as caught:
        predictor.predict(["a", "b\0"])
    assert caught.value.place == "text 2"
