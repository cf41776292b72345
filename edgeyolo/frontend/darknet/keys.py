"""Which sections, keys and words of a cfg are understood, which are harmless, which are refused.

Three kinds of keys: *used* ones shape the network; *harmless* ones steer training, drawing or speed only; *neutral*
ones change the result unless they have one value. A key in none of the lists is one that Darknet itself would report as
an "unused field" and ignore: so does this reader, and says so in a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeyolo.errors import EdgeYoloError, UnsupportedError
from edgeyolo.frontend.darknet.cfg import Option, Section, real

_ELEMENTWISE = frozenset(
    (
        "linear",
        "leaky",
        "relie",
        "ramp",
        "relu",
        "relu6",
        "h-swish",
        "hswish",
        "logistic",
        "elu",
        "selu",
        "gelu",
        "tanh",
    )
)
"""What Darknet's generic ``activate`` knows; [scale_channels] and [sam] have nothing else."""
ACTIVATIONS = _ELEMENTWISE | {"mish", "swish", "hard_mish"}
NMS_KINDS = frozenset({"default", "greedynms", "diounms"})
HEADS = ("yolo", "Gaussian_yolo", "region")

_POOL = "size stride stride_x stride_y padding"
_USED = {
    "net": "width height channels inputs letter_box",
    "convolutional": "filters groups size stride stride_x stride_y dilation pad padding activation batch_normalize",
    "connected": "output activation batch_normalize",
    "maxpool": _POOL,
    "local_avgpool": _POOL,
    "avgpool": "",
    "route": "layers groups group_id",
    "shortcut": "from activation weights_type weights_normalization weights_normalizion",
    "upsample": "stride scale",
    "reorg": "stride reverse",
    "reorg3d": "stride reverse",
    "scale_channels": "from scale_wh activation",
    "sam": "from activation",
    "softmax": "groups temperature",
    "batchnorm": "",
    "activation": "activation",
    "dropout": "",
    "cost": "",
    "empty": "",
    "yolo": "classes num mask anchors scale_x_y new_coords nms_kind beta_nms",
    "Gaussian_yolo": "classes num mask anchors scale_x_y nms_kind beta_nms",
    "region": "classes num coords anchors softmax",
}

_LOSS = (
    "jitter resize random max thresh ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer"
    " obj_normalizer cls_normalizer delta_normalizer uc_normalizer max_delta counters_per_class label_smooth_eps"
    " objectness_smooth focal_loss"
)
_HARMLESS_ANYWHERE = (
    "clip onlyforward dont_update burnin_update stopbackward train_only_bn learning_rate dontsave truth smooth"
)
_HARMLESS = {
    "net": "batch subdivisions momentum decay angle saturation exposure hue aspect power learning_rate"
    " learning_rate_min burn_in max_batches policy steps scales seq_scales step scale gamma sgdr_cycle sgdr_mult"
    " time_steps track augment_speed sequential_subdivisions try_fix_nan weights_reject_freq equidistant_point"
    " badlabels_rejection_percentage num_sigmas_reject_badlabels ema_alpha use_cuda_graph loss_scale"
    " dynamic_minibatch optimized_memory workspace_size_limit_MB adam B1 B2 eps max_crop min_crop max_ratio"
    " min_ratio center notruth flip blur gaussian_noise mixup cutmix mosaic mosaic_bound contrastive"
    " contrastive_jit_flip contrastive_color unsupervised label_smooth_eps resize_step attention adversarial_lr"
    " max_chart_loss show_receptive_field",
    "convolutional": "cbn dot angle grad_centr reverse stream wait_stream assisted_excitation",
    "maxpool": "out_channels maxpool_zero_nonmax",
    "route": "stream wait_stream",
    "softmax": "noloss",
    "dropout": "probability dropblock dropblock_size_rel dropblock_size_abs",
    "cost": "type scale ratio noobj thresh",
    "yolo": _LOSS + " map show_details track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm"
    " embedding_layer",
    "Gaussian_yolo": _LOSS + " map",
    "region": _LOSS + " log sqrt rescore classfix absolute bias_match coord_scale object_scale noobject_scale"
    " mask_scale class_scale",
}

