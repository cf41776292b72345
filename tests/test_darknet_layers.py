"""Every Darknet layer and activation against numpy loops over flat memory, in torch and through ONNX."""

from __future__ import annotations

import re

import darknet_reference as reference
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.frontend.darknet.cfg import integer, parse_cfg
from edgeyolo.frontend.darknet.keys import ACTIVATIONS, check
from edgeyolo.frontend.darknet.modules import ACTIVATION_MODULES, PJREDDIE_EPS
from edgeyolo.frontend.darknet.network import Network
from edgeyolo.frontend.darknet.plan import plan_network
from edgeyolo.frontend.darknet.weights import load_weights
from edgeyolo.frontend.torch_export import export_module

TOLERANCE = 2e-5
"""float32 against float64, values of order 1, a few dozen terms a sum."""

NET = "[net]\nwidth=12\nheight=8\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n"
LAYERS = {
    "conv defaults": NET + "[convolutional]\n",
    "conv logistic by default": NET + "[convolutional]\nfilters=4\nsize=3\n",
    "conv bn": NET + "[convolutional]\nbatch_normalize=1\nfilters=5\nsize=3\nstride=2\npad=1\nactivation=relu\n",
    "conv pad overrides padding": NET + "[convolutional]\nfilters=2\nsize=5\npad=1\npadding=1\nactivation=linear\n",
    "conv padding": NET + "[convolutional]\nfilters=2\nsize=3\npadding=3\nactivation=linear\n",
    "conv even kernel": NET + "[convolutional]\nfilters=2\nsize=4\npad=1\nactivation=linear\n",
    "conv groups": NET + CONV + "[convolutional]\nfilters=12\nsize=3\ngroups=4\npad=1\nactivation=linear\n",
    "conv depthwise": NET + CONV + "[convolutional]\nfilters=8\nsize=3\ngroups=8\nbatch_normalize=1\nactivation=relu\n",
    "conv dilation": NET + "[convolutional]\nfilters=2\nsize=3\npad=1\ndilation=2\nactivation=linear\n",
    "conv dilation of 1x1": NET + "[convolutional]\nfilters=2\nsize=1\ndilation=3\nactivation=linear\n",
    "conv stride_x": NET + "[convolutional]\nfilters=2\nsize=3\npad=1\nstride=2\nstride_x=3\nactivation=linear\n",
    "conv stride_x stride_y": NET + "[convolutional]\nfilters=2\nsize=3\nstride_x=3\nstride_y=2\nactivation=linear\n",
    "maxpool defaults": NET + "[maxpool]\n",
    "maxpool 2/2": NET + "[maxpool]\nsize=2\nstride=2\n",
    "maxpool size from stride": NET + "[maxpool]\nstride=3\n",
    "maxpool 2/2 of odd side": NET.replace("8", "7") + "[maxpool]\nsize=2\nstride=2\n",
    "maxpool 2/1": NET + "[maxpool]\nsize=2\nstride=1\n",
    "maxpool 3/2": NET + "[maxpool]\nsize=3\nstride=2\n",
    "maxpool 4/2": NET + "[maxpool]\nsize=4\nstride=2\n",
    "maxpool 5/1": NET + "[maxpool]\nsize=5\nstride=1\n",
    "maxpool 13/1 larger than the picture": NET + "[maxpool]\nsize=13\nstride=1\n",
    "maxpool padding=0": NET + "[maxpool]\nsize=3\nstride=2\npadding=0\n",
    "maxpool padding=1": NET + "[maxpool]\nsize=3\nstride=2\npadding=1\n",
    "maxpool padding=3": NET + "[maxpool]\nsize=3\nstride=1\npadding=3\n",
    "maxpool stride_x": NET + "[maxpool]\nsize=3\nstride=2\nstride_x=1\n",
    "maxpool of negative values": NET + "[convolutional]\nfilters=2\nactivation=linear\n[maxpool]\nsize=2\nstride=1\n",
    "local_avgpool 2/1": NET + "[local_avgpool]\nsize=2\nstride=1\n",
    "local_avgpool 3/2": NET + "[local_avgpool]\nsize=3\nstride=2\n",
    "local_avgpool 4/3": NET + "[local_avgpool]\nsize=4\nstride=3\n",
    "local_avgpool 3/3": NET + "[local_avgpool]\nsize=3\nstride=3\n",
    "avgpool": NET + "[avgpool]\n",
    "route one": NET + CONV + CONV + "[route]\nlayers=-2\n",
    "route absolute": NET + CONV + CONV + "[route]\nlayers=-1,0\n",
    "route group": NET + CONV + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n",
    "route groups of several": NET + CONV + CONV.replace("8", "4") + "[route]\nlayers=-1,-2\ngroups=4\ngroup_id=2\n",
    "shortcut": NET + CONV + CONV + "[shortcut]\nfrom=-2\nactivation=leaky\n",
    "shortcut of several": NET + CONV * 3 + "[shortcut]\nfrom=-2,0\n",
    "shortcut of fewer channels": NET + CONV.replace("8", "4") + CONV + "[shortcut]\nfrom=-2\n",
    "shortcut of more channels": NET + CONV + CONV.replace("8", "4") + "[shortcut]\nfrom=-2\nactivation=mish\n",
    "shortcut of a larger picture": NET + CONV + CONV + "[maxpool]\nstride=2\n[shortcut]\nfrom=-2\n",
    "shortcut of a smaller picture": NET + CONV + "[maxpool]\nstride=2\n[upsample]\n[shortcut]\nfrom=-2\n",
    "upsample": NET + "[upsample]\n",
    "upsample scale": NET + "[upsample]\nstride=3\nscale=0.5\n",
    "upsample by one": NET + "[upsample]\nstride=1\n",
    "reorg": NET + CONV + "[reorg]\nstride=2\n",
    "reorg of 16 channels": NET + CONV.replace("8", "16") + "[reorg]\nstride=2\n",
    "reorg reverse": NET + CONV + "[reorg]\nstride=2\nreverse=1\n",
    "reorg3d": NET + CONV.replace("8", "3") + "[reorg3d]\nstride=2\n",
    "reorg3d reverse": NET + CONV.replace("8", "16") + "[reorg3d]\nstride=2\nreverse=1\n",
    "dropout": NET + CONV + "[dropout]\nprobability=.5\n",
    "connected": NET + "[connected]\noutput=7\nactivation=leaky\n",
    "connected logistic by default": NET + "[connected]\noutput=7\n",
    "connected bn": NET + CONV + "[connected]\noutput=7\nbatch_normalize=1\nactivation=relu\n",
    "connected twice": NET + "[connected]\noutput=7\n[connected]\noutput=3\nactivation=linear\n",
    "softmax": NET + "[softmax]\n",
    "softmax groups": NET + CONV + "[softmax]\ngroups=4\ntemperature=2\n",
    "scale_channels": NET + CONV + "[avgpool]\n[scale_channels]\nfrom=-2\n",
    "scale_channels activation": NET + CONV + "[avgpool]\n[scale_channels]\nfrom=0\nactivation=logistic\n",
    "scale_wh": NET + CONV + CONV.replace("8", "1") + "[scale_channels]\nfrom=-2\nscale_wh=1\n",
    "sam": NET + CONV + CONV + "[sam]\nfrom=-2\nactivation=relu\n",
    "batchnorm": NET + CONV + "[batchnorm]\n",
    "activation": NET + CONV + "[activation]\nactivation=tanh\n",
    "grey": NET.replace("channels=3", "channels=1") + CONV,
    "cost": NET + CONV + "[avgpool]\n[softmax]\n[cost]\n",
} | {
    f"weighted shortcut {kind} {norm} {more}": NET
    + CONV * 3
    + CONV.replace("8", "4")
    + f"[shortcut]\nfrom=-2{more}\nweights_type={kind}\nweights_normalization={norm}\nactivation=leaky\n"
    for kind in ("per_feature", "per_channel")
    for norm in ("none", "relu", "softmax")
    for more in ("", ",-3,0")
}


