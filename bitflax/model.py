"""BERT for classification and regression: ``apply(params, batch) -> Outputs``.

Devlin et al. 2018 (arXiv:1810.04805), as Hugging Face computes it in
``BertForSequenceClassification``. Weights may be arrays or any kind of leaf that
``bitflax.leaves`` knows; bits are none of the model's business, save those of its
activations.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitflax import activations, leaves
from bitflax.activations import Act
from bitflax.types import ApplyFn, Batch, BertConfig, Outputs, Params, Quantizer

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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [..., width] of x [..., n]."""
        # Not self.param(): it refuses leaves that are not arrays.
        if self.is_initializing():
            self.param("kernel", _normal, (x.shape[-1], self.width))
            self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = self.get_variable("params", "kernel")
        bias = self.get_variable("params", "bias")
        # One matrix product over all tokens: a batched one is 7 % slower on a CPU.
        y = leaves.matmul(x.reshape(-1, x.shape[-1]), kernel) + bias[None]
        return y.reshape(*x.shape[:-1], self.width)


class Part(nn.Module):
    """What the parts of a layer share: configuration, sites of activations, dropout."""

    config: BertConfig
    act: Mapping[str, Quantizer]
    site: str

    def at(self, name: str, x: jax.Array) -> jax.Array:
        """Quantise an activation, if its site has a quantizer."""
        quantizer = self.act.get(f"{self.site}/{name}")
        return x if quantizer is None else quantizer(x)

    def norm(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis; the exact variance, not E[x^2] - E[x]^2."""
        eps = self.config.layer_norm_eps
        return nn.LayerNorm(eps, use_fast_variance=False, name="norm")(x)


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
            y = Linear(heads * head, name=name)(self.at(f"{name}/input", x))
            y = self.at(f"{name}/output", y)
            return y.reshape(*x.shape[:2], heads, head).transpose(axes)

        # Transposes and plain products: einsum is 5-25 % slower on a CPU.
        query = project("query", (0, 2, 1, 3)) * head**-0.5
        scores = query @ project("key", (0, 2, 3, 1))
        probs = jax.nn.softmax(scores + mask)
        probs = _dropout(config.attention_probs_dropout_prob, probs, dropout)
        probs = self.at("probs", probs)
        y = (probs @ project("value", (0, 2, 1, 3))).transpose(0, 2, 1, 3)
        y = self.at("out/input", y.reshape(*x.shape[:2], heads * head))
        y = Linear(config.hidden_size, name="out")(y)
        y = _dropout(config.hidden_dropout_prob, y, dropout)
        return self.norm(x + y), scores


class FeedForward(Part):
    """The two matrices of a layer's second half, residual and LayerNorm."""

    @nn.compact
    def __call__(self, x, dropout):
        """Return [batch, seq, width]."""
        config = self.config
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        activation = {"gelu": gelu, "relu": jax.nn.relu}[config.hidden_act]
        y = Linear(config.intermediate_size, name="in")(self.at("in/input", x))
        y = self.at("out/input", activation(y))
        y = Linear(config.hidden_size, name="out")(y)
        y = _dropout(config.hidden_dropout_prob, y, dropout)
        return self.norm(x + y)


class Layer(Part):
    """One encoder layer."""

    @nn.compact
    def __call__(self, x, mask, dropout):
        """Return the layer's output and its attention scores."""
        attention = Attention(
            self.config, self.act, f"{self.site}/attention", name="attention"
        )
        x, scores = attention(x, mask, dropout)
        ffn = FeedForward(self.config, self.act, f"{self.site}/ffn", name="ffn")
        return ffn(x, dropout), scores


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
            layer = Layer(self.config, self.act, f"{self.site}/{name}", name=name)
            x, score = layer(x, mask, dropout)
            hidden.append(x)
            scores.append(score)
        return tuple(hidden), tuple(scores)


class Bert(nn.Module):
    """Embeddings, encoder, pooler and classifier."""

    config: BertConfig
    act: Mapping[str, Quantizer]

    @nn.compact
    def __call__(self, batch, dropout=False):
        """Return the outputs of a batch."""
        config = self.config
        ids, mask = jnp.asarray(batch["input_ids"]), batch["attention_mask"]
        x = Embeddings(config, self.act, "embeddings", name="embeddings")(
            ids, jnp.asarray(batch["token_type_ids"]), dropout
        )
        masked = (1 - jnp.asarray(mask)[:, None, None, :].astype(x.dtype)) * _MASKED
        encoder = Encoder(config, self.act, "encoder", name="encoder")
        hidden, scores = encoder(x, masked, dropout)
        first = hidden[-1][:, 0]
        if "pooler/input" in self.act:
            first = self.act["pooler/input"](first)
        pooled = jnp.tanh(Linear(config.hidden_size, name="pooler")(first))
        rate = config.classifier_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        pooled = _dropout(rate, pooled, dropout)
        logits = Linear(config.num_labels, name="classifier")(pooled)
        return Outputs(logits, hidden, scores)


def bert(config: BertConfig, act: Act = None) -> ApplyFn:
    """Return the model as a pure function ``apply(params, batch, rng=None)``.

    Args:
      config: the model's shape.
      act: quantizers of activations. None; one quantizer for the inputs of the
        encoder's matrices; or a tuple of (regex of a site, quantizer), where the
        first match decides (``bitflax.activations.sites`` lists the sites). One
        that learns takes its parameter from ``params``, at the path of its site.

    Returns:
      ``apply``. Its batch holds ``input_ids``, ``attention_mask`` and
      ``token_type_ids`` [batch, seq]; with an ``rng`` key, dropout is on. A row
      without any real token is no NaN.

    Raises:
      ValueError: a rule of ``act`` matches no site; from ``apply``, a sequence is
        longer than the position embeddings, or a learned parameter is missing.

    >>> config = BertConfig(8, 4, 1, 2, 8, 16)
    >>> batch = {"input_ids": jnp.array([[1, 2]]), "attention_mask": jnp.ones((1, 2)),
    ...          "token_type_ids": jnp.zeros((1, 2), int)}
    >>> out = bert(config)(init_params(config, jax.random.key(0)), batch)
    >>> out.logits.shape, len(out.hidden), len(out.scores)
    ((1, 2), 2, 1)
    """
    chosen = activations.at_sites(act, config)

    def apply(params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        length = batch["input_ids"].shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {length} tokens, but the model has only "
                f"{config.max_position_embeddings} positions"
            )
        rngs = None if rng is None else {"dropout": rng}
        inputs = {
            k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")
        }
        module = Bert(config, activations.bind(chosen, params))
        out: Any = module.apply({"params": params}, inputs, rng is not None, rngs=rngs)
        return out

    return apply


def init_params(config: BertConfig, key: jax.Array) -> Params:
    """Return random parameters: normal(0, 0.02), zeros and ones, float32.

    >>> params = init_params(BertConfig(8, 4, 1, 2, 8, 16), jax.random.key(0))
    >>> params["encoder"]["layer_0"]["ffn"]["in"]["kernel"].shape
    (4, 8)
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    init: Callable[..., Any] = jax.jit(Bert(config, {}).init)
    return init(key, batch)["params"]


def init_act(
    params: Params,
    act: Act,
    batch: Batch,
    config: BertConfig | None = None,
    quantize: Callable[[Params], Params] | None = None,
) -> Params:
    """Return the parameters with those that activation quantizers learn, made anew.

    The model runs on the batch: ``init(x)`` of a quantizer sees an activation that the
    quantizers before it have rounded. What others learned before is dropped.

    Args:
      params: a tree that ``bert(config)`` takes.
      act: as ``bert`` takes it.
      batch: a first batch; not read where no quantizer looks at its activation.
      config: the model's shape; needed where one does.
      quantize: what the model computes with, made of ``params``.

    Raises:
      ValueError: ``config`` is missing, or a rule of ``act`` matches no site.
    """

    def run(act: Act, params: Params) -> Outputs:
        assert config is not None
        return bert(config, act)(quantize(params) if quantize else params, batch)

    return activations.with_first(params, act, config, run)
