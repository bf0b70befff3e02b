"""BERT's layers as linen modules: what ``bitflax.model.apply`` is made of.

Weights may be arrays or any kind of leaf that ``bitflax.model.leaves`` knows; bits are
none of the layers' business, save those of activations.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitflax.model import leaves, matmul
from bitflax.model.matmul import Coded
from bitflax.types import INPUTS, BertConfig, Outputs, Quantizer


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a model computes with: quantizers of activations, dtypes of products.

    Attributes:
      act: ``{site: array -> array}``, from ``bind``.
      dtype: what operands of products are rounded to; None: they are not.
      integers: the dtype in which integers of quantised activations are multiplied;
        None: their values are.
      recompute: whether both halves of a layer are computed again on the way back.
    """

    act: Mapping[str, Quantizer]
    dtype: DTypeLike | None = None
    integers: DTypeLike | None = None
    recompute: bool = False

    def at(self, site: str, x: jax.Array) -> jax.Array:
        """Quantise an activation, if its site has a quantizer."""
        quantizer = self.act.get(site)
        return x if quantizer is None else quantizer(x)

    def into(self, site: str, x: jax.Array) -> jax.Array | Coded:
        """Quantise what goes into a matrix: as integers, if they are multiplied."""
        if self.integers is None or site not in self.act:
            return self.at(site, x)
        return matmul.coded(self.act[site], x, self.integers)


def recomputed(fn: Callable[..., Any], *args: Any) -> Any:
    """Return ``fn(*args)``, whose gradient keeps the arguments alone.

    Chen et al. 2016 (arXiv:1604.06174). The gradient is that of ``fn``, with what it
    reads besides its arguments too.

    Args:
      fn: a pure function to arrays of floating point.
      *args: trees of arrays; the first one is an array of floating point, of which all
        that ``fn`` computes is made.

    >>> jax.grad(lambda x: recomputed(jnp.sin, x))(0.0)
    Array(1., dtype=float32)
    """
    fn, others = jax.closure_convert(fn, *args)
    return _recomputed(fn, *args, *others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(fn, *args):
    return fn(*args)


def _forward(fn, *args):
    return fn(*args), args


def _backward(fn, args, gradient):
    first, *others = args
    _, vjp = jax.vjp(fn, first + _nothing(gradient).astype(first.dtype), *others)
    return vjp(gradient)


def _nothing(gradient: Any) -> jax.Array:
    """Return 0, made of a gradient; nobody but the reader can know that it is 0."""
    ends = [jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(gradient)]
    return sum((jnp.minimum(jnp.square(end), 0.0) for end in ends), jnp.zeros(()))


_recomputed.defvjp(_forward, _backward)


_MASKED = -1e9
_normal = nn.initializers.normal(0.02)


class Embed(nn.Module):
    """A table of rows; the row ``pad`` gets no gradient."""

    rows: int
    width: int
    pad: int | None = None

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Return the rows of ids [...]: [..., width]."""
        if self.is_initializing():
            self.param("embedding", _normal, (self.rows, self.width))
        return leaves.lookup(self.get_variable("params", "embedding"), ids, self.pad)


class Linear(nn.Module):
    """``x @ kernel + bias`` over the last axis, for any kind of kernel."""

    width: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array | Coded) -> jax.Array:
        """Return [..., width] of x [..., n]."""
        # Not self.param(): it refuses leaves that are not arrays.
        if self.is_initializing():
            value = x.value if isinstance(x, Coded) else x
            self.param("kernel", _normal, (value.shape[-1], self.width))
            self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = self.get_variable("params", "kernel")
        bias = self.get_variable("params", "bias")
        y = leaves.matmul(x, kernel, self.numerics.dtype)
        return y + jnp.expand_dims(bias, range(y.ndim - 1))


class Part(nn.Module):
    """What the parts of a layer share: configuration, sites of activations, norm."""

    config: BertConfig
    numerics: Numerics
    site: str

    def at(self, name: str, x: jax.Array) -> jax.Array:
        """Quantise an activation, if its site has a quantizer."""
        return self.numerics.at(f"{self.site}/{name}", x)

    def linear(self, name: str, x: jax.Array, width: int) -> jax.Array:
        """Return [..., width] of an activation [..., n], quantised at its site."""
        into = self.numerics.into(f"{self.site}/{name}/input", x)
        return Linear(width, self.numerics, name=name)(into)

    def norm(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis; the exact variance, not E[x^2] - E[x]^2."""
        eps = self.config.layer_norm_eps
        return nn.LayerNorm(eps, use_fast_variance=False, name="norm")(x)


def _gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x) by erf: erfc, as jax.nn.gelu's, takes 2.5 times as long."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


def _dropout(rate: float, x: jax.Array, on: bool) -> jax.Array:
    return nn.Dropout(rate)(x, deterministic=not on) if rate else x


