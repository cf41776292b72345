"""Whole networks of every family against the numpy reference, in torch and ONNX, and what their heads say."""

from __future__ import annotations

import darknet_reference as reference
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from darknet_families import FAMILIES, REGION, conv, net, raw, yolo

from edgeyolo.detector import Detector
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.frontend.darknet import describe_darknet, load_darknet
from edgeyolo.frontend.torch_export import export_module

TOLERANCE = 1e-4
"""float32 against float64 through up to 30 layers with values of order 1 to 10."""


def load(cfg, tmp_path, file=None, **options):
    (tmp_path / "x.cfg").write_text(cfg)
    if file is not None:
        (tmp_path / "x.weights").write_bytes(file)
    return load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights" if file is not None else None, **options)


def expected_outputs(cfg, outputs):
    """What leaves the network: each head's input, or the scores before the softmax."""
    kinds = [(kind, options) for kind, options in reference.sections(cfg)[1:]]
    heads = [i - 1 for i, (kind, _) in enumerate(kinds) if kind in ("yolo", "Gaussian_yolo", "region")]
    if heads:
        return [outputs[i] for i in heads]
    last = max(i for i, (kind, _) in enumerate(kinds) if kind not in ("cost", "dropout"))
    if kinds[last][0] != "softmax":
        return [outputs[last].ravel()]
    return [outputs[last - 1].ravel() / float(kinds[last][1].get("temperature", 1))]


