"""Find objects: python sample.py PICTURE [MODEL] prints class score x1 y1 x2 y2. For networks with yolo heads."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

HERE, CONF, IOU, MOST = Path(__file__).parent, 0.25, 0.45, 300


def main(picture: str, model: str = "") -> None:  # noqa: D103
    how, options = json.loads((HERE / "manifest.json").read_text("utf-8"))["session"], ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(how["spinning"]))
    providers = [(name, given) for name, given in how["providers"] if name in ort.get_available_providers()]
    options.intra_op_num_threads = how["threads"] if len(providers) == len(how["providers"]) else 0  # 0: all cores
    session = ort.InferenceSession(str(HERE / (model or how["model"])), options, providers)
    sys.stderr.write(f"{', '.join(session.get_providers())}, {options.intra_op_num_threads or 'all'} thread(s)\n")
    net = json.loads(session.get_modelmeta().custom_metadata_map["edgeyolo.detector"])
    assert all(head["kind"] == "yolo" for head in net["heads"]), "this sample reads yolo heads only"
    pre, image = net["preprocess"], ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    (wide, tall), h, w = image.size, pre["height"], pre["width"]
    if pre["resize"] == "letterbox":
        h, w = min(h, max(1, tall * w // wide)), min(w, max(1, wide * h // tall))
    x = np.atleast_3d(np.asarray(image if pre["channels"] == 3 else image.convert("L"), np.float32))
    at = np.linspace(0, wide - 1, w), np.linspace(0, tall - 1, h)  # as in training: corners on corners, no averaging
    (x0, x1, fx), (y0, y1, fy) = ((np.intp(v), np.intp(np.ceil(v)), (v % 1)[:, None].astype("f4")) for v in at)
    x = x[:, x0] + (x[:, x1] - x[:, x0]) * fx
    x = np.rint(x[y0] + (x[y1] - x[y0]) * fy[:, None])
    top, left = (pre["height"] - h) // 2, (pre["width"] - w) // 2
    bars = (top, pre["height"] - h - top), (left, pre["width"] - w - left), (0, 0)
    x = np.pad(x, bars, constant_values=pre["fill"]).transpose(2, 0, 1)[None] * np.float32(pre["scale"])
    found = []  # class, score and box, relative to the picture, of all cells
    for raw, head in zip(session.run(None, {session.get_inputs()[0].name: x}), net["heads"], strict=True):
        t = raw[0].astype(float).reshape(len(head["anchors"]), -1, *raw.shape[2:]).transpose(0, 2, 3, 1)
        p = t if head["new_coords"] else 1 / (1 + np.exp(-np.maximum(t, -700)))
        size = 4 * t[..., 2:4] ** 2 if head["new_coords"] else np.exp(np.minimum(t[..., 2:4], 16))
        cells = np.stack(np.meshgrid(range(raw.shape[3]), range(raw.shape[2])), 2)
        centre = (head["scale_x_y"] * (p[..., :2] - 0.5) + 0.5 + cells) * head["stride"] - (left, top)
        half, scores = size * np.array(head["anchors"])[:, None, None] / 2, p[..., 4:5] * p[..., 5:]
        boxes = np.concatenate([centre - half, centre + half], 3) / (w, h, w, h)
        found += [(c, scores[a, i, j, c], boxes[a, i, j]) for a, i, j, c in np.argwhere(scores > CONF)]
    kept, power = found[:0], {"default": np.inf, "greedynms": 0.6, "diounms": net["beta_nms"]}[net["nms_kind"]]
    for c, score, box in sorted(found, key=lambda each: (-each[1], each[0])):
        b = np.array([better for k, _, better in kept if k == c]).reshape(-1, 4)
        inner = np.maximum(np.minimum(box[2:], b[:, 2:]) - np.maximum(box[:2], b[:, :2]), 0).prod(1)
        union = (box[2:] - box[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - inner
        apart = np.square(box[:2] + box[2:] - b[:, :2] - b[:, 2:]).sum(1) / 4  # squared, of the centres
        reach = np.square(np.maximum(box[2:], b[:, 2:]) - np.minimum(box[:2], b[:, :2])).sum(1)
        if len(kept) < MOST and not (inner / union - (apart / reach) ** power > IOU).any():
            kept.append((c, score, box))
            corners = " ".join(f"{v:.1f}" for v in np.clip(box, 0, 1) * (image.size * 2))
            sys.stdout.write(f"{(net['names'] or range(head['classes']))[c]} {score:.4f} {corners}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
