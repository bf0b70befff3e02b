"""Run a small ONNX graph in ONNX Runtime, for the tests."""

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def session(model, level="all"):
    """An ONNX Runtime session of a model, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[level]
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(graph, value, shape=None, dtype=np.float32, level="all", **inputs):
    """The value of a graph for some inputs."""
    model = graph.model({"y": (value, dtype, shape)}, {})
    return session(model, level).run(["y"], inputs)[0]


def logits(model, batch, level="all"):
    """The logits of a batch."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: np.asarray(batch[name], np.int64) for name in names}
    return session(model, level).run(["logits"], inputs)[0]
