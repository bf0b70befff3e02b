"""One model of the native engine: rows, masks, threads, forks, and what it refuses."""

import concurrent.futures
import gc
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, DamagedFile, DataError
from bitflax.inference.native import flat_file, library
from tests.helpers import natives

CLOSE = 2e-6


@pytest.fixture(scope="module", autouse=True)
def _engine():
    natives.engine_or_skip()


@pytest.fixture(scope="module")
def made():
    return natives.engine("binary", "4 bits")


def one(asked: dict, row: int) -> dict:
    """A text by itself, without its padding."""
    tokens = int(asked["attention_mask"][row].sum())
    return {name: array[row : row + 1, :tokens] for name, array in asked.items()}


LENGTHS = [1, 2, 15, 16, 17, 40]


def test_texts_of_any_length(made):
    asked = natives.batch(len(LENGTHS), 40)
    asked["attention_mask"][:] = np.arange(40) < np.array(LENGTHS)[:, None]
    expected = natives.by_jax("binary", "4 bits", asked)
    assert natives.apart(made(asked), expected).max() < CLOSE
    for row in range(len(LENGTHS)):
        alone = made(one(asked, row))
        assert natives.apart(alone, expected[row : row + 1]).max() < CLOSE


def test_512_tokens():
    config = bf.BertConfig(
        **{
            **vars(natives.CONFIG),
            "max_position_embeddings": 512,
            "num_hidden_layers": 1,
        }
    )
    asked = natives.batch(2, 512, ragged=True)
    found = natives.engine("binary", "4 bits", config=config)(asked)
    expected = natives.by_jax("binary", "4 bits", asked, config)
    assert natives.apart(found, expected).max() < CLOSE


def test_padding_changes_no_bit_of_a_text(made):
    asked = natives.batch(9, 30, ragged=True)
    together = made(asked)
    for row in range(9):
        assert np.array_equal(together[row : row + 1], made(one(asked, row)))


def test_no_rows_are_no_logits(made):
    assert made(natives.batch(0, 5)).shape == (0, 5)


def holes(mask: np.ndarray) -> None:
    mask[:, 3:7] = 0


def first(mask: np.ndarray) -> None:
    mask[:, 0] = 0


def none(mask: np.ndarray) -> None:
    mask[1] = 0


@pytest.mark.parametrize("change", [holes, first, none])
def test_masks_of_other_forms(made, change):
    asked = natives.batch(3, 12)
    change(asked["attention_mask"])
    expected = natives.by_jax("binary", "4 bits", asked)
    assert np.isfinite(expected).all()
    assert natives.apart(made(asked), expected).max() < CLOSE


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(made, threads, rows):
    many = natives.engine("binary", "4 bits", threads=threads)
    assert many.threads == threads
    asked = natives.batch(rows, 30, ragged=True)
    expected = made(asked)
    for _ in range(5):
        assert np.array_equal(many(asked), expected)


def test_all_cores_are_taken_where_nobody_says():
    found = natives.engine(threads=None)
    assert found.threads == min(len(os.sched_getaffinity(0)), library.MOST_THREADS)


@pytest.mark.parametrize("kind", [bf.symmetric, bf.asymmetric])
def test_a_range_of_a_tensor_is_one_of_a_text(kind):
    act = kind(4, axis=None)
    params, _ = natives.model("binary", config=natives.SHORT)
    flat = flat_file.to_flat(natives.SHORT, params, act)
    asked = natives.batch(3, 17)
    asked["attention_mask"][1, 9:] = 0
    apply = jax.jit(lambda batch: bf.bert(natives.SHORT, act)(params, batch).logits)
    expected = np.concatenate([apply(one(asked, row)) for row in range(3)])
    for threads in (1, 2):
        found = library.NativeModel(flat, threads=threads)(asked)
        assert natives.apart(found, expected).max() < CLOSE


