"""From a torch module to an ONNX graph that still has its BatchNormalization nodes. The only home of ``torch.onnx``.

Opset 17 keeps the file readable for TensorRT 8.5; the TorchScript exporter writes it ten times faster than the newer
one (docs/decisions/0002-exporter.md). Both fold BatchNorm by themselves in evaluation mode, so the training flag is
preserved
rather than set: folding is a step of our own, with a parity figure.
"""

from __future__ import annotations

import io
import logging
import warnings

import onnx_ir as ir
import torch

from edgeyolo.detector import Detector
from edgeyolo.passes.graph import write_detector
from edgeyolo.passes.layer_names import LayerNames

OPSET = 17
INPUT = "images"


def export_module(module: torch.nn.Module, detector: Detector, *, dynamic_batch: bool = False) -> ir.Model:
    """Export ``module`` in evaluation mode.

    Args:
        module: (N, C, H, W) float32 pixels * scale -> tuple of raw heads, in ``detector.heads`` order.
        detector: rides in the model's metadata.
        dynamic_batch: N is symbolic instead of 1.
    """
    import onnx

    size = detector.preprocess
    names = [head.output for head in detector.heads]
    axes = {name: {0: "batch"} for name in (INPUT, *names)} if dynamic_batch else None
    sample = torch.zeros(1, size.channels, size.height, size.width)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor on every call
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            (sample,),
            buffer,  # type: ignore[arg-type]  # the annotation forgets streams
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes=axes,
        )
    model = ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    LayerNames()(model)
    write_detector(model, detector)
    return model
