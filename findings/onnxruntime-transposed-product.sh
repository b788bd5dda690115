#!/usr/bin/env bash
# ONNX Runtime ignores a transpose before a product with a vector.
#
# onnxruntime 1.32.0, onnx 1.23.2, CPU. A graph of two nodes, Transpose(0, 2, 1) and MatMul with a vector of 4 numbers.
# ONNX's reference gives the product of the transposed tensor, like ONNX Runtime up to ORT_ENABLE_BASIC. From
# ORT_ENABLE_EXTENDED on (the default is ORT_ENABLE_ALL) the fusion of the two nodes ignores the transpose: the tensor's
# memory is read as if its last two axes were swapped. The shape of the result is right, and no error is raised. If the
# vector is a matrix of one column, every level is right.
#
# torch.onnx.export writes this graph for `tokens @ weight` if the tokens are a transposed volume. It looks like a fault
# of the exporter (torch 2.13.0, both exporters), but the exported graph is right.
#
# Seen:
#   reference           120 130 140 150 160 170
#   ORT_DISABLE_ALL     120 130 140 150 160 170
#   ORT_ENABLE_BASIC    120 130 140 150 160 170
#   ORT_ENABLE_EXTENDED  20  60 100 140 180 220
#   ORT_ENABLE_ALL       20  60 100 140 180 220
#   as a matrix         120 130 140 150 160 170
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

x = np.arange(24, dtype=np.float32).reshape(1, 4, 6)


def model(weight, out_shape):
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["t", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model, level="ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].ravel()


vector = np.array([1, 2, 3, 4], dtype=np.float32)
product = model(vector, [1, 6])
reference = ReferenceEvaluator(product).run(None, {"x": x})[0].ravel()
print("reference", reference)
for level, right in dict(DISABLE_ALL=True, ENABLE_BASIC=True, ENABLE_EXTENDED=False, ENABLE_ALL=False).items():
    result = run(product, f"ORT_{level}")
    print(f"ORT_{level}", result)
    assert np.array_equal(result, reference if right else x.reshape(6, 4) @ vector), "the behaviour has changed"
result = run(model(vector[:, None], [1, 6, 1]))
print("as a matrix", result)
assert np.array_equal(result, reference), "the behaviour has changed"
END