_NEUTRAL_ANYWHERE: dict[str, float | None] = {"dontload": 0, "dontloadscales": 0, "numload": 0}
_NEUTRAL: dict[str, dict[str, float | None]] = {
    "convolutional": {
        **dict.fromkeys(("antialiasing", "binary", "xnor", "bin_output", "flipped", "coordconv"), 0),
        **dict.fromkeys(("sway", "rotate", "stretch", "stretch_sway"), 0),
        "share_index": None,
    },
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0},
    "shortcut": {"alpha": 1, "beta": 1},
    "reorg": {"flatten": 0, "extra": 0},
    "softmax": {"spatial": 0, "tree": None},
    "region": {"background": 0, "coords": 4, "tree": None, "map": None},
}
"""The only value with which a key changes nothing; None: the key always changes the result."""

_WORDS = {
    ("convolutional", "activation"): ACTIVATIONS,
    ("connected", "activation"): ACTIVATIONS,
    ("shortcut", "activation"): ACTIVATIONS,
    ("activation", "activation"): _ELEMENTWISE,
    ("scale_channels", "activation"): _ELEMENTWISE,
    ("sam", "activation"): _ELEMENTWISE,
    ("shortcut", "weights_type"): frozenset({"none", "per_feature", "per_layer", "per_channel"}),
    ("shortcut", "weights_normalization"): frozenset({"none", "relu", "avg_relu", "softmax"}),
    ("shortcut", "weights_normalizion"): frozenset({"none", "relu", "avg_relu", "softmax"}),
    ("yolo", "nms_kind"): NMS_KINDS,
    ("Gaussian_yolo", "nms_kind"): NMS_KINDS,
    ("Gaussian_yolo", "yolo_point"): frozenset({"center"}),
}
MAX_OFFENDERS = 1000
"""No message is longer than this many lines."""


def check(sections: Sequence[Section]) -> tuple[str, ...]:
    """Refuse what cannot be reproduced exactly; return notes on what was ignored.

    Raises:
        UnsupportedError: one error that lists every unknown section, unknown word and result-changing key.
    """
    offenders = [row for section in sections for row in _offenders(section)]
    if offenders:
        shown = offenders[:MAX_OFFENDERS]
        if len(offenders) > len(shown):
            shown.append(f"and {len(offenders) - len(shown)} more")
        raise UnsupportedError(
            "the network asks for what is not supported",
            where=sections[0].file,
            got="".join(f"\n    {row}" for row in shown),
            hint="remove these lines if the weights were trained without them; otherwise this network cannot be loaded",
        )
    return tuple(note for section in sections for note in _notes(section))


def _offenders(section: Section) -> Iterator[str]:
    kind = section.kind
    if kind not in _USED or (kind == "net" and section.index >= 0):
        yield f"{section.place()}: this section type is not known or not supported"
        return
    neutral = _NEUTRAL_ANYWHERE | _NEUTRAL.get(kind, {})
    for key, option in section.options.items():
        words = _WORDS.get((kind, key))
        if words is not None and option.value not in words:
            yield f"{section.place(key)}: {key}={option.value[:40]} (supported: {', '.join(sorted(words))})"
        if key in neutral and not _is_neutral(section, key, neutral[key]):
            yield f"{section.place(key)}: {key}={option.value[:40]} changes the result"


def _is_neutral(section: Section, key: str, neutral: float | None) -> bool:
    try:
        return neutral is not None and real(section, key, 0.0) == neutral
    except EdgeYoloError:
        return False


def _notes(section: Section) -> Iterator[str]:
    kind = section.kind
    known = set(f"{_USED[kind]} {_HARMLESS.get(kind, '')} {_HARMLESS_ANYWHERE}".split())
    known |= _NEUTRAL_ANYWHERE.keys() | _NEUTRAL.get(kind, {}).keys() | {key for k, key in _WORDS if k == kind}
    unknown: dict[str, Option] = {key: option for key, option in section.options.items() if key not in known}
    for key, option in unknown.items():
        yield f"{section.place(key)}: the unknown key {key[:40]}={option.value[:40]} is ignored, as Darknet does"
    for line in section.ignored:
        yield f"line {line}: this line has no value and is ignored, as Darknet does"
