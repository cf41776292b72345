"""Let a peer turn a model into its own format, in a process of its own so that ``peers.py`` can time it as a whole.

    python benchmarks/convert.py ncnn|openvino|static8 MODEL.onnx OUTPUT [--calib PICTURES] [--limit 32]
    python benchmarks/convert.py litert MODEL.cfg OUTPUT.tflite

static8 is ``onnxruntime.quantization.quantize_static``: what a user of ONNX Runtime does for 8 bits, with its advice
for x86 (QDQ, 8-bit unsigned activations, one scale a channel) and the pixels that our calibration gets. litert is
``litert_torch.convert`` of the torch module that our reader makes of the cfg: converters that read ONNX bring
TensorFlow along.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import network_input, read_onnx
from edgeyolo.detector import METADATA_KEY
from edgeyolo.export.pictures import PictureSet


def ncnn(model: Path, output: Path) -> None:
    """Convert by pnnx, which writes beside what it reads; float32."""
    spec = importlib.util.find_spec("pnnx")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pnnx")
    size = read_onnx(model)[0].preprocess
    shape = f"inputshape=[1,{size.channels},{size.height},{size.width}]f32"
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        copy = shutil.copyfile(model, Path(name, "model.onnx"))
        program = Path(spec.submodule_search_locations[0], "pnnx")
        subprocess.run([str(program), copy.name, "fp16=0", shape], cwd=name, check=True, stdout=subprocess.DEVNULL)
        for file in ("model.ncnn.param", "model.ncnn.bin"):
            shutil.copyfile(Path(name, file), output / file)


def openvino(model: Path, output: Path) -> None:
    """Read the ONNX file and save it as IR, in float32."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it reports to its makers
    library: Any = importlib.import_module("openvino")
    output.mkdir(parents=True, exist_ok=True)
    library.save_model(library.convert_model(model), output / "model.xml", compress_to_fp16=False)


def static8(model: Path, output: Path, calib: str, limit: int | None) -> None:
    """Quantise by ONNX Runtime's own tool; the detector's metadata come along so that the file can be measured."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    detector = read_onnx(model)[0]
    pictures = PictureSet.find(calib, detector.preprocess, limit)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """One picture after the other."""

        def __init__(self) -> None:
            self._inputs = (network_input(pixels, detector) for pixels in pictures)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            """Feed of the next run; None ends the calibration."""
            return next(({name: x} for x in self._inputs), None)

    source = onnx.load(model)
    name = source.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(model), str(prepared))
        quantization.quantize_static(
            str(prepared), str(output), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
    made = onnx.load(output)
    del made.metadata_props[:]
    made.metadata_props.extend(source.metadata_props)
    onnx.save(made, output)


def litert(cfg: Path, output: Path) -> None:
    """Convert the torch module, and add the detector's metadata."""
    import torch

    from edgeyolo.frontend.darknet import load_darknet

    library: Any = importlib.import_module("litert_torch")
    model = load_darknet(cfg, cfg.with_suffix(".weights"))
    size = model.detector.preprocess
    sample = torch.zeros(1, size.channels, size.height, size.width)
    library.convert(model.module, (sample,)).export(str(output))
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers: Any = importlib.import_module("flatbuffers")
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(output.read_bytes(), 0))
    text = schema.BufferT()
    text.data = np.frombuffer(model.detector.to_json().encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_KEY, len(tree.buffers)
    tree.buffers.append(text)
    tree.metadata = [*(tree.metadata or []), entry]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), b"TFL3")
    output.write_bytes(builder.Output())


def main() -> None:
    """Convert one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("ncnn", "openvino", "static8", "litert"))
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--calib", help="pictures for static8, as edgeyolo export takes them")
    parser.add_argument("--limit", type=int, help="at most so many of them, evenly spread")
    options = parser.parse_args()
    if options.kind == "static8":
        if options.calib is None:
            parser.error("static8 needs --calib")
        static8(options.model, options.output, options.calib, options.limit)
    else:
        {"ncnn": ncnn, "openvino": openvino, "litert": litert}[options.kind](options.model, options.output)


if __name__ == "__main__":
    main()
