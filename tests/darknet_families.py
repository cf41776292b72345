"""The Darknet family in miniature: the true topologies with few filters, as clean cfg texts."""

from __future__ import annotations


def net(size=64, channels=3, more=""):
    return f"[net]\nbatch=1\nwidth={size}\nheight={size}\nchannels={channels}\n{more}"


def conv(filters, size=3, stride=1, act="leaky", bn=1, more=""):
    return (
        f"[convolutional]\nbatch_normalize={bn}\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        f"activation={act}\n{more}"
    )


def raw(filters):
    """The convolution in front of a head."""
    return f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={filters}\nactivation=linear\n"


def maxpool(size=2, stride=2):
    return f"[maxpool]\nsize={size}\nstride={stride}\n"


def route(*layers, more=""):
    return f"[route]\nlayers={','.join(map(str, layers))}\n{more}"


def shortcut(source=-3, act="linear"):
    return f"[shortcut]\nfrom={source}\nactivation={act}\n"


def yolo(mask="0,1,2", more=""):
    return (
        f"[yolo]\nmask={mask}\nanchors=10,14,23,27,37,58,81,82,135,169,344,319\nclasses=2\nnum=6\njitter=.3\n"
        f"ignore_thresh=.7\ntruth_thresh=1\nrandom=1\n{more}"
    )


REGION = "[region]\nanchors=1.08,1.19,3.42,4.41\nbias_match=1\nclasses=3\ncoords=4\nnum=2\nsoftmax=1\njitter=.2\n"
GROUP = "groups=2\ngroup_id=1\n"