def make(cfg, file, tmp_path, bn_eps="alexeyab"):
    """The network whose one output is the last layer."""
    (tmp_path / "x.weights").write_bytes(file)
    parsed = parse_cfg(cfg, "test")
    check(parsed)
    size = integer(parsed[0], "height", 0), integer(parsed[0], "width", 0)
    layers = plan_network(parsed, size, sampled_shortcut=bn_eps == "pjreddie")
    network = Network(layers, (layers[-1].index,), classifier=False, bn_eps=bn_eps).eval()
    load_weights(network, tmp_path / "x.weights")
    return network, layers


def compare(cfg, tmp_path, bn_eps="alexeyab"):
    picture, outputs, file = reference.run(cfg, pjreddie=bn_eps == "pjreddie")
    network, layers = make(cfg, file, tmp_path, bn_eps)
    for layer, output in zip(layers, outputs, strict=True):
        assert layer.output == output.shape, layer.name
    with torch.no_grad():
        (got,) = network(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(got.numpy()[0], outputs[-1], rtol=0, atol=TOLERANCE)
    return network, picture


@pytest.mark.parametrize("cfg", LAYERS.values(), ids=LAYERS.keys())
def test_layer_equals_the_reference_in_torch_and_onnx(cfg, tmp_path):
    network, picture = compare(cfg, tmp_path)
    channels, height, width = picture.shape
    detector = Detector("darknet", Preprocess(width, height, channels), (Head("out"),))
    proto = ir.to_proto(export_module(network, detector, dynamic_batch=True))
    batch = np.stack([picture, picture[:, ::-1]])
    with torch.no_grad():
        expected = network(torch.from_numpy(batch))[0].numpy()
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": batch})[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_equals_the_reference(name, tmp_path):
    cfg = NET + f"[convolutional]\nfilters=4\nsize=3\npad=1\nactivation={name.replace('hswish', 'h-swish')}\n"
    picture, outputs, file = reference.run(cfg)
    network, _ = make(cfg.replace("h-swish", name) if name == "hswish" else cfg, file, tmp_path)
    with torch.no_grad():
        (got,) = network(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(got.numpy()[0], outputs[-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS.keys() - {"linear"}))
def test_activation_over_its_whole_range(name):
    x = np.linspace(-12, 12, 4801)
    got = ACTIVATION_MODULES[name]()(torch.from_numpy(x.astype(np.float32))).numpy()
    np.testing.assert_allclose(got, reference.ACTIVATIONS[name](x), rtol=1e-5, atol=TOLERANCE)


def test_every_activation_that_is_accepted_has_a_module():
    assert set(ACTIVATION_MODULES) | {"linear"} == ACTIVATIONS


PJREDDIE = {
    "bn": NET + "[convolutional]\nbatch_normalize=1\nfilters=5\nsize=3\nstride=2\npad=1\nactivation=relu\n",
    "connected bn": NET + CONV + "[connected]\noutput=7\nbatch_normalize=1\nactivation=relu\n",
    "shortcut of a larger picture": NET + CONV + CONV + "[maxpool]\nstride=2\n[shortcut]\nfrom=-2\n",
    "shortcut of a smaller picture": NET + CONV + "[maxpool]\nstride=4\n[upsample]\nstride=4\n[shortcut]\nfrom=-2\n",
    "shortcut of fewer channels and larger": NET
    + CONV.replace("8", "4")
    + CONV
    + "[maxpool]\nstride=2\n[shortcut]\nfrom=-3\nactivation=leaky\n",
}


@pytest.mark.parametrize("cfg", PJREDDIE.values(), ids=PJREDDIE.keys())
def test_the_other_program_has_its_own_rules(cfg, tmp_path):
    network, picture = compare(cfg, tmp_path, "pjreddie")
    detector = Detector("darknet", Preprocess(12, 8), (Head("out"),))
    proto = ir.to_proto(export_module(network, detector))
    with torch.no_grad():
        expected = network(torch.from_numpy(picture)[None])[0].numpy()
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": picture[None]})[0], expected, rtol=0, atol=TOLERANCE)


def test_pjreddie_epsilon_is_exact_for_tiny_variances():
    """sqrt(v) + 1e-6 and sqrt(v + 1e-5) differ by thousands where the variance is tiny."""
    variance = np.array([0.0, 1e-14, 1e-12, 1e-8, 1.0])
    stored = (variance + 2 * PJREDDIE_EPS * np.sqrt(variance)).astype(np.float32)
    np.testing.assert_allclose(np.sqrt(stored + PJREDDIE_EPS**2), np.sqrt(variance) + 1e-6, rtol=1e-6)


def exported(name, tmp_path):
    """The nodes of a case, by operator."""
    network, _ = make(LAYERS[name], reference.run(LAYERS[name])[2], tmp_path)
    detector = Detector("darknet", Preprocess(12, 8), (Head("out"),))
    return [node for node in export_module(network, detector, dynamic_batch=True).graph if node.op_type != "Constant"]


@pytest.mark.parametrize(
    ("name", "operator", "pads"),
    [
        ("maxpool 2/1", "MaxPool", [0, 0, 1, 1]),
        ("maxpool 2/2", "MaxPool", [0, 0, 0, 0]),
        ("maxpool 2/2 of odd side", "MaxPool", [0, 0, 1, 0]),
        ("maxpool 5/1", "MaxPool", [2, 2, 2, 2]),
        ("maxpool padding=3", "MaxPool", [1, 1, 2, 2]),
        ("local_avgpool 2/1", "AveragePool", [0, 0, 1, 1]),
    ],
)
def test_a_pool_is_one_node_that_pads_by_itself(name, operator, pads, tmp_path):
    """No Pad node: a finite padding constant would be seen by calibration."""
    (node,) = exported(name, tmp_path)
    assert node.op_type == operator
    assert list(node.attributes["pads"].as_ints()) == pads
    assert operator == "MaxPool" or node.attributes["count_include_pad"].as_int() == 0


def test_reorg_is_made_of_slices_that_a_fixed_point_target_knows(tmp_path):
    kinds = {node.op_type for node in exported("reorg", tmp_path)}
    kinds -= {"Conv", "LeakyRelu", "Unsqueeze"}  # Unsqueeze of constants only
    assert kinds == {"Reshape", "Slice", "Concat"}


def test_nodes_and_parameters_are_named_after_their_layer(tmp_path):
    names = [re.split("[/.]", str(node.name).strip("/"))[:3] for node in exported("conv bn", tmp_path)]
    assert names == [["layers", "0", part] for part in ("conv", "bn", "act")]
    network, _ = make(LAYERS["conv bn"], reference.run(LAYERS["conv bn"])[2], tmp_path)
    assert {"layers.0.conv.weight", "layers.0.bn.running_var"} < network.state_dict().keys()


REFUSED = {
    "dilation without pad": (NET + "[convolutional]\nsize=3\ndilation=2\n", UnsupportedError, "dilation"),
    "groups": (NET + "[convolutional]\nfilters=4\ngroups=2\n", InputError, "groups do not divide"),
    "kernel": (NET + "[convolutional]\nsize=9\n", InputError, "kernel is larger"),
    "window of padding": (NET + "[maxpool]\nsize=2\npadding=4\n", InputError, "padding only"),
    "route sizes": (NET + CONV + "[maxpool]\nstride=2\n[route]\nlayers=0,1\n", InputError, "height or width"),
    "route forward": (NET + "[route]\nlayers=0\n", InputError, "no such layer"),
    "route picture": (NET + "[route]\nlayers=-1\n", InputError, "no such layer"),
    "route groups": (NET + CONV + "[route]\nlayers=0\ngroups=3\n", InputError, "groups do not divide"),
    "route group_id": (NET + CONV + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n", InputError, "groups do not"),
    "route of nothing": (NET + CONV + "[route]\n", InputError, "must name 1 to"),
    "reorg": (NET + "[reorg]\nstride=2\n", UnsupportedError, "stride does not divide"),
    "weighted sizes": (
        NET + CONV + "[maxpool]\nstride=2\n[shortcut]\nfrom=-2\nweights_type=per_channel\n",
        UnsupportedError,
        "differ in size",
    ),
    "scale_channels": (NET + CONV + CONV + "[scale_channels]\nfrom=-2\n", InputError, "do not fit"),
    "sam": (NET + CONV + "[avgpool]\n[sam]\nfrom=0\n", InputError, "do not fit"),
    "softmax": (NET + "[softmax]\ngroups=7\n", InputError, "groups do not divide"),
    "temperature": (NET + "[softmax]\ntemperature=0\n", InputError, "temperature"),
    "upsample backwards": (NET + "[upsample]\nstride=-2\n", InputError, "stride is out of range"),
    "two channels": (NET.replace("channels=3", "channels=2") + CONV, UnsupportedError, "1 or 3"),
    "inputs": (NET + "inputs=99\n" + CONV, UnsupportedError, "no picture"),
    "after a head": (NET + "[convolutional]\nfilters=6\n[yolo]\nclasses=1\nnum=1\n" + CONV, UnsupportedError, "boxes"),
}


@pytest.mark.parametrize(("cfg", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_geometry_is_refused_with_its_place(cfg, error, words):
    parsed = parse_cfg(cfg, "some.cfg")
    with pytest.raises(error, match=words) as caught:
        plan_network(parsed, (8, 12))
    assert str(caught.value.where).startswith("some.cfg, line ")
