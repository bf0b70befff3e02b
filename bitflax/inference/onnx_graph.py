"""A small builder of ONNX graphs, on the ``onnx`` package alone.

Values are names (strings); whatever else is handed to an operator, a number or an
array, becomes a constant of the graph, each distinct one once.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

OPSET = 17
"""The first with LayerNormalization; ONNX Runtime reads it since 1.12."""
IR_VERSION = 8
"""The IR version that belongs to this opset."""
FLOAT, INT32 = 1, 6
"""Element types, as ``onnx.TensorProto`` numbers them."""

Value = Any
"""A value's name, or a number or an array that becomes a constant."""


class Graph:
    """Nodes and constants in the order of the calls that made them.

    >>> graph = Graph()
    >>> twice = graph.op("Mul", graph.input("x", np.float32, ["n"]), np.float32(2))
    >>> model = graph.model({"y": (twice, np.float32, ["n"])}, {"kind": "twice"})
    >>> [node.op_type for node in model.graph.node]
    ['Mul', 'Identity']
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: list[Any] = []
        self._known: dict[tuple, str] = {}

    def input(self, name: str, dtype: Any, shape: list) -> str:
        """Add an input; a string in its shape names a length that is free."""
        self._inputs.append(_info(name, dtype, shape))
        return name

    def constant(self, value: Any) -> str:
        """Return the name of a constant; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.asarray(value)
        digest = hashlib.sha256(array.tobytes()).digest()
        key = (array.dtype.str, array.shape, digest)
        if key not in self._known:
            self._known[key] = f"c{len(self._known)}"
            made = numpy_helper.from_array(array, self._known[key])
            self._constants.append(made)
        return self._known[key]

    def full(self, shape: Value, value: Any) -> str:
        """Add an array filled with one value; its shape is a ``Value`` too."""
        from onnx import numpy_helper

        single = numpy_helper.from_array(np.asarray(value)[None])
        return self.op("ConstantOfShape", shape, value=single)

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Add an operator of one output and return the output's name."""
        from onnx import helper

        name = f"{kind}_{len(self._nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        node = helper.make_node(kind, names, [name], name=name, **attributes)
        self._nodes.append(node)
        return name

    def model(
        self,
        outputs: Mapping[str, tuple[str, Any, list]],
        metadata: Mapping[str, str],
    ) -> Any:
        """Return the checked ``onnx.ModelProto``.

        Args:
          outputs: ``{name in the model: (value, dtype, shape)}``.
          metadata: texts to store in the model.
        """
        import onnx
        from onnx import helper

        ends = [
            helper.make_node("Identity", [value], [name])
            for name, (value, _, _) in outputs.items()
        ]
        infos = [_info(name, *kind) for name, (_, *kind) in outputs.items()]
        graph = helper.make_graph(
            [*self._nodes, *ends], "bitflax", self._inputs, infos, self._constants
        )
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bitflax",
        )
        helper.set_model_props(made, dict(metadata))
        onnx.checker.check_model(made)
        return made


def _info(name: str, dtype: Any, shape: list) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
