"""Sites: where a model's activations can be quantised, and what quantises them there.

A quantizer that learns (one with ``init(x) -> p`` and ``__call__(x, p)``, as those of
``bitflax.quantization.learned_activations``) keeps its parameter in the model's tree:
the path is the site.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bitflax import trees
from bitflax.types import BertConfig, Params, Quantizer

Act = Quantizer | Sequence[tuple[str, Quantizer]] | None

LINEAR_INPUTS = (
    r"encoder/layer_\d+/(attention/(query|key|value|out)|ffn/(in|out))/input"
)


def site_names(config: BertConfig) -> tuple[str, ...]:
    """Return the names of all activations that can be quantised.

    >>> site_names(BertConfig(num_hidden_layers=1))[:2]
    ('encoder/layer_0/attention/query/input', 'encoder/layer_0/attention/query/output')
    """
    names = [
        f"attention/{n}/{s}"
        for n in ("query", "key", "value")
        for s in ("input", "output")
    ]
    names += ["attention/probs", "attention/out/input", "ffn/in/input", "ffn/out/input"]
    layers = range(config.num_hidden_layers)
    return (*(f"encoder/layer_{i}/{n}" for i in layers for n in names), "pooler/input")


def at_sites(act: Act, config: BertConfig) -> dict[str, Any]:
    """Return ``{site: quantizer}`` of ``act``, as ``bitflax.bert`` takes it.

    Raises:
      ValueError: a rule of ``act`` matches no site.

    >>> len(at_sites(abs, BertConfig(num_hidden_layers=1)))
    6
    """
    rules = [(LINEAR_INPUTS, act)] if callable(act) else list(act or ())
    return trees.match(rules, site_names(config))


def learns(quantizer: Any) -> bool:
    """Whether a quantizer has a parameter of its own."""
    return hasattr(quantizer, "init")


def learned_shapes(act: Act, config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Return ``{site: shape}`` of the parameters that ``act`` learns.

    Raises:
      ValueError: as ``at_sites``.

    >>> from bitflax.quantization import lsq
    >>> learned_shapes((("pooler/input", lsq(4)),), BertConfig())
    {'pooler/input': ()}
    """
    found = at_sites(act, config)
    return {site: tuple(q.shape) for site, q in found.items() if learns(q)}


def bind(act: Mapping[str, Any], params: Params) -> dict[str, Quantizer]:
    """Return ``{site: array -> array}``, learned parameters taken from the tree.

    Raises:
      ValueError: the tree holds no parameter at the site of a quantizer that learns.
    """
    if not any(map(learns, act.values())):
        return dict(act)
    flat = trees.flatten(params)
    missing = [site for site, q in act.items() if learns(q) and site not in flat]
    if missing:
        site = missing[0]
        raise ValueError(
            f"{site}: its quantizer, {act[site]!r:.60}, learns a parameter, but the "
            "tree has none there: make it by bitflax.init_act(params, act, batch, "
            "config)"
        )
    return {
        site: functools.partial(q, p=flat[site]) if learns(q) else q
        for site, q in act.items()
    }


def with_first(
    params: Params, act: Act, config: BertConfig | None, run: Callable[..., Any]
) -> Params:
    """Return the parameters with first ones of all quantizers that learn.

    Args:
      params: a model's parameters; what is at sites is dropped.
      act: as ``bitflax.bert`` takes it.
      config: the model's shape, needed where a quantizer looks at its activation.
      run: ``(act, params)`` runs the model on a first batch.

    Raises:
      ValueError: ``config`` is missing, or a rule of ``act`` matches no site.
    """
    layers = len(params["encoder"])
    chosen = at_sites(act, config or BertConfig(num_hidden_layers=layers))
    known = set(site_names(BertConfig(num_hidden_layers=layers)))
    flat = {p: leaf for p, leaf in trees.flatten(params).items() if p not in known}
    learned = {site: q for site, q in chosen.items() if learns(q)}
    looking = [site for site, q in learned.items() if getattr(q, "looks", True)]
    if not looking:
        return trees.unflatten(flat | {site: q.init() for site, q in learned.items()})
    if config is None:
        raise ValueError(
            f"{looking[0]}: {learned[looking[0]]!r:.60} looks at its activation, so "
            "that the model has to run: give its config"
        )
    made = jax.jit(functools.partial(_first, chosen, run))(trees.unflatten(flat))
    return trees.unflatten(flat | made)


def _first(act: Mapping[str, Any], run: Callable[..., Any], params: Params) -> Params:
    """Run a model whose quantizers make their parameters of what they first see."""
    made: dict[str, Any] = {}

    def at(site: str, quantizer: Any, x: jax.Array) -> jax.Array:
        made[site] = quantizer.init(x)
        return quantizer(x, made[site])

    first = [
        (site, functools.partial(at, site, q) if learns(q) else q)
        for site, q in act.items()
    ]
    run(first, params)
    return made


ACT_PARAMS = r".*/(input|output|probs)"
"""What activation quantizers learn: the path of a parameter is its site."""
