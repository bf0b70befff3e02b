"""Engines: what computes the logits of a batch: our own C++, JAX or ONNX Runtime.

An engine is a function of a batch (``input_ids``, ``attention_mask`` and
``token_type_ids``, int32 [rows, tokens]) to float32 logits [rows, labels].
"""

import functools
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bitflax import model, packed, trees
from bitflax.errors import BitflaxError, ConfigError, InputMissing
from bitflax.inference import native, onnx_bert
from bitflax.model import Packed, Split
from bitflax.types import INPUTS, BertConfig, Params

Engine = Callable[[Mapping[str, np.ndarray]], np.ndarray]

ENGINES = ("auto", "native", "jax", "onnx")
ASKED = 2**19
"""Token positions that a program of jax's is taken to answer: some thousand texts."""
SHAPE_FLOP = 1e14
"""What an accelerator could compute in the second or so for which one more length of
texts compiles: an H100's program of MiniLM takes 1 CPU second (estimated)."""
_LOG = logging.getLogger(__name__)


def check_engine(name: str, threads: int | None = None) -> None:
    """Check that there is an engine of this name, and that it has what it needs.

    Raises:
      ConfigError: there is none, or it does not take ``threads``.
      InputMissing: a package or a compiler that it needs is not installed.

    >>> check_engine("jax")
    """
    if name not in ENGINES:
        raise ConfigError(
            "engine", f"no engine {name!r}", fix=f"one of {', '.join(ENGINES)}"
        )
    native.check_threads(threads)
    if name == "jax" and threads is not None:
        fix = "take the engine native or onnx"
        raise ConfigError("threads", "the engine jax takes all cores", fix=fix)
    if name == "native":
        native.find_compiler()
    if name == "onnx":
        need_packages("onnx", "onnxruntime")


def need_packages(*packages: str) -> None:
    """Check that the packages of the extra ``onnx`` are installed.

    Raises:
      InputMissing: one is not.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputMissing(
            " and ".join(missing),
            "not installed, and ONNX needs it",
            fix="pip install 'bitflax[onnx]'",
        )


def make_engine(
    name: str,
    config: BertConfig,
    params: Params,
    act: Any = None,
    threads: int | None = None,
) -> Engine:
    """Return an engine that runs a model.

    Args:
      name: ``"native"``: tables of 1-bit weights, on the processor; ``"jax"``;
        ``"onnx"``: ONNX Runtime on the processor, with integer matrix products where
        the student has 8-bit activations; ``"auto"``: native where it is the faster
        one, a student of 1 or 2 bits with activations of at most 8 on a processor
        without an accelerator beside it; else jax.
      config: the model's shape.
      params: dense parameters, or a packed tree.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      threads: that ``"native"`` and ``"onnx"`` take; None: all cores.

    Raises:
      ConfigError: there is no such engine, or it cannot run this model.
      InputMissing: a package or a compiler that it needs is not installed.
      StorageError: the native engine does not compile.
    """
    check_engine(name, threads)
    if name == "auto":
        found = _faster(config, params, act, threads)
        return _jax(config, params, act) if found is None else found
    if name == "native":
        return _native(config, params, act, threads)
    if name == "jax":
        return _jax(config, params, act)
    try:
        graph = onnx_bert.build_onnx(config, params, act, onnx_kind(config, act))
    except ConfigError:  # weights without integers; float32 computes the same
        graph = onnx_bert.build_onnx(config, params, act, "onnx-fp32")
    return run_onnx(graph.SerializeToString(), threads)


def _faster(
    config: BertConfig, params: Params, act: Any, threads: int | None
) -> native.NativeModel | None:
    """Return the native engine where it beats jax's; None, and why, where it does not.

    Products of floats are XLA's: the native engine takes up to twice as long for them.
    """
    integers = _multiplies_integers(config, params, act)
    if not integers and threads is None:
        return None
    try:
        if not integers:
            why = "it multiplies floats faster"
        elif _has_accelerator():
            why = f"it computes on {jax.default_backend()}"
        elif log := native.failed_before():
            why = f"the native one did not compile before; {log} says why"
        else:
            made = _native(config, params, act, threads)
            if made.target != "portable":
                return made
            why = "the native one has no target for this processor"
    except BitflaxError as error:
        why = f"{error.place}: {error.problem}"
    except MemoryError as error:  # nor may there be as many threads
        why = str(error)
    said = "" if threads is None else "; it takes all cores"
    _LOG.info("the engine jax answers%s; %s", said, why)
    return None


def _multiplies_integers(config: BertConfig, params: Params, act: Any) -> bool:
    """Whether all of the layers' matrices have few bits, and their inputs."""
    quantised = model.at_sites(act, config)

    def fits(path: str, leaf: Any) -> bool:
        quantizer = quantised.get(f"{path.removesuffix('kernel')}input")
        parts = (leaf.a, leaf.b) if isinstance(leaf, Split) else (leaf,)
        short = all(isinstance(x, Packed) and x.bits <= 2 for x in parts)
        return short and getattr(quantizer, "bits", 32) <= 8

    kernels = re.compile(r"encoder/.*/kernel").fullmatch
    flat = trees.flatten(params).items()
    return all(fits(path, leaf) for path, leaf in flat if kernels(path))


