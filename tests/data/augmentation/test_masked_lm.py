"""The masked LM: its head against numpy, its batches against one input at a time."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.data.augmentation import masked_lm, words
from bitflax.errors import ConfigError, DamagedFile
from bitflax.model import apply, hf_weights
from tests.helpers import augmenting
from tests.helpers.augmenting import CONFIG


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return augmenting.save_masked(tmp_path_factory.mktemp("masked") / "lm")


@pytest.fixture(scope="module")
def lm(folder):
    return masked_lm.load_masked_lm(folder)


@pytest.fixture(scope="module")
def inputs():
    """Inputs of 7, 11 and 21 tokens."""
    rng, special = np.random.default_rng(0), words.Special(2, 3, 4)
    made = []
    for size in rng.choice([2, 4, 9], 60).tolist():
        pieces = [[number] for number in rng.integers(5, 39, size).tolist()]
        made.append(words.masked(pieces, int(rng.integers(size)), special))
    return made


def ask(lm, each):
    """Return the logits of one input without any padding."""
    batch = {
        "input_ids": np.array([each.ids]),
        "attention_mask": np.ones((1, len(each.ids)), np.int32),
        "token_type_ids": np.array([each.types]),
    }
    return np.asarray(lm.logits(lm._params, lm._head, batch, np.array([each.place])))[0]


def by_numpy(state, hidden):
    """Compute the head of BertForMaskedLM in float64."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    head = "cls.predictions"
    x = hidden @ state[f"{head}.transform.dense.weight"].T
    x = x + state[f"{head}.transform.dense.bias"]
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = (x - x.mean()) / np.sqrt(x.var() + CONFIG.layer_norm_eps)
    x = x * state[f"{head}.transform.LayerNorm.weight"]
    x = x + state[f"{head}.transform.LayerNorm.bias"]
    table = state.get(f"{head}.decoder.weight")
    if table is None:
        table = state["bert.embeddings.word_embeddings.weight"]
    return table @ x + state[f"{head}.bias"]


def last_hidden(state, each):
    heads = masked_lm._without_heads(CONFIG)
    params = hf_weights.params_from_hf(heads | state, CONFIG)
    batch = {
        "input_ids": jnp.array([each.ids]),
        "attention_mask": jnp.ones((1, len(each.ids))),
        "token_type_ids": jnp.array([each.types]),
    }
    return np.asarray(apply.bert(CONFIG)(params, batch).hidden[-1])[0, each.place]


def assert_logits(found, expected):
    kept = slice(5, 39)  # neither [..] nor the row without a word
    np.testing.assert_allclose(found[kept], expected[kept], rtol=2e-5, atol=2e-5)
    assert (found[:5] < -1e8).all()
    assert found[39] < -1e8


def test_logits_are_those_of_the_head_by_numpy(lm, inputs):
    state = {
        name: array
        for name, array in augmenting.masked_state().items()
        if name.startswith("cls.") or "embeddings" in name or "encoder" in name
    }
    expected = by_numpy(state, last_hidden(state, inputs[0]))
    assert_logits(ask(lm, inputs[0]), expected)


def test_a_decoder_of_its_own_is_taken_where_the_config_says_so(tmp_path, inputs):
    state = augmenting.masked_state()
    rng = np.random.default_rng(1)
    own = rng.normal(size=(CONFIG.vocab_size, CONFIG.hidden_size)).astype(np.float32)
    whole = state | {"cls.predictions.decoder.weight": own}
    expected = by_numpy(whole, last_hidden(state, inputs[0]))
    folder = augmenting.save_masked(tmp_path, whole, tie_word_embeddings=False)
    assert_logits(ask(masked_lm.load_masked_lm(folder), inputs[0]), expected)
    tied = masked_lm.load_masked_lm(augmenting.save_masked(tmp_path, whole))
    assert_logits(ask(tied, inputs[0]), by_numpy(state, last_hidden(state, inputs[0])))


def test_old_names_are_known(tmp_path, lm, inputs):
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .replace("predictions.bias", "predictions.decoder.bias"): array
        for name, array in augmenting.masked_state().items()
    }
    old = masked_lm.load_masked_lm(augmenting.save_masked(tmp_path, renamed))
    np.testing.assert_array_equal(ask(old, inputs[0]), ask(lm, inputs[0]))


def test_batches_answer_as_one_at_a_time(lm, inputs):
    found = lm(inputs, 5)
    for each, best in list(zip(inputs, found, strict=True))[:6]:
        logits = ask(lm, each)
        # Padding may move the last bit, and turn two words that are as likely.
        assert logits[best] == pytest.approx(np.sort(logits)[::-1][:5], abs=1e-4)


def test_an_answer_does_not_depend_on_its_company(lm, inputs):
    found = lm(inputs, 5)
    assert [best for each in inputs for best in lm([each], 5)] == found
    order = np.random.default_rng(2).permutation(len(inputs))
    assert lm([inputs[i] for i in order], 5) == [found[i] for i in order]


def test_nothing_asked_is_nothing_answered(lm):
    assert lm([], 5) == []


def test_special_tokens_are_never_likely(lm, inputs):
    for best in lm(inputs[:1], 34):
        assert sorted(best) == list(range(5, 39))


def test_a_model_of_one_token_type_is_asked_with_one(tmp_path, inputs):
    state = augmenting.masked_state()
    name = "bert.embeddings.token_type_embeddings.weight"
    single = masked_lm.load_masked_lm(
        augmenting.save_masked(
            tmp_path, state | {name: state[name][:1]}, type_vocab_size=1
        )
    )
    batch, _ = single._padded(inputs[:1], 64)
    assert batch["token_type_ids"].max() == 0


def test_loading_is_quiet(folder, caplog):
    masked_lm.load_masked_lm(folder)
    assert not caplog.records


def test_a_model_without_the_head_is_refused(tmp_path):
    state = augmenting.masked_state()
    body = {n: array for n, array in state.items() if not n.startswith("cls.")}
    with pytest.raises(ConfigError, match="expected a masked LM's head"):
        masked_lm.load_masked_lm(augmenting.save_masked(tmp_path, body))


@pytest.mark.parametrize(
    "name", ["cls.predictions.transform.dense.bias", "cls.predictions.bias"]
)
@pytest.mark.parametrize("lost", [True, False])
def test_a_head_that_does_not_fit_is_refused(tmp_path, name, lost):
    state = augmenting.masked_state()
    array = state.pop(name)
    if not lost:
        state[name] = array[:-1]
    with pytest.raises(DamagedFile, match=rf"{name}: expected shape"):
        masked_lm.load_masked_lm(augmenting.save_masked(tmp_path, state))


def test_a_tokenizer_of_more_words_is_refused(tmp_path):
    state = augmenting.masked_state()
    name = "bert.embeddings.word_embeddings.weight"
    state |= {name: state[name][:30], "cls.predictions.bias": np.zeros(30, np.float32)}
    with pytest.raises(ConfigError, match="39 tokens, but the model has 30"):
        masked_lm.load_masked_lm(augmenting.save_masked(tmp_path, state, vocab_size=30))
