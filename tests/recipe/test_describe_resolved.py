"""A recipe as text: the same in every process, another where it differs."""

import functools
import json
import subprocess
import sys

import bitflax as bf
from bitflax.recipe import describe
from tests.recipe.test_schema import made

RESOLVED = """
import functools, json
import bitflax as bf
from bitflax.recipe import resolved
threshold = 0.5
def own(x):
    return lambda w: w * x + threshold
loss = bf.weighted(
    logits=(1.0, bf.soft_cross_entropy),
    hidden=(2.0, functools.partial(bf.hidden_mse, pairs=bf.layer_pairs((1, 3)))),
)
made = bf.Recipe(stages=(bf.Stage(
    name="onebit",
    loss=loss,
    rules=((".*", own(2)), *bf.xtc_1bit("channel")),
    act=bf.symmetric(),
),))
print(json.dumps(resolved(made)))
"""


def test_resolved_is_the_same_in_every_process():
    texts = [
        subprocess.run(
            [sys.executable, "-c", RESOLVED], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    stage = json.loads(texts[0])["stages"][0]
    parts = stage["loss"]["parts"]
    assert parts["logits"] == [1.0, "soft_cross_entropy"]
    assert parts["hidden"] == [2.0, "hidden_mse(pairs=[[0, 1], [1, 3]])"]
    assert stage["rules"][0] == [".*", "own.<locals>.<lambda>(x=2)"]
    assert stage["rules"][1][1] == "binarize(axis=0)"
    assert stage["act"] == {
        "kind": "symmetric",
        "bits": 8,
        "axis": -1,
        "levels": "restricted",
        "groups": None,
    }


def test_resolved_differs_where_the_recipe_does():
    one = describe.resolved(made(rules=bf.xtc_1bit("tensor")))
    assert one != describe.resolved(made(rules=bf.xtc_1bit("channel")))
    assert one == describe.resolved(made(rules=bf.xtc_1bit("tensor")))


def test_a_closure_that_holds_itself_has_a_name():
    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    assert describe.function_name(fact).endswith("fact(fact=" + fact.__qualname__ + ")")


def test_a_partial_of_a_partial_is_named_through():
    inner = functools.partial(bf.binarize, zero=0)
    named = describe.function_name(functools.partial(inner, axis=(0,)))
    assert named == "binarize(axis=[0], zero=0)"
