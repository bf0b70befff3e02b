import numpy as np
import pytest

from bitflax.inference.onnx_graph import Graph
from tests.helpers import onnxrun

onnx = pytest.importorskip("onnx")


def test_equal_constants_are_stored_once():
    graph = Graph()
    names = [graph.constant(np.float32(value)) for value in (1, 2, 1)]
    assert names[0] == names[2] != names[1]
    # The same bytes in another shape or type are another constant.
    assert len({graph.constant(np.zeros(s, t)) for s in (4, (2, 2)) for t in "fi"}) == 4


def test_outputs_inputs_and_metadata_are_named():
    graph = Graph()
    x = graph.input("x", np.float32, ["rows", 2])
    total = graph.op("ReduceSum", x, np.array([1]))
    model = graph.model({"sum": (total, np.float32, ["rows", 1])}, {"kind": "test"})
    assert model.producer_name == "bitflax"
    assert {p.key: p.value for p in model.metadata_props} == {"kind": "test"}
    (found,) = onnxrun.session(model).run(["sum"], {"x": np.float32([[1, 2], [3, 4]])})
    np.testing.assert_array_equal(found, [[3], [7]])


def test_a_graph_that_is_none_is_refused():
    graph = Graph()
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        graph.model({"y": (graph.op("NoSuchOperator"), np.float32, [])}, {})
