"""Weight splitting: a ternary student becomes a 1-bit one that computes the same.

Bai et al. 2021, BinaryBERT, section 3.1 (arXiv:2012.15701). Each ternary matrix ``w``
becomes ``Split(a, b)`` with ``a + b == w`` and
``binarize(a) + binarize(b) == ternarize(w)``, so that the 1-bit training begins where
the ternary one ended. All weights that share a scale are split together: with ``v``
one of ``n`` such weights and ``s`` their scale,

- where ternary is not 0: ``(m v, (1 - m) v)``;
- where it is 0: ``(v + c, -c)`` if ``v > 0``, else ``(c, v - c)``;
- ``c = (s n - sum|v|) / (2 zeros)``, so that ``mean|a| + mean|b| == s``;
- ``m = 1/2 - (sum of v over the zeros) / (2 sum of |v| over the others)``, so that
  both halves have the same ``mean|.|``, ``s / 2``.

A group without zeros is halved; a group of zeros gives zeros, which stay 0. Where few
weights outweigh the zeros so badly that ``m`` is not inside (0, 1), which a skewed
group of a small matrix can do, some zeros swap their halves.

Two things are not as in BinaryBERT's own code, and compute the same at the split.
Biases stay whole: there each half has half the bias, and under Adam, whose steps do not
depend on the gradient's size, their sum then learns twice as fast. And the learned
range of an activation stays one for both halves, since both see the same quantised
input, which is quantised once; there each half has a copy, whose gradients add up to
the gradient of this one.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bitflax import model, trees
from bitflax.errors import ConfigError
from bitflax.quantization import quantizers
from bitflax.quantization.rules import Rules
from bitflax.types import Params

Groups = Float[np.ndarray, "groups members"]
_FIX = "split a student of `ternarize` rules, with the rules it was trained with"


class _Cut(NamedTuple):
    """How an array is cut into the groups that share a scale."""

    axis: quantizers.Axis
    runs: int | None

    def groups(self, w: np.ndarray) -> np.ndarray:
        """Return the weights as [groups, members]."""
        cut, own, shared = self._plan(w.shape)
        moved = w.reshape(cut).transpose([*own, *shared])
        return moved.reshape(math.prod(cut[i] for i in own), -1)

    def whole(self, groups: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array of [groups, members]; the inverse of ``groups``."""
        cut, own, shared = self._plan(shape)
        order = [*own, *shared]
        moved = groups.reshape([cut[i] for i in order])
        return moved.transpose(np.argsort(order)).reshape(shape)

    def _plan(self, shape: tuple[int, ...]) -> tuple[tuple, list[int], list[int]]:
        """Return the shape of the cut array, its own axes, and its shared ones."""
        cut, axis = shape, self.axis
        if self.runs is not None:
            cut = (*shape[:-1], self.runs, shape[-1] // self.runs)
            axis = (*range(len(shape) - 1), len(shape))
        every = range(len(cut))
        axis = tuple(every) if axis is None else axis
        axis = (axis,) if isinstance(axis, int) else axis
        shared = sorted({i % len(cut) for i in axis})
        return cut, [i for i in every if i not in shared], shared


def split(params: Params, rules: Rules) -> Params:
    """Return the parameters with every leaf that a rule matches split into two halves.

    On the host, in float64; the halves have the leaf's own dtype, rounded so that no
    sign is lost.

    Args:
      params: latent weights, as a stage of ternary weights leaves them; of
        ``jax.ShapeDtypeStruct`` in their place the halves are such too.
      rules: that stage's rules: (path regex, quantizer). A ``ternarize`` says itself
        which weights share a scale; of any other quantizer that is read off its
        values, which have to be -s, 0 and s by tensor, column or row.
        ``binary_rules(rules)`` are the rules of the stage that follows.

    Returns:
      The tree, with ``Split(a, b)`` in the place of each such leaf.

    Raises:
      ValueError: a rule matches no path.
      ConfigError: a leaf cannot be split, since it is split already, or its quantised
        values are not of the kind that two 1-bit matrices add up to; names its path.

    >>> w = {"kernel": jnp.array([1.0, -2.0, 0.1])}
    >>> rules = [("kernel", quantizers.ternarize)]
    >>> halves = split(w, rules)["kernel"]
    >>> quantizers.binarize(halves.a) + quantizers.binarize(halves.b)
    Array([ 1.5, -1.5,  0. ], dtype=float32)
    """
    flat = trees.flatten(params)
    for path, quantizer in trees.match(rules, flat).items():
        flat[path] = _split_leaf(path, flat[path], quantizer)
    return trees.unflatten(flat)


def merge(params: Params) -> Params:
    """Return the parameters with every ``Split`` leaf as the sum of its halves.

    >>> merge({"kernel": model.Split(jnp.array([0.5]), jnp.array([1.0]))})
    {'kernel': Array([1.5], dtype=float32)}
    """

    def whole(path: str, leaf: Any) -> Any:
        return model.dense(leaf) if isinstance(leaf, model.Split) else leaf

    return trees.map_paths(whole, params)


def binary_rules(rules: Rules) -> Rules:
    """Return the 1-bit rules that follow on a split: same paths, same groups.

    Raises:
      ConfigError: a rule's quantizer is no ``ternarize``, so that nobody knows its
        1-bit counterpart.

    >>> rows = functools.partial(quantizers.ternarize, axis=-1)
    >>> binary_rules([("embeddings/word/embedding", rows)])[0][1].keywords
    {'axis': -1}
    """
    made = []
    for regex, quantizer in rules:
        keywords = _keywords(quantizer)
        if keywords is None:
            raise ConfigError(
                f"rule {regex}",
                f"there is no 1-bit counterpart of {quantizer!r:.60}",
                fix="write the rules of the 1-bit stage yourself",
            )
        keywords.pop("clip", None)  # 1-bit weights have none
        made.append((regex, functools.partial(quantizers.binarize, **keywords)))
    return tuple(made)


def _keywords(quantizer: Any) -> dict[str, Any] | None:
    """Return the settings of a ``ternarize``; None of any other quantizer."""
    kind, options = model.unwrapped(quantizer)
    return options if kind is quantizers.ternarize else None


def _split_leaf(path: str, leaf: Any, quantizer: Any) -> model.Split:
    if isinstance(leaf, model.Split) or not hasattr(leaf, "ndim"):
        kind = type(leaf).__name__
        raise ConfigError(path, f"is a {kind}, not an array", fix="merge it first")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return model.Split(leaf, leaf)
    latent = np.asarray(leaf, np.float64)
    values = np.asarray(quantizer(jnp.asarray(leaf)), np.float64)
    if not (np.isfinite(latent).all() and np.isfinite(values).all()):
        raise ConfigError(path, "holds NaN or infinity", fix="train at a lower rate")
    # What lies beyond a clip is split as the clip, which is all that ternary weights
    # see of it.
    clip = (_keywords(quantizer) or {}).get("clip")
    latent = latent if clip is None else np.clip(latent, -clip, clip)
    cut = _cut(path, values, quantizer)
    v, q = cut.groups(latent), cut.groups(values)
    first = _first_half(path, v, q)
    halves = (cut.whole(half, latent.shape) for half in (first, v - first))
    dtype = np.asarray(leaf).dtype
    return model.Split(*(jnp.asarray(_rounded(half, dtype)) for half in halves))


def _cut(path: str, values: np.ndarray, quantizer: Any) -> _Cut:
    """Return the coarsest groups whose values are -s, 0 and s."""
    keywords = _keywords(quantizer)
    if keywords is not None:
        ways = [_Cut(keywords.get("axis"), keywords.get("groups"))]
    else:
        axes = (None, 0, -1) if values.ndim > 1 else (None,)
        ways = [_Cut(axis, None) for axis in axes]
    for cut in ways:
        size = np.abs(cut.groups(values))
        if ((size == 0) | (size == size.max(axis=1, keepdims=True))).all():
            return cut
    raise ConfigError(
        path,
        "its quantised values are not -s, 0 and s by tensor, column or row",
        fix=_FIX,
    )


def _first_half(path: str, v: Groups, q: Groups) -> Groups:
    """Return the first half of each group; the second is the rest.

    Args:
      path: the leaf's, for errors.
      v: latent weights.
      q: their ternary values: -s, 0 and s.
    """
    size, zero = np.abs(v), q == 0
    scale = np.max(np.abs(q), axis=1, keepdims=True)
    zeros = np.sum(zero, axis=1, keepdims=True)
    spare = scale * v.shape[1] - np.sum(size, axis=1, keepdims=True)
    push = spare / (2 * np.maximum(zeros, 1))
    dead = (scale == 0) & (spare == 0)
    whole = (zeros == 0) & (np.abs(spare) <= 1e-4 * scale * v.shape[1])
    wrong = (np.sign(q) != np.sign(v)) & ~zero
    if wrong.any() or not (dead | whole | (zeros > 0) & (push > 0)).all():
        raise ConfigError(
            path,
            "no two 1-bit matrices add up to its quantised values: their signs are not "
            "the weights', or their scale is too small for the weights",
            fix=_FIX,
        )
    push[dead | whole] = 0
    kept = np.sum(np.where(zero, 0, size), axis=1, keepdims=True)
    kept[dead] = 1
    turn = np.ones_like(v)
    lean = np.sum(v * zero, axis=1, keepdims=True)
    for row in np.flatnonzero(np.abs(lean) >= kept):
        turn[row], lean[row] = _balanced(v[row] * zero[row])
    if (np.abs(lean) >= kept).any():
        raise ConfigError(
            path, "its zeros outweigh the other weights of a group", fix=_FIX
        )
    share = 0.5 - lean / (2 * kept)
    return np.where(zero, v / 2 + turn * (size / 2 + push), share * v)


def _balanced(v: Float[np.ndarray, " n"]) -> tuple[np.ndarray, float]:
    """Return signs so that the signed sum of ``v`` is small, and that sum.

    The largest first, each against the sum so far: the sum ends within ``max|v|``.

    >>> _balanced(np.array([1.0, 2.0, 3.0]))
    (array([-1., -1.,  1.]), 0.0)
    """
    turn, total = np.ones_like(v), 0.0
    for i in np.argsort(-np.abs(v), kind="stable"):
        turn[i] = -1.0 if v[i] * total > 0 else 1.0
        total += turn[i] * v[i]
    return turn, float(total)


def _rounded(half: np.ndarray, dtype: Any) -> np.ndarray:
    """Round to a dtype, and no nonzero to zero or below what a CPU keeps."""
    least = float(jnp.finfo(dtype).tiny)
    lost = (half != 0) & (np.abs(half) < least)
    return np.where(lost, np.copysign(least, half), half).astype(dtype)
