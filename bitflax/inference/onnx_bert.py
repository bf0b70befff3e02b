"""BERT as an ONNX graph, for ONNX Runtime and other engines: ``build_onnx``.

The graph computes what ``bitflax.bert(config, act)`` does; activations are quantised
where and as in training. The kinds differ in how matrices are stored and multiplied:

=============  =====================================================================
``onnx-fp32``  float32 weights and products
``onnx-int8``  matrices of 1 and 2 bits times integer activations: ``MatMulInteger``
=============  =====================================================================

In ``onnx-int8``, tables and other parameters are stored as in the packed file. Matrices
of more than 2 bits, and those whose input has more than 8, are multiplied in float32.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bitflax import model, packed, quantization, trees
from bitflax.errors import ConfigError
from bitflax.inference import onnx_activations, onnx_matrices
from bitflax.inference.onnx_graph import FLOAT, Graph
from bitflax.types import INPUTS, BertConfig, Params

FP32, INT8 = KINDS = ("onnx-fp32", "onnx-int8")
_MASKED = np.float32(-1e9)
_ROW = np.array([-1])


def build_onnx(config: BertConfig, params: Params, act: Any, kind: str) -> Any:
    """Return a student as an ``onnx.ModelProto``.

    Its inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64
    [batch, sequence], both lengths free; its output is ``logits``, float32 [batch,
    labels]. Its metadata are ``kind`` and, as JSON, ``id2label``.

    Args:
      config: the model's shape and labels.
      params: a dense or a packed tree; a dense matrix of 1- or 2-bit values is taken
        as one.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      kind: ``"onnx-fp32"`` or ``"onnx-int8"``.

    Raises:
      ConfigError: there is no such kind; ``act`` holds a quantizer that is not
        bitflax's own; or the kind is ``"onnx-int8"``, and the student has no matrix
        that can be multiplied so.
      ValueError: a rule of ``act`` matches no site, or learned parameters are missing.
    """
    if kind not in KINDS:
        raise ConfigError("kind", f"no kind {kind!r}", fix=f"one of {', '.join(KINDS)}")
    held = packed.on_host if kind == FP32 else onnx_matrices.read
    flat = {path: held(leaf) for path, leaf in trees.flatten(params).items()}
    chosen = model.at_sites(act, config)
    model.bind(chosen, params)
    student = _Student(config, flat, chosen, kind)
    logits = student.logits()
    if kind != FP32 and not student.products:
        raise ConfigError(
            kind,
            "no matrix of 1 or 2 bits with one scale a tensor or column and an input "
            "of at most 8 bits",
            fix="export onnx-fp32",
        )
    return student.graph.model(
        {"logits": (logits, np.float32, ["batch", config.num_labels])},
        {"kind": kind, "id2label": json.dumps(dict(enumerate(config.labels)))},
    )


class _Student:
    """The graph of one student, part by part as in ``bitflax.model.apply``.

    Hidden states are matrices: a row is a token [batch * sequence, width], or, where
    ``first``, the first token of a text [batch, width].
    """

    def __init__(
        self, config: BertConfig, flat: Mapping[str, Any], act: Mapping, kind: str
    ):
        self.config, self.flat, self.act, self.kind = config, flat, act, kind
        self.graph = graph = Graph()
        self.ids, self.mask, self.types = (
            graph.input(name, np.int64, ["batch", "sequence"]) for name in INPUTS
        )
        self.shape = graph.op("Shape", self.ids)
        self.products = 0
        """The number of integer products so far."""
        self._known: dict[tuple, Any] = {}

    def logits(self) -> str:
        """Add the whole model and return its logits."""
        graph = self.graph
        mask = graph.op("Unsqueeze", self.mask, np.array([1, 2]))
        mask = graph.op("Sub", np.float32(1), graph.op("Cast", mask, to=FLOAT))
        mask = graph.op("Mul", mask, _MASKED)
        x = self.embeddings()
        *layers, last = range(self.config.num_hidden_layers)
        for i in layers:
            x = self.layer(f"encoder/layer_{i}", x, x, mask, first=False)
        # Of the last layer, the pooler reads the first tokens alone.
        path = f"encoder/layer_{last}"
        if self.by_token(path):
            x = self.layer(path, self.first(x), x, mask, first=True)
        else:
            x = self.first(self.layer(path, x, x, mask, first=False))
        x = graph.op("Tanh", self.linear("pooler", x, first=True))
        return self.linear("classifier", x, first=True)

    def embeddings(self) -> str:
        """Add the sum of word, position and token-type rows, normalised."""
        graph, path = self.graph, "embeddings/{}/embedding"
        word, position, token_type = (
            self.flat[path.format(n)] for n in ("word", "position", "token_type")
        )
        ids, types = (graph.op("Reshape", x, _ROW) for x in (self.ids, self.types))
        x = onnx_matrices.rows(graph, word, ids)
        x = graph.op("Add", x, onnx_matrices.rows(graph, token_type, types))
        length = graph.op("Slice", self.shape, np.array([1]), np.array([2]))
        table = onnx_matrices.dense(graph, position)
        positions = graph.op("Slice", table, np.array([0]), length)
        x = graph.op("Add", self.by_text(x), positions)
        return self.norm("embeddings/norm", self.by_row(x, self.config.hidden_size))

    def layer(self, path: str, x: str, tokens: str, mask: str, *, first: bool) -> str:
        """Add a layer that maps rows ``x`` to new rows, attending to ``tokens``."""
        y = self.attention(f"{path}/attention", x, tokens, mask, first)
        x = self.norm(f"{path}/attention/norm", self.graph.op("Add", x, y))
        y = self.linear(f"{path}/ffn/in", x, first)
        gelu = self.config.hidden_act == "gelu"
        y = self.gelu(y) if gelu else self.graph.op("Relu", y)
        y = self.linear(f"{path}/ffn/out", y, first)
        return self.norm(f"{path}/ffn/norm", self.graph.op("Add", x, y))

    def attention(self, path: str, x: str, tokens: str, mask: str, first: bool) -> str:
        """Add multi-head attention of the rows ``x`` to all ``tokens``."""
        graph, config = self.graph, self.config
        heads, head = config.num_attention_heads, config.head_width

        def project(name, x, axes, first=False):
            y = self.linear(f"{path}/{name}", x, first)
            y = self.at(f"{path}/{name}/output", y, first)
            y = self.by_text(y, heads, head, first=first)
            return graph.op("Transpose", y, perm=axes)

        query = project("query", x, (0, 2, 1, 3), first)
        query = graph.op("Mul", query, np.float32(head**-0.5))
        scores = graph.op("MatMul", query, project("key", tokens, (0, 2, 3, 1)))
        probs = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
        if f"{path}/probs" in self.act:
            probs = self.values(f"{path}/probs", probs, rank=4)
        y = graph.op("MatMul", probs, project("value", tokens, (0, 2, 1, 3)))
        y = graph.op("Transpose", y, perm=(0, 2, 1, 3))
        return self.linear(f"{path}/out", self.by_row(y, heads * head), first)

    def linear(self, path: str, x: str, first: bool) -> str:
        """Add ``x @ kernel + bias``, ``x`` quantised as its site says."""
        graph, site = self.graph, f"{path}/input"
        kernel, bias = self.flat[f"{path}/kernel"], self.flat[f"{path}/bias"]
        parts = onnx_matrices.integers(kernel) if self.kind != FP32 else []
        if parts and onnx_activations.has_codes(self.act.get(site)):
            self.products += 1
            y = onnx_matrices.int8(graph, self.codes(site, x), parts)
        else:
            x = self.at(site, x, first)
            y = graph.op("MatMul", x, onnx_matrices.dense(graph, kernel))
        return graph.op("Add", y, np.asarray(bias, np.float32))

    def gelu(self, x: str) -> str:
        """Add ``x (1 + erf(x / sqrt 2)) / 2``, the form that runtimes fuse."""
        graph = self.graph
        y = graph.op("Erf", graph.op("Div", x, np.float32(2**0.5)))
        y = graph.op("Mul", x, graph.op("Add", y, np.float32(1)))
        return graph.op("Mul", y, np.float32(0.5))

    def norm(self, path: str, x: str) -> str:
        """Add a LayerNorm over the last axis."""
        scale, bias = (np.asarray(self.flat[f"{path}/{n}"]) for n in ("scale", "bias"))
        eps = self.config.layer_norm_eps
        return self.graph.op("LayerNormalization", x, scale, bias, epsilon=eps)

    def at(self, site: str, x: str, first: bool) -> str:
        """Add the quantizer of rows at a site, if it has one."""
        quantizer = self.act.get(site)
        if quantizer is None:
            return x
        if first or onnx_activations.is_flat(quantizer):
            return self.values(site, x, rank=2)
        y = self.values(site, self.by_text(x), rank=3)
        return self.graph.op("Reshape", y, self.graph.op("Shape", x))

    def values(self, site: str, x: str, rank: int) -> str:
        """Add the quantizer of a site; equal ones of the same ``x`` are shared."""
        make = functools.partial(onnx_activations.values, rank=rank)
        return self._once(make, site, x)

    def codes(self, site: str, x: str) -> onnx_activations.Codes:
        """Add the quantizer of a site as integers; equal ones of ``x`` are shared."""
        return self._once(onnx_activations.codes, site, x)

    def _once(self, make: Callable, site: str, x: str) -> Any:
        quantizer, p = self.act[site], self.flat.get(site)
        learned = None if p is None else np.asarray(p).tobytes()
        key = (getattr(make, "func", make), x, quantizer, learned)
        if key not in self._known:
            self._known[key] = make(self.graph, site, quantizer, x, p)
        return self._known[key]

    def by_token(self, path: str) -> bool:
        """Whether no quantizer of a layer looks at more than one token."""
        sites = (site for site in self.act if site.startswith(f"{path}/"))
        return all(quantization.by_row(self.act[site]) for site in sites)

    def first(self, x: str) -> str:
        """Return the rows of first tokens [batch, width]."""
        return self.graph.op("Gather", self.by_text(x), np.array(0), axis=1)

    def by_text(self, x: str, *sizes: int, first: bool = False) -> str:
        """Reshape rows to [batch, sequence, *sizes]; a size of -1 is inferred."""
        tail = np.array(sizes or (-1,))
        if first:
            return self.graph.op("Reshape", x, np.array([0, 1, *tail]))
        key = ("shape", *sizes)
        if key not in self._known:
            self._known[key] = self.graph.op("Concat", self.shape, tail, axis=0)
        return self.graph.op("Reshape", x, self._known[key])

    def by_row(self, x: str, width: int) -> str:
        """Reshape [..., width] to rows."""
        return self.graph.op("Reshape", x, np.array([-1, width]))