def residual(filters, act="leaky"):
    return conv(filters // 2, 1, act=act) + conv(filters, act=act) + shortcut(act="linear")


def csp(filters):
    """A stage of yolov4-tiny."""
    return (
        conv(filters)
        + route(-1, more=GROUP)
        + conv(filters // 2)
        + conv(filters // 2)
        + route(-1, -2)
        + conv(filters, 1)
        + route(-6, -1)
    )


def inverted(filters, expand, size=3, stride=1, act="relu6"):
    """A stage of MobileNet v2."""
    depthwise = conv(expand, size, stride, act, more=f"groups={expand}\n")
    return conv(expand, 1, act=act) + depthwise + conv(filters, 1, act="linear")


def squeeze(filters, expand, act="swish"):
    """A stage with squeeze and excitation, as in enet-coco and MobileNet v3."""
    return (
        conv(expand, 1, act=act)
        + conv(expand, 3, 1, act, more=f"groups={expand}\n")
        + "[avgpool]\n"
        + conv(4, 1, act=act, bn=0)
        + conv(expand, 1, act="logistic", bn=0)
        + "[scale_channels]\nfrom=-4\n"
        + conv(filters, 1, act="linear")
    )


SPP = maxpool(5, 1) + route(-2) + maxpool(9, 1) + route(-4) + maxpool(13, 1) + route(-1, -3, -5, -6)

FAMILIES = {
    "yolov2-tiny": net(64)
    + "".join(conv(f) + maxpool() for f in (4, 6, 8, 8, 8))
    + conv(8)
    + maxpool(2, 1)
    + conv(8)
    + raw(16)
    + REGION,
    "yolov2": net(64)
    + conv(4)
    + maxpool()
    + conv(6)
    + maxpool()
    + conv(8)
    + conv(6, 1)
    + conv(8)
    + maxpool()
    + conv(12)
    + conv(12)
    + route(-4)
    + conv(4, 1)
    + "[reorg]\nstride=2\n"
    + route(-1, -4)
    + conv(12)
    + raw(16)
    + REGION,
    "yolov3-tiny": net(64)
    + "".join(conv(f) + maxpool() for f in (4, 6, 8, 8))
    + conv(8)
    + maxpool(2, 1)
    + conv(12)
    + conv(8, 1)
    + conv(12)
    + raw(21)
    + yolo("3,4,5")
    + route(-4)
    + conv(6, 1)
    + "[upsample]\nstride=2\n"
    + route(-1, 6)
    + conv(8)
    + raw(21)
    + yolo("0,1,2"),
    "yolov3-spp": net(64)
    + conv(4)
    + conv(8, 3, 2)
    + residual(8)
    + conv(12, 3, 2)
    + residual(12) * 2
    + conv(16, 3, 2)
    + residual(16)
    + conv(8, 1)
    + SPP
    + conv(8, 1)
    + conv(16)
    + raw(21)
    + yolo("3,4,5")
    + route(-4)
    + conv(6, 1)
    + "[upsample]\nstride=2\n"
    + route(-1, 11)
    + conv(8)
    + raw(21)
    + yolo("0,1,2"),
    "yolov4-tiny": net(64)
    + conv(4, 3, 2)
    + conv(8, 3, 2)
    + csp(8)
    + maxpool()
    + csp(16)
    + maxpool()
    + conv(16)
    + conv(8, 1)
    + raw(21)
    + yolo("3,4,5", "scale_x_y=1.05\nnms_kind=greedynms\nbeta_nms=0.6\n")
    + route(-3)
    + conv(8, 1)
    + "[upsample]\nstride=2\n"
    + route(-1, 16)
    + raw(21)
    + yolo("1,2,3", "scale_x_y=1.05\nnms_kind=greedynms\nbeta_nms=0.6\n"),
    "yolov4-csp": net(64, more="letter_box=1\n")
    + conv(4, act="mish")
    + conv(8, 3, 2, act="mish")
    + conv(4, 1, act="mish")
    + route(-2)
    + conv(4, 1, act="mish")
    + residual(4, "mish")
    + conv(4, 1, act="mish")
    + route(-1, -7)
    + conv(8, 1, act="mish")
    + conv(8, 3, 2, act="mish")
    + raw(21).replace("linear", "logistic")
    + yolo("0,1,2", "new_coords=1\nscale_x_y=2.0\nnms_kind=diounms\nbeta_nms=0.7\n"),
    "mobilenetv2-yolo": net(64)
    + conv(8, 3, 2, "relu6")
    + inverted(6, 8)
    + inverted(8, 12, stride=2)
    + inverted(8, 16)
    + shortcut(-4)
    + inverted(12, 16, 5, 2)
    + raw(21)
    + yolo(),
    "efficientnet-yolo": net(48)
    + conv(8, 3, 2, "swish")
    + squeeze(8, 12)
    + shortcut(-8)
    + conv(8, 3, 2, "h-swish")
    + squeeze(8, 12, "relu")
    + "[dropout]\nprobability=.2\n"
    + shortcut(-9)
    + raw(21)
    + yolo(),
    "attention-yolo": net(48)
    + conv(8, 3, 2)
    + conv(8, 1, act="logistic")
    + "[sam]\nfrom=-2\n"
    + conv(8, 3, 2)
    + conv(8)
    + "[shortcut]\nfrom=-2,-1\nweights_type=per_channel\nweights_normalization=relu\nactivation=linear\n"
    + raw(21)
    + yolo(),
    "gaussian-yolov3": net(48)
    + conv(4, 3, 2)
    + conv(8, 3, 2)
    + residual(8)
    + raw(33)
    + yolo(more="scale_x_y=1.0\nuc_normalizer=1.0\n").replace("[yolo]", "[Gaussian_yolo]"),
    "darknet-reference": net(32)
    + conv(4)
    + "".join(maxpool() + conv(f) for f in (6, 8, 8))
    + conv(10, 1, act="linear", bn=0)
    + "[avgpool]\n[softmax]\ngroups=1\n[cost]\ntype=sse\n",
    "tiny-darknet": net(32)
    + conv(4)
    + maxpool()
    + conv(6)
    + maxpool()
    + conv(4, 1)
    + conv(8)
    + conv(10, 1, act="linear", bn=0)
    + "[avgpool]\n[softmax]\ntemperature=2\n",
    "vgg": net(16)
    + conv(4, act="relu", bn=0)
    + maxpool()
    + conv(6, act="relu", bn=0)
    + maxpool()
    + "[connected]\noutput=12\nactivation=relu\n[dropout]\nprobability=.5\n"
    + "[connected]\noutput=10\nactivation=linear\n[softmax]\n[cost]\n",
    "resnet": net(32)
    + conv(8, 7, 2)
    + maxpool()
    + conv(4, 1)
    + conv(4)
    + conv(8, 1, act="linear")
    + shortcut(-4, "leaky")
    + conv(4, 1)
    + conv(4, 3, 2)
    + conv(8, 1, act="linear")
    + "[avgpool]\n"
    + conv(10, 1, act="linear", bn=0)
    + "[softmax]\n",
    "multi-label grey": net(16, 1) + conv(4, 3, 2) + "[avgpool]\n" + conv(5, 1, act="logistic", bn=0),
}
