"""Losses against a second implementation in numpy, row by row, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf

ROWS, SEQ, HEADS, WIDTH, CLASSES = 4, 6, 2, 5, 3
PAIRS = ((0, 0), (1, 2))
part = functools.partial

LOSSES = {
    "soft": bf.soft_cross_entropy,
    "soft-warm": part(bf.soft_cross_entropy, temperature=2.5),
    "soft-batch": part(bf.soft_cross_entropy, reduction="batch"),
    "logits": bf.logits_mse,
    "labels": bf.label_cross_entropy,
    "labels-smooth": part(bf.label_cross_entropy, smoothing=0.2),
    "labels-classes": part(bf.label_cross_entropy, class_weights=(0.5, 2.0, 1.0)),
    "real-labels": bf.label_mse,
    "hidden": part(bf.hidden_mse, pairs=PAIRS),
    "hidden-padding": part(bf.hidden_mse, pairs=PAIRS, count_padding=True),
    "scores": part(bf.score_mse, pairs=PAIRS),
    "scores-padding": part(bf.score_mse, pairs=PAIRS, count_padding=True),
    "scores-mask": part(bf.score_mse, pairs=PAIRS, mask_value=-1e4),
    "attention": part(bf.attention_kl, pairs=PAIRS),
}
# The peers' means over padding depend on how far a batch was padded.
PADDED = {"hidden-padding", "scores-padding", "scores-mask"}
UNTAUGHT = {"labels", "labels-smooth", "labels-classes", "real-labels"}


def outputs(seed, depth=3, rows=ROWS):
    # float64 where a test switches it on.
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    return bf.Outputs(
        normal(rows, CLASSES),
        tuple(normal(rows, SEQ, WIDTH) for _ in range(depth)),
        tuple(normal(rows, HEADS, SEQ, SEQ) for _ in range(depth)),
    )


def a_batch(lengths=(6, 4, 1, 3), weight=None):
    mask = (np.arange(SEQ) < np.array(lengths)[:, None]).astype(np.int32)
    labels = np.array([2, 0, 1, 1], np.int32)[: len(lengths)]
    batch = {"attention_mask": jnp.asarray(mask), "labels": jnp.asarray(labels)}
    if weight is not None:
        batch["weight"] = jnp.asarray(weight, jnp.float32)
    return batch


def compiled(name):
    return jax.jit(LOSSES[name])


# ---------------------------------------------------- a second implementation in numpy


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def numpy_loss(name, student, teacher, batch):
    """Return (total, count) by loops over rows, tokens and heads."""
    mask = np.asarray(batch["attention_mask"])
    weight = np.asarray(batch.get("weight", np.ones(len(mask))))
    every = name in PADDED
    total = count = 0.0
    for row in np.flatnonzero(weight):
        tokens = [i for i in range(SEQ) if every or mask[row, i]]
        s, t = (np.asarray(x.logits[row]) for x in (student, teacher))
        label = int(batch["labels"][row])
        if name.startswith("soft"):
            warm = 2.5 if name == "soft-warm" else 1.0
            total -= (softmax(t / warm) * np.log(softmax(s / warm))).sum()
            count += 1 if name == "soft-batch" else CLASSES
        elif name == "logits":
            total += ((s - t) ** 2).sum()
            count += CLASSES
        elif name.startswith("labels"):
            aim = np.eye(CLASSES)[label]
            if name == "labels-smooth":
                aim = 0.8 * aim + 0.2 / CLASSES
            share = {0: 0.5, 1: 2.0, 2: 1.0}[label] if name == "labels-classes" else 1
            total -= share * (aim * np.log(softmax(s))).sum()
            count += share
        elif name == "real-labels":
            total += (s[0] - label) ** 2
            count += 1
        elif name.startswith("hidden"):
            for a, b in PAIRS:
                for i in tokens:
                    error = student.hidden[a][row, i] - teacher.hidden[b][row, i]
                    total += np.square(error).sum()
            count += len(tokens) * WIDTH
        else:
            for a, b in PAIRS:
                for head in range(HEADS):
                    for i in tokens:
                        sa = np.array(student.scores[a][row, head, i])
                        tb = np.array(teacher.scores[b][row, head, i])
                        total += numpy_row(name, sa, tb, mask[row])
            count += HEADS * len(tokens) * (1 if name == "attention" else len(tokens))
    return total, count


def numpy_row(name, s, t, mask):
    real = mask == 1
    if name == "attention":
        p, q = softmax(t[real]), softmax(s[real])
        return (p * np.log(p / q)).sum()
    if name == "scores-mask":  # the same number is added to both: it cancels
        return ((s - t) ** 2).sum()
    return ((s - t)[real] ** 2).sum()


@pytest.mark.parametrize("weight", [None, (1, 1, 0, 1), (0, 0, 0, 1)])
@pytest.mark.parametrize("name", LOSSES)
def test_totals_and_counts_are_numpys(name, weight, x64):
    student, teacher, batch = outputs(0), outputs(1), a_batch(weight=weight)
    found = compiled(name)(student, teacher, batch)
    expected = numpy_loss(name, student, teacher, batch)
    # A mask of -1e4 costs the scores four digits.
    atol = 1e-9 if name == "scores-mask" else 1e-12
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(found.value, expected[0] / expected[1], atol=atol)


# ------------------------------------------------------------------------------- laws


def padded(out, batch):
    """Pad by two tokens of garbage."""

    def longer(x, axes):
        widths = [(0, 2 if i in axes else 0) for i in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=7.5)

    hidden = tuple(longer(x, {1}) for x in out.hidden)
    scores = tuple(longer(x, {2, 3}) for x in out.scores)
    mask = jnp.pad(batch["attention_mask"], ((0, 0), (0, 2)))
    return bf.Outputs(out.logits, hidden, scores), batch | {"attention_mask": mask}


@pytest.mark.parametrize("name", LOSSES)
def test_padding_counts_nowhere_by_default(name, x64):
    student, teacher, batch = outputs(0), outputs(1), a_batch()
    loss = compiled(name)
    before = loss(student, teacher, batch)
    long_student, long = padded(student, batch)
    long_teacher, _ = padded(teacher, batch)
    # The teacher's garbage is other garbage.
    long_teacher = jax.tree.map(lambda x: jnp.where(x == 7.5, -3, x), long_teacher)
    after = loss(long_student, long_teacher, long)
    same = np.allclose(before, after, rtol=0, atol=1e-12)
    assert same == (name not in PADDED)


@pytest.mark.parametrize("name", LOSSES)
def test_garbage_in_padding_and_filler_rows_has_no_gradient(name, x64):
    if name in PADDED:
        pytest.skip("padding counts, as in the peers' codes")
    student, teacher = outputs(0), outputs(1)
    batch = a_batch(weight=(1, 1, 0, 1))

    def value(student):
        return LOSSES[name](student, teacher, batch).value

    gradient = jax.jit(jax.grad(value))(student)
    assert any(np.any(np.asarray(g)) for g in jax.tree.leaves(gradient))
    mask = np.asarray(batch["attention_mask"])
    for g in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(g[2], 0)
    for g in gradient.hidden:
        np.testing.assert_array_equal(np.asarray(g)[mask == 0], 0)
    for g in gradient.scores:
        g = np.asarray(g)
        np.testing.assert_array_equal(g.transpose(0, 2, 1, 3)[mask == 0], 0)
        np.testing.assert_array_equal(g.transpose(0, 3, 1, 2)[mask == 0], 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_weight_zero_is_a_row_that_is_not_there(name, x64):
    student, teacher = outputs(0), outputs(1)
    loss = compiled(name)
    found = loss(student, teacher, a_batch(weight=(1, 1, 1, 0)))
    three = [jax.tree.map(lambda x: x[:3], out) for out in (student, teacher)]
    expected = loss(*three, a_batch((6, 4, 1)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_halves_of_a_batch_add_up(name, x64):
    student, teacher, batch = outputs(0), outputs(1), a_batch(weight=(1, 1, 0, 1))
    loss = compiled(name)
    whole = loss(student, teacher, batch)
    halves = [
        loss(*jax.tree.map(lambda x, s=s: x[s], (student, teacher, batch)))
        for s in (slice(0, 2), slice(2, 4))
    ]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    np.testing.assert_allclose(added, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_only_filler_rows_are_zero_with_a_gradient_of_zero(name):
    student, teacher = outputs(0), outputs(1)
    batch = a_batch(weight=(0, 0, 0, 0))

    def value(student):
        return LOSSES[name](student, teacher, batch).value

    found, gradient = jax.jit(jax.value_and_grad(value))(student)
    assert float(found) == 0
    assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient(name):
    student, teacher = outputs(0), outputs(1)

    def value(teacher):
        return LOSSES[name](student, teacher, a_batch()).value

    gradient = jax.jit(jax.grad(value))(teacher)
    assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - UNTAUGHT))
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    out = outputs(0)
    loss = LOSSES[name]
    if "pairs" in getattr(loss, "keywords", {}):
        loss = part(loss, pairs=((1, 1), (2, 2)))

    def value(student):
        return loss(student, out, a_batch()).value

    found, gradient = jax.jit(jax.value_and_grad(value))(out)
    if not name.startswith("soft"):  # whose least value is the teacher's entropy
        np.testing.assert_allclose(found, 0, atol=1e-7)
    for g in jax.tree.leaves(gradient):
        np.testing.assert_allclose(g, 0, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_in_float32_out(name):
    like = jax.eval_shape(
        LOSSES[name],
        outputs(0),
        outputs(1),
        a_batch(),
    )
    assert (like.total.shape, like.total.dtype) == ((), jnp.float32)
    assert like.count.shape == ()


# ---------------------------------------------------------------------------- options


def test_without_pairs_equal_depths_teach_one_another():
    student, teacher, batch = outputs(0, 2), outputs(1, 2), a_batch()
    for loss in (bf.hidden_mse, bf.score_mse, bf.attention_kl):
        expected = part(loss, pairs=((0, 0), (1, 1)))(student, teacher, batch)
        np.testing.assert_array_equal(loss(student, teacher, batch), expected)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (bf.hidden_mse, "hidden states"),
        (bf.score_mse, "attention scores"),
        (bf.attention_kl, "attention scores"),
    ],
)
def test_pairs_are_checked(loss, what):
    with pytest.raises(ValueError, match="pairs is empty"):
        loss(outputs(0), outputs(1), a_batch(), pairs=())
    student, teacher, batch = outputs(0, 2), outputs(1, 3), a_batch()
    with pytest.raises(ValueError, match=f"student has 2 {what}, teacher 3: say which"):
        loss(student, teacher, batch)
    for pair in ((2, 0), (0, 3), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match=f"there are only . {what}"):
            loss(student, teacher, batch, pairs=(pair,))


def test_widths_and_heads_must_agree():
    student, teacher, batch = outputs(0, 1), outputs(1, 1), a_batch()
    narrow = student._replace(hidden=(student.hidden[0][..., :3],))
    with pytest.raises(ValueError, match=r"pair \(0, 0\) have shapes \(4, 6, 3\) and"):
        bf.hidden_mse(narrow, teacher, batch)
    fewer = student._replace(scores=(student.scores[0][:, :1],))
    with pytest.raises(ValueError, match=r"pair \(0, 0\) have shapes \(4, 1, 6, 6\)"):
        bf.score_mse(fewer, teacher, batch)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'classes' or 'batch', not 'mean'"):
        bf.soft_cross_entropy(outputs(0), outputs(1), {}, reduction="mean")


def test_one_logit_has_no_probabilities():
    one = outputs(0)
    one = one._replace(logits=one.logits[:, :1])
    with pytest.raises(ValueError, match=r"one logit .* use logits_mse"):
        bf.soft_cross_entropy(one, one, {})


def test_temperature_divides_without_a_factor():
    student, teacher = outputs(0), outputs(1)
    warm = bf.soft_cross_entropy(student, teacher, {}, temperature=4.0)
    quarter = [out._replace(logits=out.logits / 4) for out in (student, teacher)]
    np.testing.assert_allclose(warm, bf.soft_cross_entropy(*quarter, {}), rtol=1e-6)


def test_soft_labels_are_probabilities_or_one_number():
    student, teacher = outputs(0), outputs(1)
    soft = bf.soft_labels(student, teacher, {})
    assert soft == bf.soft_cross_entropy(student, teacher, {}, reduction="batch")
    one, two = (bf.Outputs(jnp.array([[v]]), (), ()) for v in (1.0, 3.5))
    assert bf.soft_labels(one, two, {}) == bf.logits_mse(one, two, {})
