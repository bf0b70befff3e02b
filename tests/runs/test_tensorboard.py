"""What TensorBoard is shown besides numbers: weights by layer, and texts."""

import jax
import numpy as np
import pytest

from bitflax.model import Split
from bitflax.runs import tensorboard
from tests.runs.test_log import summaries


@pytest.fixture
def shown(tmp_path):
    return tensorboard.TensorBoard(tmp_path)


def histograms(folder):
    return {(step, v.tag): v.histo for step, v in summaries(folder) if v.histo.num}


def tree(seed):
    draw = jax.random.normal
    keys = jax.random.split(jax.random.key(seed), 4)
    split = Split(draw(keys[0], (4, 8)), draw(keys[1], (4, 8)))
    layer = {"query": {"kernel": split, "bias": np.full(8, 9.0)}}
    layer["ffn"] = {"kernel": draw(keys[2], (8, 16))}
    word = {"word": {"embedding": draw(keys[3], (50, 4))}}
    return {"embeddings": word, "encoder": {"layer_0": layer}}


def test_each_layer_has_a_histogram_of_its_matrices(shown, tmp_path):
    for step in (0, 7):
        shown.weights("1-a", step, tree(step))
    shown.close()
    found = histograms(tmp_path / "tensorboard" / "1-a")
    names = ("weights/embeddings", "weights/layer_0")
    assert {*found} == {(step, name) for step in (0, 7) for name in names}
    layer = tree(7)["encoder"]["layer_0"]
    parts = [layer["query"]["kernel"].a, layer["query"]["kernel"].b]
    values = np.concatenate([np.ravel(x) for x in (*parts, layer["ffn"]["kernel"])])
    made = found[7, "weights/layer_0"]
    assert made.num == sum(made.bucket) == values.size == 2 * 32 + 128
    assert made.max == pytest.approx(values.max())
    assert made.sum == pytest.approx(values.sum(), abs=1e-4)


def test_of_a_large_layer_a_part_is_counted(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "MOST_VALUES", 50)
    shown.weights("1-a", 0, tree(0))
    shown.close()
    (made,) = (
        histo
        for (_, tag), histo in histograms(tmp_path / "tensorboard" / "1-a").items()
        if tag == "weights/layer_0"
    )
    assert 40 <= made.num <= 50


def test_weights_that_are_no_numbers_have_no_histogram(shown, tmp_path):
    shown.weights("1-a", 0, {"pooler": {"kernel": np.full((2, 2), np.nan)}})
    shown.weights("1-a", 0, {"pooler": {"kernel": np.eye(2)}})
    shown.close()
    assert len(histograms(tmp_path / "tensorboard" / "1-a")) == 1


def test_texts_are_shown_as_texts(shown, tmp_path):
    shown.texts("report", {"table": "a | b", "command": "bitflax run"})
    shown.close()
    found = [v for _, v in summaries(tmp_path / "tensorboard" / "report")]
    assert [v.tag for v in found] == ["table/text_summary", "command/text_summary"]
    assert found[0].metadata.plugin_data.plugin_name == "text"
    assert found[0].tensor.string_val == [b"a | b"]


def test_a_path_that_is_no_utf_8_is_shown(shown, tmp_path):
    shown.texts("report", {"command": "bitflax run \udcff"})
    shown.close()
    (found,) = (v for _, v in summaries(tmp_path / "tensorboard" / "report"))
    assert found.tensor.string_val == [b"bitflax run \\udcff"]