class Attention(Part):
    """Multi-head attention, its output matrix, residual and LayerNorm."""

    @nn.compact
    def __call__(self, x, mask, dropout):
        """Return [batch, seq, width] and the scores [batch, heads, seq, seq]."""
        config = self.config
        heads, head = config.num_attention_heads, config.head_width

        def project(name, axes):
            y = self.at(f"{name}/output", self.linear(name, x, heads * head))
            return y.reshape(*x.shape[:2], heads, head).transpose(axes)

        # Transposes and plain products: einsum is 5-25 % slower on a CPU.
        product = functools.partial(matmul.product, dtype=self.numerics.dtype)
        query = project("query", (0, 2, 1, 3)) * head**-0.5
        scores = product(query, project("key", (0, 2, 3, 1)))
        probs = jax.nn.softmax(scores + mask)
        probs = _dropout(config.attention_probs_dropout_prob, probs, dropout)
        probs = self.at("probs", probs)
        y = product(probs, project("value", (0, 2, 1, 3))).transpose(0, 2, 1, 3)
        y = y.reshape(*x.shape[:2], heads * head)
        y = self.linear("out", y, config.hidden_size)
        y = _dropout(config.hidden_dropout_prob, y, dropout)
        return self.norm(x + y), scores


class FeedForward(Part):
    """The two matrices of a layer's second half, residual and LayerNorm."""

    @nn.compact
    def __call__(self, x, dropout):
        """Return [batch, seq, width]."""
        config = self.config
        activation = {"gelu": _gelu, "relu": jax.nn.relu}[config.hidden_act]
        y = activation(self.linear("in", x, config.intermediate_size))
        y = self.linear("out", y, config.hidden_size)
        y = _dropout(config.hidden_dropout_prob, y, dropout)
        return self.norm(x + y)


class Layer(Part):
    """One encoder layer."""

    @nn.compact
    def __call__(self, x, mask, dropout):
        """Return the layer's output and its attention scores."""
        x, scores = self._part(Attention, "attention", dropout, x, mask)
        return self._part(FeedForward, "ffn", dropout, x), scores

    def _part(self, kind, name, dropout, x, *others):
        settings = self.config, self.numerics, f"{self.site}/{name}"
        if not self.numerics.recompute or self.is_initializing():
            return kind(*settings, name=name)(x, *others, dropout)
        part = kind(*settings, parent=None)

        def run(x, params, others, rngs):
            return part.apply({"params": params}, x, *others, dropout, rngs=rngs)

        # Each half by itself: what one keeps for its gradient is gone before the other.
        rngs = {"dropout": self.make_rng("dropout")} if dropout else {}
        params = self.get_variable("params", name)
        return recomputed(run, x, params, others, rngs)


class Embeddings(Part):
    """The sum of word, position and token-type rows, normalised."""

    @nn.compact
    def __call__(self, ids, types, dropout):
        """Return [batch, seq, width]."""
        config, width = self.config, self.config.hidden_size
        positions = jnp.arange(ids.shape[1])
        word = Embed(config.vocab_size, width, config.pad_token_id, name="word")
        position = Embed(config.max_position_embeddings, width, name="position")
        token_type = Embed(config.type_vocab_size, width, name="token_type")
        x = word(ids) + position(positions)[None] + token_type(types)
        return _dropout(config.hidden_dropout_prob, self.norm(x), dropout)


class Encoder(Part):
    """The layers, one after another, unrolled: a scan is 8 % slower on a CPU."""

    @nn.compact
    def __call__(self, x, mask, dropout):
        """Return all hidden states and all attention scores."""
        hidden, scores = [x], []
        for i in range(self.config.num_hidden_layers):
            name = f"layer_{i}"
            layer = Layer(self.config, self.numerics, f"{self.site}/{name}", name=name)
            x, score = layer(x, mask, dropout)
            hidden.append(x)
            scores.append(score)
        return tuple(hidden), tuple(scores)


class Bert(nn.Module):
    """Embeddings, encoder, pooler and classifier."""

    config: BertConfig
    numerics: Numerics

    @nn.compact
    def __call__(self, batch, dropout=False):
        """Return the outputs of a batch."""
        config, numerics = self.config, self.numerics
        ids, mask, types = (jnp.asarray(batch[name]) for name in INPUTS)
        x = Embeddings(config, numerics, "embeddings", name="embeddings")(
            ids, types, dropout
        )
        # JAX would take another row, without a word.
        known = (ids >= 0) & (ids < config.vocab_size)
        known &= (types >= 0) & (types < config.type_vocab_size)
        x = jnp.where((known | (mask == 0))[..., None], x, jnp.nan)
        masked = (1 - mask[:, None, None, :].astype(x.dtype)) * _MASKED
        encoder = Encoder(config, numerics, "encoder", name="encoder")
        hidden, scores = encoder(x, masked, dropout)
        first = numerics.into("pooler/input", hidden[-1][:, 0])
        pooled = jnp.tanh(Linear(config.hidden_size, numerics, name="pooler")(first))
        rate = config.classifier_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        pooled = _dropout(rate, pooled, dropout)
        logits = Linear(config.num_labels, numerics, name="classifier")(pooled)
        return Outputs(logits, hidden, scores)