def test_several_threads_may_ask_one_model():
    shared = natives.engine("binary", "4 bits", threads=2)
    asked = [natives.batch(1 + i % 5, 8 + i, seed=i) for i in range(24)]
    expected = [shared(each) for each in asked]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(shared, asked * 5), expected * 5, strict=True):
            assert np.array_equal(found, right)


FORKS = """
import os, sys
import numpy as np
from bitflax.inference.native import library

raw = np.fromfile(sys.argv[1], np.uint8)
made = library.NativeModel(raw, threads=2)
ids = np.arange(60, dtype=np.int32).reshape(3, 20)
asked = {"input_ids": ids, "attention_mask": ids >= 0, "token_type_ids": 0 * ids}
expected = made(asked)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(made(asked), expected) else 1)
_, status = os.waitpid(child, 0)
same = np.array_equal(made(asked), expected)
sys.exit(os.waitstatus_to_exitcode(status) or not same)
"""


def test_a_fork_computes_too(tmp_path):
    params, act = natives.model("binary", "4 bits")
    flat_file.to_flat(natives.CONFIG, params, act).tofile(tmp_path / "flat")
    command = [sys.executable, "-W", "ignore", "-c", FORKS, tmp_path / "flat"]
    assert subprocess.run(command, timeout=300).returncode == 0


def test_a_model_that_nobody_holds_is_freed():
    natives.model("binary", "8 bits")

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc tells how many threads there are")
    before = threads()
    held = natives.engine(threads=5)
    assert threads() == before + 4
    del held
    gc.collect()
    assert threads() == before


def changed(name: str, array) -> dict:
    return natives.batch(2, 6) | {name: array}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            changed("input_ids", np.full((2, 6), 120)),
            "input_ids: expected integers from",
        ),
        (changed("input_ids", np.full((2, 6), -1)), "from 0 to 119, found -1 to -1"),
        (changed("input_ids", np.full((2, 6), 1 << 40)), "from 0 to 119"),
        (changed("token_type_ids", np.full((2, 6), 2)), "token_type_ids: expected"),
        (changed("attention_mask", np.full((2, 6), 2)), "attention_mask: expected"),
        (changed("attention_mask", np.ones((2, 5), np.int32)), "three arrays of one"),
        (changed("input_ids", np.ones((2, 6))), r"expected integers .*, found float64"),
        (changed("input_ids", np.ones(6, np.int32)), r"found int32 \[6\]"),
        (natives.batch(1, 41), "expected 1 to 40 tokens a row, found 41"),
        (natives.batch(1, 0), "found 0"),
    ],
)
def test_a_batch_that_is_none_is_said(made, asked, said):
    with pytest.raises(DataError, match=said):
        made(asked)


def test_integers_of_any_width_will_do(made):
    asked = natives.batch(2, 6)
    wide = {name: array.astype(np.int64) for name, array in asked.items()}
    wide["attention_mask"] = wide["attention_mask"].astype(bool)
    wide["input_ids"] = np.asfortranarray(wide["input_ids"])
    assert np.array_equal(made(wide), made(asked))


def test_an_unknown_target_is_said():
    with pytest.raises(ConfigError, match="no target 'sse9'") as raised:
        natives.engine(target="sse9")
    assert "portable" in raised.value.fix


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_number_of_threads_that_is_none_is_said(threads):
    with pytest.raises(ConfigError, match="expected 1 to 256"):
        natives.engine(threads=threads)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    params, act = natives.model("dense", "8 bits")
    params = {
        **params,
        "classifier": {**params["classifier"], "bias": np.full(5, value)},
    }
    with pytest.raises(DamagedFile):
        library.NativeModel(flat_file.to_flat(natives.CONFIG, params, act))


def test_memory_is_that_of_the_file_and_of_what_is_laid_out(made):
    params, act = natives.model("binary", "4 bits")
    flat = flat_file.to_flat(natives.CONFIG, params, act)
    assert flat.nbytes < made.nbytes < 3 * flat.nbytes + (1 << 20)
