"""BERT for classification and regression: ``apply(params, batch) -> Outputs``.

Devlin et al. 2018 (arXiv:1810.04805), as Hugging Face computes it in
``BertForSequenceClassification``; ``bitflax.model.layers`` has its parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitflax import trees
from bitflax.model import names, sites
from bitflax.model.layers import Bert, Numerics
from bitflax.model.sites import Act
from bitflax.types import INPUTS, ApplyFn, Batch, BertConfig, Outputs, Params


def bert(
    config: BertConfig,
    act: Act = None,
    *,
    dtype: DTypeLike | None = None,
    integers: DTypeLike | None = None,
    recompute: bool = False,
) -> ApplyFn:
    """Return the model as a pure function ``apply(params, batch, rng=None)``.

    Args:
      config: the model's shape.
      act: quantizers of activations. None; one quantizer for the inputs of the
        encoder's matrices; or a tuple of (regex of a site, quantizer), where the
        first match decides (``bitflax.model.sites`` lists the sites). One
        that learns takes its parameter from ``params``, at the path of its site.
      dtype: what the operands of all matrix products are rounded to, those of their
        gradients too: ``"bfloat16"``; None: they are not. Parameters, sums, and all
        else stay as they are.
      integers: the dtype in which an activation's integers and those of a kernel are
        multiplied, their scales factored out, where both have integers:
        ``"bfloat16"``, ``"float32"`` or ``"int8"``, all exact for activations of up to
        8 bits and kernels of up to 2; None: as ``dtype``. A kernel has integers that is
        packed, or quantised by ``bitflax.quantize(..., lazy=True)``.
      recompute: for the gradient, keep the inputs of a layer's two halves alone and
        compute the halves again: less memory, the time of one forward pass more.

    Returns:
      ``apply``. Its batch holds ``input_ids``, ``attention_mask`` and
      ``token_type_ids`` [batch, seq]; with an ``rng`` key, dropout is on. A row
      without any real token is no NaN; one with a real token whose id or type is
      beyond its table is, and with it all that share a range of ``act``.

    Raises:
      ValueError: a rule of ``act`` matches no site, or ``dtype`` is not of real
        numbers; from ``apply``, a sequence is longer than the position embeddings, or
        the parameters are not those of the config, or a learned one is missing.

    >>> config = BertConfig(8, 4, 1, 2, 8, 16)
    >>> batch = {"input_ids": jnp.array([[1, 2]]), "attention_mask": jnp.ones((1, 2)),
    ...          "token_type_ids": jnp.zeros((1, 2), int)}
    >>> out = bert(config)(init_params(config, jax.random.key(0)), batch)
    >>> out.logits.shape, len(out.hidden), len(out.scores)
    ((1, 2), 2, 1)
    """
    chosen = sites.at_sites(act, config)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be one of real numbers, not {dtype!r}")

    def apply(params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        length = batch["input_ids"].shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {length} tokens, but the model has only "
                f"{config.max_position_embeddings} positions"
            )
        _check_fits(params, config)
        rngs = None if rng is None else {"dropout": rng}
        inputs = {name: batch[name] for name in INPUTS}
        bound = sites.bind(chosen, params)
        coded = dtype if integers is None else integers
        module = Bert(config, Numerics(bound, dtype, coded, recompute))
        out: Any = module.apply({"params": params}, inputs, rng is not None, rngs=rngs)
        return out

    return apply


def _check_fits(params: Params, config: BertConfig) -> None:
    layers = len(params.get("encoder", {}))
    if layers != config.num_hidden_layers:
        problem = f"the parameters have {layers} layers, the config has "
        raise ValueError(problem + f"num_hidden_layers {config.num_hidden_layers}")
    flat = trees.flatten(params)
    for entry in names.parameter_entries(config):
        wanted = entry.shape[::-1] if entry.transposed else entry.shape
        if entry.path not in flat:
            raise ValueError(f"{entry.path}: the parameters have none")
        found = getattr(flat[entry.path], "shape", ())
        if found != wanted:
            problem = f"{entry.path}: its shape is {found}, by the config {wanted}"
            raise ValueError(problem)


def init_params(config: BertConfig, key: jax.Array) -> Params:
    """Return random parameters: normal(0, 0.02), zeros and ones, float32.

    >>> params = init_params(BertConfig(8, 4, 1, 2, 8, 16), jax.random.key(0))
    >>> params["encoder"]["layer_0"]["ffn"]["in"]["kernel"].shape
    (4, 8)
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    batch = dict.fromkeys(INPUTS, ids)
    init: Callable[..., Any] = jax.jit(Bert(config, Numerics({})).init)
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

    return sites.with_first(params, act, config, run)
