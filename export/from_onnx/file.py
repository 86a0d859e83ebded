"""Reading a foreign ONNX file: in one piece, at the opset of the exporter, with standard operators."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from export.canonical import OPSET
from export.from_onnx.spec import ForeignError

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")
BIG_TENSOR = 2**16  # bytes; shapes, axes and scales, which the converter reads, are smaller
MAX_BYTES = 2**31 - 1


def read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ForeignError(f"{path}: more bytes than an ONNX file can have ({MAX_BYTES:,})")
        return path.read_bytes()
    except IsADirectoryError as error:
        raise ForeignError(f"{path}: expected an .onnx file, found a folder") from error
    except OSError as error:
        raise ForeignError(f"{path}: it cannot be read: {error.strerror or error}") from error


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """Parse the model, with all its weights in memory."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own classes differ between its implementations
        raise ForeignError(f"{path}: not an ONNX model, or a damaged one ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise ForeignError(f"{path}: not an ONNX model: it has no operators")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx's checker has classes of its own
        raise ForeignError(f"{path}: its external data cannot be read ({_one_line(error)})") from error
    return model


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                found += _tensors(inner)
    return found


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse external data outside the folder of the model: another path could read any file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ForeignError(
            f"{path}: the weight {tensor.name!r} is said to lie in {location!r}, outside the model's folder; "
            "do not use this file, or export it again as one file"
        )
    if not file.is_file():
        raise ForeignError(
            f"{path}: the weight {tensor.name!r} lies in {location!r}, which is missing beside it"
        )


def standard(model: onnx.ModelProto, path: Path) -> ir.Model:
    """The same model at our opset, functions inlined, constants as initializers, standard operators only."""
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    graph = _prepared(ir.from_proto(model))
    if foreign := sorted({f"{n.domain}.{n.op_type}" for n in graph.graph if n.domain not in ("", "ai.onnx")}):
        raise ForeignError(
            f"{path}: expected standard operators, found {', '.join(foreign)}; export the model again "
            "without ONNX Runtime's optimizer"
        )
    types = {node.op_type for node in graph.graph}
    if quantized := sorted(types.intersection(QUANTIZED)):
        raise ForeignError(
            f"{path}: expected a float model, found {quantized[0]}; give the model before INT8"
        )
    if branching := sorted(types.intersection({"Loop", "Scan"})):
        raise ForeignError(
            f"{path}: {branching[0]} is in it, whose shapes are not fixed; trace, do not script"
        )
    if version >= OPSET:
        return graph
    try:
        converted = _converted(graph)
    except Exception as error:  # the converter is C++ and raises plain RuntimeError among others
        raise ForeignError(
            f"{path}: opset {version} cannot be brought to {OPSET} ({_one_line(error)}); export it again "
            f"with opset {OPSET}"
        ) from error
    return _prepared(converted)


def _converted(model: ir.Model) -> ir.Model:
    """The model at our opset; large weights stay aside, since the converter serializes what it is given."""
    graph, aside = model.graph, dict[str, ir.TensorProtocol]()
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > BIG_TENSOR:
            aside[name] = value.const_value
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
    converted = ir.from_proto(version_converter.convert_version(ir.to_proto(model), OPSET))
    for value in [value for value in converted.graph.inputs if value.name in aside]:
        converted.graph.inputs.remove(value)
        value.const_value = aside[str(value.name)]
        converted.graph.register_initializer(value)
    return converted


def _prepared(model: ir.Model) -> ir.Model:
    RemoveInitializersFromInputsPass()(model)
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _name_nodes(model)
    return model


def _name_nodes(model: ir.Model) -> None:
    """Name the nodes that have no name, which ONNX allows: passes name what they insert after them."""
    taken = {node.name for node in model.graph}
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = next(
                name
                for suffix in ("", *(f".{count}" for count in range(1, len(taken) + 2)))
                if (name := f"{node.op_type}_{index}{suffix}") not in taken
            )
            taken.add(node.name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