@pytest.mark.parametrize("bn_eps", ["alexeyab", "pjreddie"])
@pytest.mark.parametrize("name", FAMILIES)
def test_network_equals_the_reference(name, bn_eps, tmp_path):
    cfg = FAMILIES[name]
    picture, outputs, file = reference.run(cfg, seed=3, pjreddie=bn_eps == "pjreddie")
    model = load(cfg, tmp_path, file, bn_eps=bn_eps)
    with torch.no_grad():
        got = model.module(torch.from_numpy(picture)[None])
    for tensor, expected in zip(got, expected_outputs(cfg, outputs), strict=True):
        np.testing.assert_allclose(tensor.numpy()[0], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert [layer.output for layer in model.layers] == [output.shape for output in outputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_export_equals_torch_for_any_batch_and_keeps_batch_norm(name, tmp_path):
    model = load(FAMILIES[name], tmp_path)
    exported = export_module(model.module, model.detector, dynamic_batch=True)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.module.modules())
    assert sum(node.op_type == "BatchNormalization" for node in exported.graph) == norms
    session = ort.InferenceSession(ir.to_proto(exported).SerializeToString(), providers=["CPUExecutionProvider"])
    pre = model.detector.preprocess
    batch = np.random.default_rng(0).random((2, pre.channels, pre.height, pre.width), np.float32)
    with torch.no_grad():
        expected = model.module(torch.from_numpy(batch))
    names = [head.output for head in model.detector.heads]
    for tensor, got in zip(expected, session.run(names, {"images": batch}), strict=True):
        np.testing.assert_allclose(got, tensor.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_network_is_the_same_in_training_mode_but_for_batch_norm(tmp_path):
    """Dropout passes its input on in every mode."""
    model = load(FAMILIES["vgg"], tmp_path)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.module.train()(x)[0], model.module.eval()(x)[0])


def test_yolo_heads(tmp_path):
    detector = load(FAMILIES["yolov4-tiny"], tmp_path).detector
    coarse, fine = detector.heads
    assert (coarse.kind, coarse.classes, coarse.stride, coarse.scale_x_y) == ("yolo", 2, (16.0, 16.0), 1.05)
    assert coarse.anchors == ((81, 82), (135, 169), (344, 319))
    assert (fine.stride, fine.anchors) == ((8.0, 8.0), ((23, 27), (37, 58), (81, 82)))
    assert (detector.nms_kind, detector.beta_nms, detector.preprocess.resize) == ("greedynms", 0.6, "stretch")
    assert len({head.output for head in detector.heads}) == 2
    assert Detector.from_json(detector.to_json()) == detector


def test_new_coords_diounms_and_letter_box(tmp_path):
    detector = load(FAMILIES["yolov4-csp"], tmp_path).detector
    assert detector.heads[0].new_coords and detector.heads[0].scale_x_y == 2.0
    assert (detector.nms_kind, detector.beta_nms, detector.preprocess.resize) == ("diounms", 0.7, "letterbox")


def test_region_anchors_are_cells_and_become_pixels(tmp_path):
    head = load(FAMILIES["yolov2"], tmp_path, imgsz="64x32").detector.heads[0]
    assert (head.kind, head.softmax, head.stride) == ("region", True, (8.0, 8.0))
    np.testing.assert_allclose(head.anchors, [(1.08 * 8, 1.19 * 8), (3.42 * 8, 4.41 * 8)])


def test_region_without_softmax_has_a_meaning_in_one_program_only(tmp_path):
    cfg = net() + conv(4) + raw(16) + REGION.replace("softmax=1", "softmax=0")
    with pytest.raises(UnsupportedError, match="softmax=1"):
        load(cfg, tmp_path)
    assert not load(cfg, tmp_path, bn_eps="pjreddie").detector.heads[0].softmax


def test_gaussian_and_classifier_heads(tmp_path):
    gaussian = load(FAMILIES["gaussian-yolov3"], tmp_path).detector.heads[0]
    assert (gaussian.kind, gaussian.classes, len(gaussian.anchors)) == ("gaussian_yolo", 2, 3)
    head = load(FAMILIES["darknet-reference"], tmp_path).detector.heads[0]
    assert (head.kind, head.classes, head.softmax) == ("classifier", 10, True)
    head = load(FAMILIES["multi-label grey"], tmp_path)
    assert (head.detector.heads[0].softmax, head.detector.preprocess.channels) == (False, 1)


def test_without_mask_all_anchors_count_and_defaults_hold(tmp_path):
    cfg = net() + conv(4) + raw(25) + "[yolo]\nnum=1\nanchors=5,6\n"
    detector = load(cfg, tmp_path).detector
    assert (detector.heads[0].classes, detector.heads[0].anchors) == (20, ((5, 6),))
    assert (detector.nms_kind, detector.beta_nms, detector.heads[0].scale_x_y) == ("default", 0.6, 1.0)


def test_names_are_read_and_counted(tmp_path):
    names = tmp_path / "x.names"
    names.write_text("cat\n dog \n\n")
    cfg = net() + conv(4) + raw(21) + yolo()
    assert load(cfg, tmp_path, names=names).detector.names == ("cat", "dog")
    names.write_text("cat\n")
    with pytest.raises(InputError, match="names file does not fit"):
        load(cfg, tmp_path, names=names)
    with pytest.raises(InputError, match="names file is not a file"):
        load(cfg, tmp_path, names=tmp_path / "no.names")


BAD_HEADS = {
    "filters": (raw(20) + yolo(), "wrong number of filters"),
    "mask": (raw(21) + yolo("0,1,6"), "anchors that are not there"),
    "no anchors": (raw(21) + "[yolo]\nclasses=2\nnum=3\n", "anchors that are not there"),
    "anchors of zero": (raw(7) + "[yolo]\nclasses=2\nnum=1\nanchors=0,5\n", "anchors that are not there"),
    "classes": (raw(21) + "[yolo]\nclasses=0\nnum=3\n", "classes is out of range"),
    "num": (raw(21) + "[yolo]\nclasses=2\nnum=100000000\n", "num is out of range"),
    "nothing": ("", "no layers"),
}


@pytest.mark.parametrize(("body", "words"), BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_a_head_that_does_not_fit_is_refused(body, words, tmp_path):
    with pytest.raises(InputError, match=words):
        load(net() + body, tmp_path)


def test_a_backbone_can_be_described_but_not_loaded(tmp_path):
    cfg = net() + conv(4) + conv(8, 3, 2)
    with pytest.raises(UnsupportedError, match="neither in a detection head nor in class scores"):
        load(cfg, tmp_path)
    described = describe_darknet(tmp_path / "x.cfg")
    assert described.detector is None and len(described.layers) == 2
    assert any("neither in a detection head" in note for note in described.notes)


def test_layers_that_no_head_needs_keep_their_place_in_the_weights_file(tmp_path):
    """The convolution after the head feeds nothing, but its numbers stand in the file."""
    cfg = net(16) + conv(4) + raw(21) + yolo() + "[route]\nlayers=0\n" + conv(6)
    picture, outputs, file = reference.run(cfg)
    model = load(cfg, tmp_path, file)
    with torch.no_grad():
        (got,) = model.module(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(got.numpy()[0], outputs[1], rtol=TOLERANCE, atol=TOLERANCE)
    exported = export_module(model.module, model.detector)
    assert sum(node.op_type == "Conv" for node in exported.graph) == 2
