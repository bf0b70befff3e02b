"""What a run finds in its answers and its weights, against counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.data.examples import Examples, Task
from bitflax.runs import findings


def a_task():
    texts = np.array(["one", "two", "three", "four"], object)
    rows = Examples((texts,), np.array([0, 0, 1, 2], np.int32), np.arange(4))
    return Task("t", rows, rows, ("a", "b", "c"), "accuracy")


def logits(said, sure=4.0):
    return np.eye(3, dtype=np.float32)[said] * np.reshape(sure, (-1, 1))


def test_answers_count_classes_and_disagreements():
    teacher, student = logits([0, 0, 1, 2]), logits([0, 1, 1, 0], (4, 3, 4, 5))
    found = findings.answers(a_task(), teacher, student)
    assert [one["examples"] for one in found["classes"]] == [2, 1, 1]
    assert [one["teacher_f1"] for one in found["classes"]] == [1, 1, 1]
    f1 = [one["student_f1"] for one in found["classes"]]
    assert f1 == pytest.approx([1 / 2, 2 / 3, 0])
    assert found["confusion"]["student"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    surest, other = found["disagreements"]
    assert (surest["text"], surest["label"]) == ("four", "c")
    assert (surest["teacher"][0], surest["student"][0]) == ("c", "a")
    assert surest["student"][1] == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert other["text"] == "two"


@pytest.mark.parametrize(
    ("quantizer", "levels"),
    [(bf.binarize, [-1.0, 1.0]), (bf.ternarize, [-1.0, 0.0, 1.0])],
)
def test_latent_weights_lie_about_their_levels(quantizer, levels):
    w = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    rules = (("kernel", quantizer),)
    found = findings.latent_histogram({"kernel": jnp.asarray(w)}, rules)
    assert found["levels"] == levels
    assert sum(found["counts"]) == w.size
    scale = float(jnp.max(jnp.abs(quantizer(jnp.asarray(w)))))
    low = found["counts"][: findings.BINS // 2]
    assert sum(low) == np.sum(w < 0)
    inner = np.histogram(w / scale, found["edges"])[0]
    assert found["counts"][5:-5] == inner[5:-5].tolist()


def test_weights_without_levels_have_no_histogram():
    assert findings.latent_histogram({"kernel": jnp.ones(3)}, ()) is None
    rules = (("kernel", bf.symmetric(bits=8)),)
    assert findings.latent_histogram({"kernel": jnp.ones(3)}, rules) is None


def test_flips_are_shares_of_each_layer():
    start = {
        "embeddings": {"word": jnp.array([1.0, 2.0])},
        "encoder": {"layer_1": {"a": jnp.ones(3), "b": bf.Split(*jnp.ones((2, 1)))}},
    }
    flips = findings.sign_flips(start, (("embeddings/.*|encoder/.*", bf.binarize),))
    assert flips(start) == {"flips": {"embeddings": 0, "layer_1": 0}}
    now = {
        "embeddings": {"word": jnp.array([-1.0, 2.0])},
        "encoder": {
            "layer_1": {"a": jnp.array([1.0, -1, 1]), "b": bf.Split(*-jnp.ones((2, 1)))}
        },
    }
    assert flips(now)["flips"] == pytest.approx({"embeddings": 0.5, "layer_1": 0.6})
    assert findings.sign_flips(start, ()) is None
