"""Writes a deployed model as ONNX, as int8 ONNX and as a torch.export archive."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from resnet_cifar.evaluation.deployed import Deployed

OPSET = 20  # of ONNX
INPUT, OUTPUTS = "images", ("logits", "probabilities")
_AXES = {0: Dim("n"), 1: Dim("height"), 2: Dim("width")}


def capture(deployed: Deployed) -> ExportedProgram:
    """The graph of the model, for any number of images of any size."""
    height, width = deployed.stored_size
    example = torch.zeros(
        2, height + 3, width + 5, 3, dtype=torch.uint8
    )  # sizes of 1, or equal ones, are taken as fixed
    return torch.export.export(deployed, (example,), dynamic_shapes=(_AXES,))


def write_pt2(program: ExportedProgram, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a program for `torch.export.load`, which needs torch alone; `metadata.json` is among its extra files."""
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(dict(metadata))})


def write_onnx(program: ExportedProgram, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes an ONNX model whose metadata_props are `metadata`."""
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes=({axis: dim.__name__ for axis, dim in _AXES.items()},),
    )
    exported.model.metadata_props.update(metadata)
    exported.save(file)


def write_int8(float_model: Path, file: Path, batches: Iterator[np.ndarray]) -> None:
    """Quantizes an ONNX model to int8 by onnxruntime's static quantization (QDQ, weights per channel).

    `batches`: training images, uint8 [n, h, w, 3], on which the ranges of the activations are measured. The
    preprocessing and the probabilities stay as they are: nodes outside of the network.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(batches, None)
            return None if images is None else {INPUT: images}

    model = onnx.load(float_model)
    outside = [node.name for node in model.graph.node if not _is_of_network(node)]
    logging.disable(logging.WARNING)  # it recommends to fold BatchNorm, which the exporter has done
    try:
        # Not sums, norms and softmax: 8 bits cost transformers most of their accuracy there. A layer's range is that
        # behind its ReLU or Clip, not before it.
        quantize_static(
            model,
            file,
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu", "Clip"],
            nodes_to_exclude=outside,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)


def _is_of_network(node: object) -> bool:
    """Whether a node comes from the submodule `model`: the exporter records the scopes."""
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return "'model'" in scopes
