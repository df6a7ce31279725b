import numpy as np
import onnx
from onnx import TensorProto, helper

from seed_edge.bench import operations
from seed_edge.runtime.onnx_session import Session


def test_operations_of_a_graph_are_those_of_its_products(tmp_path):
    weights = [
        helper.make_tensor("k", TensorProto.FLOAT, (6, 3, 3, 3), np.ones(162, np.float32)),
        helper.make_tensor("w", TensorProto.FLOAT, (64, 5), np.ones(320, np.float32)),
        helper.make_tensor("shape", TensorProto.INT64, (2,), [6, 64]),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (6, 5))], weights,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "g.onnx",
    )
    operators = Session.operators(tmp_path / "g.onnx", [np.ones((1, 3, 8, 8), np.float32)])
    assert sum(map(operations, operators)) == 2 * (6 * 64 * 27 + 6 * 64 * 5)
