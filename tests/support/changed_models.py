"""Model files with a fault that no digest shows."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from runtime.model_file.integrity import DIGEST_KEY


def mirror_weights(source: Path, path: Path) -> Path:
    """Write a model with its largest weight (INT8 first) mirrored, and the digest made valid again."""
    proto = onnx.load(source)
    weights = [each for each in proto.graph.initializer if len(each.dims) == 2]
    largest = max(weights, key=lambda each: (each.data_type == onnx.TensorProto.INT8, len(each.raw_data)))
    values = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), largest.name))
    kept = [each for each in proto.metadata_props if each.key != DIGEST_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    data = proto.SerializeToString()
    end = onnx.ModelProto()
    end.metadata_props.add(key=DIGEST_KEY, value=sha256(data).hexdigest())
    path.write_bytes(data + end.SerializeToString())
    return path