def shape_tokens(config: BertConfig) -> int | None:
    """Return what one more length of batches costs in token positions.

    As ``bitflax.data.buckets_for`` takes it: None on a processor. An accelerator pads
    some thousand texts to one length.
    """
    if not _has_accelerator():
        return None
    return int(SHAPE_FLOP / model.forward_flop(config, 1))


def _has_accelerator() -> bool:
    """Whether jax computes on anything but the processor.

    jax is asked only where something is installed for it to find: to start it takes
    longer than the native engine needs to load and answer.
    """
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    named = ("jax_plugins", "libtpu")
    if not plugins and not any(map(importlib.util.find_spec, named)):
        return False
    return jax.default_backend() != "cpu"


def _native(
    config: BertConfig, params: Params, act: Any, threads: int | None
) -> native.NativeModel:
    return native.NativeModel(native.to_flat(config, params, act), threads=threads)


def onnx_kind(config: BertConfig, act: Any) -> str:
    """Return which ONNX form computes what a student was trained with.

    >>> from bitflax.quantization import symmetric
    >>> onnx_kind(BertConfig(), symmetric(8)), onnx_kind(BertConfig(), None)
    ('onnx-int8', 'onnx-fp32')
    """
    found = model.at_sites(act, config).values()
    short = any(getattr(quantizer, "bits", 32) <= 8 for quantizer in found)
    return "onnx-int8" if short else "onnx-fp32"


def run_onnx(graph: bytes, threads: int | None = None) -> Engine:
    """Return an engine that runs an ONNX model's bytes in ONNX Runtime.

    Args:
      graph: a serialised ``ModelProto`` with the inputs of a batch and ``logits``.
      threads: that compute together; None: as ONNX Runtime has it.
    """
    import onnxruntime

    options, processor = onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(graph, options, providers=processor)

    def engine(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = {name: np.asarray(batch[name], np.int64) for name in INPUTS}
        (logits,) = session.run(["logits"], inputs)
        return np.asarray(logits)

    return engine


def _jax(config: BertConfig, params: Params, act: Any) -> Engine:
    """Compile for each shape that comes."""
    # Tables stay packed, since few of their rows are looked up; matrices are unpacked
    # once and not in every batch. Both give the packed tree's numbers, save for the
    # rounding of scales where integers are multiplied.
    integers, quantised = integers_here(), model.at_sites(act, config)

    def unpack(path: str, leaf: Any) -> Any:
        if path.startswith("embeddings/"):
            return leaf
        site = path.removesuffix("kernel") + "input"
        return packed.on_host(leaf, integers if site in quantised else None)

    held = jax.device_put(trees.map_paths(unpack, params))
    apply = model.bert(config, act, integers=integers)
    options = model.compiler_options(model.forward_flop(config, ASKED))

    @functools.partial(jax.jit, compiler_options=options)
    def step(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        return apply(params, batch).logits

    def engine(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(step(held, {name: batch[name] for name in INPUTS}))

    return engine


def integers_here() -> DTypeLike | None:
    """Return the dtype in which this machine multiplies integers faster than float32.

    int8 on an accelerator; bfloat16 on a CPU that has instructions for it, where XLA's
    products of bfloat16 are faster than those of int8 (six layers of BERT-base, Zen 5,
    one thread: 0.58 of float32's time at 1 x 128 tokens, int8 0.70); else None.
    """
    if jax.default_backend() != "cpu":
        return jnp.int8
    try:
        about = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return None
    return jnp.bfloat16 if re.search(r"\b(avx512|amx)_bf16\b", about) else None
