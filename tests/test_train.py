"""``edgeyolo train`` as a user meets it: what it writes, killing and resuming, bad input."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import LAYERS, edgeyolo

from edgeyolo.frontend.darknet import load_darknet

CLASSES, SIDE = 10, 64
QUICK = ("--batch", 8, "--device", "cpu", "--workers", 0, "--lr", 0.01, "--flip", 0)


def write_cfg(path: Path) -> Path:
    """A very small network for ten classes."""
    parts = [f"[net]\nwidth={SIDE}\nheight={SIDE}\nchannels=3\n"]
    for layer in LAYERS:
        if isinstance(layer, tuple):
            filters, size, stride, activation, groups, norm = layer
            filters = filters if norm else 2 * (5 + CLASSES)
            parts.append(
                f"[convolutional]\nbatch_normalize={int(norm)}\nfilters={filters}\nsize={size}\nstride={stride}\n"
                f"pad=1\ngroups={groups}\nactivation={activation}\n"
            )
        elif layer.startswith("yolo"):
            anchors = "6,9, 8,12, 12,18, 20,28"
            parts.append(f"[yolo]\nmask={layer.split()[1]}\nanchors={anchors}\nclasses={CLASSES}\nnum=4\n")
        else:
            parts.append(layer)
    path.write_text("".join(parts))
    return path


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> Path:
    return write_cfg(tmp_path_factory.mktemp("cfg") / "small.cfg")


def train(cfg: Path, output: Path, *more: object, epochs: int = 3, data: str = "scenes:train:24"):
    return edgeyolo("train", "--model", cfg, "--data", data, "--epochs", epochs, "-o", output, *QUICK, *more)


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the times."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def done(cfg, tmp_path_factory) -> Path:
    """A finished training with scores."""
    folder = tmp_path_factory.mktemp("train") / "run"
    result = train(cfg, folder, "--val", "scenes:val:8")
    assert result.exit_code == 0, result.output
    return folder


def test_it_writes_weights_metrics_and_a_checkpoint(done):
    names = {p.name for p in done.iterdir()}
    assert {
        "model.cfg",
        "model.names",
        "last.weights",
        "last.safetensors",
        "metrics.csv",
        "checkpoint.safetensors",
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    assert list((done / "tensorboard").glob("events*"))
    rows = curve(done)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and [row["step"] for row in rows] == ["3", "6", "9"]
    assert all(float(row["AP"]) >= 0 for row in rows)
    assert (done / "model.names").read_text().split() == list("0123456789")


def test_darknet_and_safetensors_hold_the_same_network(done):
    loaded = load_darknet(done / "model.cfg", done / "last.weights")
    assert "trained on 72 pictures" in " ".join(loaded.notes)
    state = loaded.module.state_dict()
    stored = load_file(done / "last.safetensors")
    assert set(stored) == set(state)
    assert all(torch.equal(stored[name], state[name]) for name in state if "num_batches" not in name)


def test_training_lowers_the_loss_and_is_the_same_every_time(cfg, tmp_path, done):
    result = train(cfg, tmp_path / "again", "--val", "scenes:val:8")
    assert result.exit_code == 0, result.output
    assert curve(tmp_path / "again") == curve(done)
    assert (tmp_path / "again" / "last.weights").read_bytes() == (done / "last.weights").read_bytes()
    losses = [float(row["loss"]) for row in curve(done)]
    assert losses[-1] < losses[0]


def test_another_seed_gives_another_curve(cfg, tmp_path, done):
    assert train(cfg, tmp_path / "other", "--seed", 1, epochs=1).exit_code == 0
    assert curve(tmp_path / "other")[0]["loss"] != curve(done)[0]["loss"]


def command(*arguments: object) -> subprocess.Popen[str]:
    """A training in a process of its own."""
    line = [sys.executable, "-m", "edgeyolo", "train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_killed_training_goes_on_where_it_was(cfg, tmp_path):
    """SIGKILL in the middle of an epoch: nothing can be tidied up, and the curve is the same all the same."""
    begin = ("--model", cfg, "--data", "scenes:train:160", "--epochs", 4, *QUICK)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = command(*begin, "-o", killed)
    deadline = time.monotonic() + 120
    while not ((killed / "metrics.csv").exists() and len(curve(killed)) >= 2) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 2 <= len(curve(killed)) < 4
    resumed = command("--resume", killed, "--device", "cpu", "--workers", 1)
    uninterrupted = command(*begin, "-o", whole)
    for other in (resumed, uninterrupted):
        output = other.communicate()[0]
        assert other.returncode == 0, output
    assert curve(killed) == curve(whole) and len(curve(whole)) == 4
    assert (killed / "last.weights").read_bytes() == (whole / "last.weights").read_bytes()


def test_a_training_killed_before_its_first_epoch_ends_can_be_resumed(cfg, tmp_path, done):
    from edgeyolo.train import trainer

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_epoch", killed)
        result = train(cfg, tmp_path / "run", "--val", "scenes:val:8")
    assert result.exit_code == 130 and f"--resume {tmp_path / 'run'}" in result.output
    assert edgeyolo("train", "--resume", tmp_path / "run", "--device", "cpu").exit_code == 0
    assert curve(tmp_path / "run") == curve(done)


def test_a_finished_training_resumes_to_nothing(done):
    before = (done / "last.weights").read_bytes()
    assert edgeyolo("train", "--resume", done, "--device", "cpu").exit_code == 0
    assert (done / "last.weights").read_bytes() == before and len(curve(done)) == 3


def test_given_weights_are_where_it_begins(cfg, tmp_path, done):
    result = train(cfg, tmp_path / "run", "--weights", done / "last.weights", "--lr", 1e-9, "--ema", 0, epochs=1)
    assert result.exit_code == 0, result.output
    loaded, old = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", done))
    weights = [name for name in old if name.endswith("conv.weight")]
    assert max(float((loaded[name] - old[name]).abs().max()) for name in weights) < 1e-6  # a step of 1e-9 at most


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(cfg, tmp_path, done):
    from edgeyolo.train import trainer

    real, calls = trainer.detection_loss, []

    def poisoned(*arguments):
        loss = real(*arguments)
        calls.append(1)
        return loss if len(calls) <= 4 else loss._replace(box=loss.box * float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "detection_loss", poisoned)
        result = train(cfg, tmp_path / "run", "--val", "scenes:val:8")
    assert result.exit_code == 2 and "epoch 2, step 2" in result.output and "--lr" in result.output
    assert curve(tmp_path / "run") == curve(done)[:1]
    weights = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert edgeyolo("train", "--resume", tmp_path / "run", "--device", "cpu").exit_code == 0
    assert curve(tmp_path / "run") == curve(done)


def test_weights_that_overflow_are_a_message(cfg, tmp_path, done):
    data = np.fromfile(done / "last.weights", np.float32)
    data[5:] *= 1e30
    data.tofile(tmp_path / "huge.weights")
    result = train(cfg, tmp_path / "run", "--weights", tmp_path / "huge.weights")
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_statistics_that_overflow_behind_batch_norm_are_not_kept(cfg, tmp_path, done):
    """The loss stays finite: batch norm divides by what has become infinite."""
    data = np.fromfile(done / "last.weights", np.float32)
    first = 5 + 4 * 8  # header; biases, scales, means and variances of 8 filters
    data[first : first + 8 * 27] *= 1e22
    data.tofile(tmp_path / "huge.weights")
    result = train(cfg, tmp_path / "run", "--weights", tmp_path / "huge.weights", epochs=1)
    assert result.exit_code == 2 and "overflow" in result.output
    assert not (tmp_path / "run" / "last.weights").exists()


def test_the_average_is_what_is_written(done):
    state = load_file(done / "checkpoint.safetensors")
    written = load_file(done / "last.safetensors")
    assert all(torch.equal(value, state[f"average.{name}"]) for name, value in written.items())
    assert any(not torch.equal(value, state[f"model.{name}"]) for name, value in written.items())


def test_a_backbone_gets_heads_that_expect_nothing(cfg, tmp_path, done):
    """A weights file that ends before the heads, as backbones do."""
    from edgeyolo.frontend.darknet import load_darknet as load
    from edgeyolo.train.trainer import set_prior

    data = (done / "last.weights").read_bytes()
    first = 20 + 4 * (4 * 8 + 8 * 27)  # header and the first convolution
    (tmp_path / "backbone.weights").write_bytes(data[:first])
    loaded = load(cfg, tmp_path / "backbone.weights")
    set_prior(loaded.module, loaded.detector)
    heads = [loaded.module.layers[str(i)].conv.bias for i in loaded.module.outputs]
    assert all(float(bias.detach().view(2, -1)[0, 4]) < -4 for bias in heads)
    full = load(cfg, done / "last.weights")
    before = full.module.layers[str(full.module.outputs[0])].conv.bias.clone()
    set_prior(full.module, full.detector)
    assert torch.equal(full.module.layers[str(full.module.outputs[0])].conv.bias, before)


def test_a_start_that_failed_leaves_a_folder_that_can_be_begun_anew(cfg, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.cfg").write_text("")  # killed between its first files and its first checkpoint
    assert train(cfg, tmp_path / "run", epochs=1).exit_code == 0


def test_a_link_in_a_strangers_folder_is_not_followed(cfg, tmp_path):
    from edgeyolo.train import trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train(cfg, tmp_path / "run", epochs=1).exit_code == 130
    (tmp_path / "precious.txt").write_text("mine")
    for name in ("last.weights", "last.safetensors", "checkpoint.safetensors"):
        (tmp_path / "run" / f"{name}.part").symlink_to(tmp_path / "precious.txt")
    assert edgeyolo("train", "--resume", tmp_path / "run", "--device", "cpu").exit_code == 0
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_two_processes_train_together(cfg, tmp_path):
    process = command(
        "--model", cfg, "--data", "scenes:train:16", "--val", "scenes:val:4", "--epochs", 2, *QUICK, "--devices", 2,
        "-o", tmp_path / "run",
    )  # fmt: skip
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert [row["step"] for row in curve(tmp_path / "run")] == ["2", "4"]
    assert (tmp_path / "run" / "last.weights").exists()
    assert len(re.findall("epoch 2/2", output)) == 1  # the second process is silent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "none.cfg", "--data", "scenes:train:4"), "none.cfg"),
        (("--data", "nowhere"), "no such data set"),
        (("--data", "scenes:train:4", "--val", "nowhere"), "no such data set"),
        (("--data", "scenes:train:4", "--lr", "0"), "--lr"),
        (("--data", "scenes:train:4", "--box-loss", "l2"), "box loss"),
        (("--data", "scenes:train:4", "--batch", "0"), "--batch"),
        (("--data", "scenes:train:4", "--device", "mps"), "device"),
        (("--resume", "nowhere"), "checkpoint"),
        (("--resume", "nowhere", "--lr", "0.1"), "--lr"),
    ],
)
def test_bad_input_is_a_message_and_leaves_nothing(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgeyolo("train", *arguments)
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_no_data_for_a_model_of_ones_own_is_a_message(cfg):
    result = edgeyolo("train", "--model", cfg)
    assert result.exit_code == 2 and "--data" in result.output


def yolo_tree(folder: Path, rows: str) -> Path:
    """Four grey pictures with the same label lines."""
    from PIL import Image

    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (80, 60), (90, 90, 90)).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(rows)
    return folder


def test_labels_that_are_wrong_are_counted_and_the_others_used(cfg, tmp_path):
    data = yolo_tree(tmp_path / "set", "3 .5 .5 .4 .4\n3 7 .5 .4 .4\n")
    (data / "images" / "1.png").write_bytes(b"no picture")
    result = train(cfg, tmp_path / "run", epochs=1, data=str(data))
    assert result.exit_code == 0, result.output
    assert "3 of " in result.output and "label problems" in result.output and "dropped" in result.output


def test_classes_that_disagree_with_the_model_are_listed(cfg, tmp_path):
    data = yolo_tree(tmp_path / "set", "12 .5 .5 .4 .4\n")
    result = train(cfg, tmp_path / "run", data=str(data))
    assert result.exit_code == 2 and "classes" in result.output and not (tmp_path / "run").exists()
    (tmp_path / "a.names").write_text("cat\ndog\n")
    result = train(cfg, tmp_path / "run", "--names", tmp_path / "a.names")
    assert result.exit_code == 2 and "2 names" in result.output


def test_sets_without_a_single_label_are_refused_before_training(cfg, tmp_path):
    empty = yolo_tree(tmp_path / "set", "")
    for arguments in ({"data": str(empty)}, {"data": "scenes:train:8"}):
        more = () if arguments["data"] == str(empty) else ("--val", empty)
        result = train(cfg, tmp_path / "run", *more, **arguments)
        assert result.exit_code == 2 and "no" in result.output and "labelled object" in result.output
        assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_left_alone(cfg, tmp_path, done):
    result = train(cfg, done)
    assert result.exit_code == 2 and "--resume" in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    result = train(cfg, tmp_path / "mine")
    assert result.exit_code == 2 and [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_resuming_on_other_pictures_is_refused(cfg, tmp_path):
    data = yolo_tree(tmp_path / "set", "3 .5 .5 .4 .4\n")
    assert train(cfg, tmp_path / "run", epochs=1, data=str(data)).exit_code == 0
    (data / "images" / "3.png").unlink()
    (data / "labels" / "3.txt").unlink()
    result = edgeyolo("train", "--resume", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 2 and "not those" in result.output
