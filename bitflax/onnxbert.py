"""BERT as an ONNX graph, for ONNX Runtime and other engines: ``build``.

The graph computes what ``bitflax.bert(config, act)`` does; activations are quantised
where and as in training. The kinds differ in how matrices are stored and multiplied:

=============  =====================================================================
``onnx-fp32``  float32 weights and products
``onnx-int8``  matrices of 1 and 2 bits times integer activations: ``MatMulInteger``
``onnx-2bit``  matrices of 1 and 2 bits by ONNX Runtime's ``MatMulNBits``
=============  =====================================================================

In the last two, tables and the rest are stored as they are packed, and a matrix that
is not of 1 or 2 bits, or whose input is not of integers, is multiplied in float32.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitflax import activations, leaves, onnxact, onnxlinear, onnxweights, trees
from bitflax.errors import ConfigError
from bitflax.onnxgraph import FLOAT, Graph
from bitflax.types import BertConfig, Params

FP32, INT8, TWO_BIT = KINDS = ("onnx-fp32", "onnx-int8", "onnx-2bit")
_MASKED = np.float32(-1e9)


def build(config: BertConfig, params: Params, act: Any, kind: str) -> Any:
    """Return a student as an ``onnx.ModelProto``.

    Its inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64
    [batch, sequence], both lengths free; its output is ``logits``, float32 [batch,
    labels]. Its metadata are ``kind`` and, as JSON, ``id2label``.

    Args:
      config: the model's shape and labels.
      params: a dense or a packed tree; a dense matrix of 1- or 2-bit values is taken
        as one.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      kind: ``"onnx-fp32"``, ``"onnx-int8"`` or ``"onnx-2bit"``.

    Raises:
      ConfigError: there is no such kind; ``act`` holds a quantizer that is not
        bitflax's own; or the kind multiplies integers, and the student has none.
      ValueError: a rule of ``act`` matches no site, or what it learned is missing.
    """
    if kind not in KINDS:
        raise ConfigError("kind", f"no kind {kind!r}", fix=f"one of {', '.join(KINDS)}")
    held = leaves.dense if kind == FP32 else onnxweights.read
    flat = {path: held(leaf) for path, leaf in trees.flatten(params).items()}
    chosen = activations.at_sites(act, config)
    activations.bind(chosen, params)
    student = _Student(config, flat, chosen, kind)
    logits = student.logits()
    if kind != FP32 and not student.coded:
        raise ConfigError(
            kind,
            "no matrix of 1 or 2 bits with one scale a tensor or column"
            + (" and an input of at most 8 bits" if kind == INT8 else ""),
            fix="export onnx-fp32",
        )
    return student.graph.model(
        {"logits": (logits, np.float32, ["batch", config.num_labels])},
        {"kind": kind, "id2label": json.dumps(dict(enumerate(config.labels)))},
    )


class _Student:
    """The graph of one student, part by part as in ``bitflax.model``."""

    def __init__(
        self, config: BertConfig, flat: Mapping[str, Any], act: Mapping, kind: str
    ):
        self.config, self.flat, self.act, self.kind = config, flat, act, kind
        self.graph = graph = Graph()
        names = ("input_ids", "attention_mask", "token_type_ids")
        self.ids, self.mask, self.types = (
            graph.input(name, np.int64, ["batch", "sequence"]) for name in names
        )
        self.shape = graph.op("Shape", self.ids)
        self.coded = 0
        """How many matrices are multiplied as codes."""
        self._known: dict[tuple, Any] = {}

    def logits(self) -> str:
        """Add the whole model and return its logits."""
        graph = self.graph
        mask = graph.op("Unsqueeze", self.mask, np.array([1, 2]))
        mask = graph.op("Sub", np.float32(1), graph.op("Cast", mask, to=FLOAT))
        mask = graph.op("Mul", mask, _MASKED)
        x = self.embeddings()
        for i in range(self.config.num_hidden_layers):
            x = self.attention(f"encoder/layer_{i}/attention", x, mask)
            x = self.feed_forward(f"encoder/layer_{i}/ffn", x)
        first = graph.op("Gather", x, np.array(0), axis=1)
        pooled = graph.op("Tanh", self.linear("pooler", first, rank=2))
        return self.linear("classifier", pooled, rank=2)

    def embeddings(self) -> str:
        """Add the sum of word, position and token-type rows, normalised."""
        graph, path = self.graph, "embeddings/{}/embedding"
        word, position, token_type = (
            self.flat[path.format(n)] for n in ("word", "position", "token_type")
        )
        flat = np.array([-1])
        x = onnxweights.rows(graph, word, graph.op("Reshape", self.ids, flat))
        types = graph.op("Reshape", self.types, flat)
        x = graph.op("Add", x, onnxweights.rows(graph, token_type, types))
        x = graph.op("Reshape", x, self._split_last(-1))
        length = graph.op("Slice", self.shape, np.array([1]), np.array([2]))
        table = onnxweights.dense(graph, position)
        x = graph.op("Add", x, graph.op("Slice", table, np.array([0]), length))
        return self.norm("embeddings/norm", x)

    def attention(self, path: str, x: str, mask: str) -> str:
        """Add multi-head attention with its residual."""
        graph, head = self.graph, self.config.head_width

        def project(name, axes):
            y = self.at(f"{path}/{name}/output", self.linear(f"{path}/{name}", x))
            cut = self._split_last(self.config.num_attention_heads, head)
            return graph.op("Transpose", graph.op("Reshape", y, cut), perm=axes)

        query = project("query", (0, 2, 1, 3))
        query = graph.op("Mul", query, np.float32(head**-0.5))
        scores = graph.op("MatMul", query, project("key", (0, 2, 3, 1)))
        probs = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
        probs = self.at(f"{path}/probs", probs, rank=4)
        y = graph.op("MatMul", probs, project("value", (0, 2, 1, 3)))
        y = graph.op("Transpose", y, perm=(0, 2, 1, 3))
        y = graph.op("Reshape", y, self._split_last(-1))
        y = self.linear(f"{path}/out", y)
        return self.norm(f"{path}/norm", graph.op("Add", x, y))

    def feed_forward(self, path: str, x: str) -> str:
        """Add the two matrices of a layer's second half with their residual."""
        y = self.linear(f"{path}/in", x)
        y = (
            self.gelu(y)
            if self.config.hidden_act == "gelu"
            else self.graph.op("Relu", y)
        )
        y = self.linear(f"{path}/out", y)
        return self.norm(f"{path}/norm", self.graph.op("Add", x, y))

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

    def at(self, site: str, x: str, rank: int = 3) -> str:
        """Add the quantizer of a site, if it has one; once for equal ones of ``x``."""
        quantizer, p = self.act.get(site), self.flat.get(site)
        if quantizer is None:
            return x
        key = ("values", x, quantizer, p if p is None else np.asarray(p).tobytes())
        if key not in self._known:
            self._known[key] = onnxact.values(
                self.graph, site, quantizer, x, p, rank=rank
            )
        return self._known[key]

    def codes(self, site: str, x: str) -> onnxact.Codes:
        """Add the quantizer of a site as integers [rows, n]; once for equal ones."""
        quantizer, p = self.act[site], self.flat.get(site)
        key = ("codes", x, quantizer, p if p is None else np.asarray(p).tobytes())
        if key not in self._known:
            self._known[key] = onnxact.codes(self.graph, site, quantizer, x, p)
        return self._known[key]

    def linear(self, path: str, x: str, rank: int = 3) -> str:
        """Add ``x @ kernel + bias``, ``x`` quantised as its site says."""
        graph, kernel = self.graph, self.flat[f"{path}/kernel"]
        site = f"{path}/input"
        parts = onnxweights.integers(kernel) if self.kind != FP32 else []
        if parts and self.kind == INT8 and onnxact.has_codes(self.act.get(site)):
            self.coded += 1
            flat = graph.op("Reshape", x, np.array([-1, kernel.shape[0]]))
            y = onnxlinear.int8(graph, self.codes(site, flat), parts)
            y = y if rank == 2 else graph.op("Reshape", y, self._split_last(-1))
        else:
            weights = onnxweights.dense(graph, kernel)
            y = graph.op("MatMul", self.at(site, x, rank), weights)
        return graph.op("Add", y, np.asarray(self.flat[f"{path}/bias"], np.float32))

    def _split_last(self, *sizes: int) -> str:
        """Return the shape [batch, sequence, *sizes]."""
        if sizes not in self._known:
            both = (self.shape, np.array(sizes))
            self._known[sizes] = self.graph.op("Concat", *both, axis=0)
        return self._known[sizes]
