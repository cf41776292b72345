"""The accuracy ledger of ``edgeyolo export --data``: labels are what the float tiny model itself detects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import PICTURES, Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo import assets
from edgeyolo.agreement import Agreement
from edgeyolo.bootstrap import RESAMPLES, Ratio
from edgeyolo.bundle import Bundle
from edgeyolo.errors import AccuracyError
from edgeyolo.evaluate import Setting
from edgeyolo.export import ledger_stages
from edgeyolo.export.ledger import Ledger, LedgerRow, check_drop
from edgeyolo.images import load_image
from edgeyolo.program import Conv
from edgeyolo.program_image import decode_program
from edgeyolo.runners.engine import EngineRunner

FLOATS = ["source", "BN folded", "simplified", "fixed form"]
SCALINGS = ("round to nearest", "equalise", "equalise, align")
CANDIDATES = [name + biases for name in SCALINGS for biases in ("", " + correct biases")]
BEST = "equalise + reconstruct"
"""Of the tiny model at four bits; equalising gains it seven decibels."""
FIGURES = ("ap50", "ap", "f1", "snr_db")
OWN_AP = 0.9
"""Detections that clipping leaves empty cannot be labels; they count as false. Measured: .94."""
AP_TOLERANCE = 0.01
"""Folding moves boxes by a millionth of a pixel; one whose IoU lies on a threshold may fall over it."""
FOLDED_DB = 100
"""Another order of float32 additions leaves about 120 dB."""
DIGITS = 3e-4
"""Ratios and what they are made of have four digits each."""
PLAIN = ("--no-equalise", "--no-align", "--no-correct-bias", "--no-reconstruct", "--golden", 0)


@pytest.fixture(scope="module")
def labelled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLO tree with the tiny model's pictures, labelled by the float model."""
    root = tmp_path_factory.mktemp("labelled")
    shutil.copytree(tiny.pictures, root / "images")
    (root / "labels").mkdir()
    succeed("export", *tiny.model(), "--target", "onnx", "--names", tiny.names, "-o", root / "tiny.onnx")
    found = json.loads(succeed("detect", root / "tiny.onnx", root / "images", "--json").stdout)["pictures"]
    for picture in found:
        name = Path(picture["path"]).stem
        height, width = load_image(root / "images" / f"{name}.jpg").shape[:2]
        lines = []
        for d in picture["detections"]:
            x0, y0, x1, y1 = d["box"]
            box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(" ".join([str(["bolt", "nut"].index(d["class"])), *(f"{v:.7f}" for v in box)]))
        usable = [line for line in dict.fromkeys(lines) if "0.0000000" not in line]  # clipping leaves empty boxes
        (root / "labels" / f"{name}.txt").write_text("\n".join(usable), "utf-8")
    (root / "tiny.onnx").unlink()
    return root


@pytest.fixture(scope="module")
def exported(tiny: Tiny, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle with a labelled ledger, and the JSON document; nobody changes it."""
    out = tmp_path_factory.mktemp("ledger") / "out"
    command = tiny.fpga(out, "--data", labelled, "--names", tiny.names, "--bits", 4, "--json")
    return out, json.loads(succeed(*command).stdout)


def rows(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ledger's rows by their names, in order."""
    return {row["stage"]: row for row in document["ledger"]["stages"]}


def test_every_stage_has_its_row_in_order(exported: tuple[Path, dict[str, Any]]) -> None:
    found = rows(exported[1])
    assert list(found) == [*FLOATS, *CANDIDATES, BEST, "integer program"]
    assert [name for name, row in found.items() if row["kept"] is not None] == [*CANDIDATES, BEST]
    assert [name for name, row in found.items() if row["kept"]] == [BEST]
    data = exported[1]["ledger"]["data"]
    assert (data["pictures"], data["snr_pictures"]) == (PICTURES, PICTURES) and data["boxes"] > 20
    assert data["setting"]["conf"] == Setting().conf and data["label_problems"] == {}


def test_a_float_stage_that_loses_nothing_keeps_its_ap(exported: tuple[Path, dict[str, Any]]) -> None:
    found = rows(exported[1])
    source = found["source"]
    assert source["ap"] > OWN_AP and source["ap50"] > OWN_AP, "the labels are its own detections"
    assert source["f1"] == 1 and source["snr_db"] is None
    for name in ("BN folded", "simplified"):
        assert found[name]["ap"] == pytest.approx(source["ap"], abs=AP_TOLERANCE)
        assert found[name]["f1"] > 1 - AP_TOLERANCE and found[name]["snr_db"] > FOLDED_DB
    assert found["fixed form"]["snr_db"] < FOLDED_DB, "dyadic slopes are other slopes"
    assert found["round to nearest"]["ap"] < source["ap"] - AP_TOLERANCE, "four bits are not enough"


def test_the_integer_program_scores_exactly_what_the_kept_quantised_graph_scores(
    exported: tuple[Path, dict[str, Any]], tiny: Tiny, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In numpy and in the C engine."""
    found = rows(exported[1])
    kept = next(row for row in found.values() if row["kept"])
    assert [kept[key] for key in FIGURES] == [found["integer program"][key] for key in FIGURES]
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    used: list[bytes] = []

    def engine(image: bytes) -> EngineRunner:
        used.append(image)
        return EngineRunner(image)

    monkeypatch.setattr(ledger_stages, "ENGINE_PAYS", 0)
    monkeypatch.setattr(ledger_stages, "EngineRunner", engine)
    command = tiny.fpga(tmp_path / "out", "--data", labelled, "--names", tiny.names, "--bits", 4, "--json")
    assert rows(json.loads(succeed(*command).stdout)) == found and used


def test_without_a_compiler_numpy_runs_the_program(
    exported: tuple[Path, dict[str, Any]], tiny: Tiny, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_stages, "ENGINE_PAYS", 0)
    monkeypatch.setenv("CC", "no-such-compiler")
    command = tiny.fpga(tmp_path / "out", "--data", labelled, "--names", tiny.names, "--bits", 4, "--json")
    assert rows(json.loads(succeed(*command).stdout)) == rows(exported[1])


def test_bytes_and_macs_are_those_of_what_is_shipped(exported: tuple[Path, dict[str, Any]]) -> None:
    out, document = exported
    found, program = rows(document), decode_program((out / "program.bin").read_bytes(), "program")
    convs = [op for op in program.ops if isinstance(op, Conv)]
    macs = 0
    for op in convs:
        _, height, width = program.tensors[op.output].shape
        macs += op.weight.size * height * width
    assert {row["macs"] for name, row in found.items() if name != "source"} == {macs}
    assert found["source"]["macs"] > macs, "batch normalisation multiplies too"
    packed = sum((op.weight.size * 4 + 7) // 8 + 4 * op.bias.size for op in convs)
    assert {found[name]["bytes"] for name in CANDIDATES} == {packed}
    images = sum(path.stat().st_size for path in (out / "weights").glob("*.bin"))
    assert found["integer program"]["bytes"] == images
    assert found["source"]["bytes"] > 4 * sum(op.weight.size for op in convs) > packed


def test_the_manifest_has_the_ledger_and_the_bundle_opens(exported: tuple[Path, dict[str, Any]]) -> None:
    out, document = exported
    bundle = Bundle.open(out)
    assert bundle.manifest["ledger"] == document["ledger"]
    assert str(out.parent) not in json.dumps(bundle.manifest["ledger"]), "no paths of this machine"


def test_the_ratio_is_of_the_last_row_and_the_first_with_an_interval(exported: tuple[Path, dict[str, Any]]) -> None:
    found, ratio = rows(exported[1]), exported[1]["ledger"]["ratio"]
    for name, key in (("AP50", "ap50"), ("AP", "ap")):
        quotient = found["integer program"][key] / found["source"][key]
        assert ratio[name]["value"] == pytest.approx(quotient, abs=DIGITS)
        assert 0 < ratio[name]["low"] < ratio[name]["value"] < ratio[name]["high"] < 1
    assert (ratio["confidence"], ratio["resamples"]) == (0.95, RESAMPLES)


def test_the_same_input_gives_the_same_bytes(
    exported: tuple[Path, dict[str, Any]], tiny: Tiny, labelled: Path, tmp_path: Path
) -> None:
    text = succeed(*tiny.fpga(tmp_path / "out", "--data", labelled, "--names", tiny.names, "--bits", 4)).stdout
    assert tree(tmp_path / "out") == tree(exported[0])
    assert "AP50" in text and "equalise" in text and f"{rows(exported[1])['integer program']['ap']:.4f}" in text
    kept = exported[1]["ledger"]["ratio"]["AP50"]
    assert "accuracy kept" in text and f"{kept['value']:.2f}" in text and "95% interval" in text


def test_candidates_that_were_not_tried_have_no_row(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    command = tiny.fpga(tmp_path / "out", "--data", labelled, *PLAIN, "--data-limit", 2, "--json")
    document = json.loads(succeed(*command).stdout)
    assert list(rows(document)) == [*FLOATS, "round to nearest", "integer program"]
    assert document["ledger"]["data"]["pictures"] == 2


def test_seed_v1_counts_the_bytes_of_its_files(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = tiny.fpga(out, "--data", labelled, *PLAIN, "--layout", "seed-v1", "--json")
    shipped = rows(json.loads(succeed(*command).stdout))["integer program"]["bytes"]
    assert shipped == sum(path.stat().st_size for path in (out / "weights").iterdir())


def test_without_labels_the_rows_have_no_ap(tiny: Tiny, tmp_path: Path) -> None:
    document = json.loads(succeed(*tiny.fpga(tmp_path / "out", "--recipe", "fast", "--json")).stdout)
    found = rows(document)
    assert list(found) == [*FLOATS, *CANDIDATES, "integer program"]
    assert all(row["ap"] is None and row["ap50"] is None for row in found.values())
    assert found["source"]["f1"] == 1 and 0 < found["integer program"]["f1"] < 1
    assert document["ledger"]["data"]["name"] is None and document["ledger"]["ratio"] is None


def test_ratio_in_words() -> None:
    row = LedgerRow("a", 0.5, 0.5, 1.0, None, 1, 1)
    judged = Ledger(
        (row, row), "val", 128, 1, 1, Setting(), {}, Agreement(1), 20.0,
        {"AP50": Ratio(0.88, 0.82, 0.94), "AP": Ratio(0.7, None, None)},
    )  # fmt: skip
    text = "AP50 0.880 [0.820, 0.940], AP 0.700 [-] of the source's [95% interval over 128 pictures]"
    assert judged.ratio_text == text
    assert ledger((0.5, 0.5), Agreement(1)).ratio_text == ""


# --- what is allowed to be lost --------------------------------------------------------------------------------------


def test_max_drop_is_about_ap_and_exits_with_3(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    common = ("--data", labelled, *PLAIN)
    result = edgeyolo(*tiny.fpga(tmp_path / "2", *common, "--bits", 2, "--max-drop", 0.1))
    manifest = json.loads((tmp_path / "2/manifest.json").read_text("utf-8"))
    figures = [manifest["ledger"]["stages"][i]["ap"] for i in (0, -1)]
    assert figures[0] - figures[1] > 0.1
    assert result.exit_code == 3 and f"AP {figures[0]:.4f} -> {figures[1]:.4f}" in result.stderr
    assert "--max-drop" in result.stderr and "diagnose" in result.stderr and "Traceback" not in result.stderr
    assert "AGREEMENT WITH THE FLOAT MODEL IS LOST" in result.stderr
    succeed(*tiny.fpga(tmp_path / "8", *common, "--max-drop", 0.9))


def ledger(ap: tuple[float, float], agreement: Agreement) -> Ledger:
    """One with two rows."""
    stages = [LedgerRow(name, value, value, 1.0, 20.0, 1, 1) for name, value in zip("ab", ap, strict=True)]
    return Ledger(tuple(stages), "val", 1, 1, 1, Setting(), {}, agreement, 20.0)


@pytest.mark.parametrize(("ap", "lost"), [((0.4, 0.19), True), ((0.4, 0.21), False), ((0.0001, 0.0), False)])
def test_half_of_the_ap_is_as_bad_as_half_of_the_detections(ap: tuple[float, float], lost: bool) -> None:
    assert ledger(ap, Agreement(matched=10)).lost is lost
    assert ledger(ap, Agreement(matched=1, missed=10)).lost


def test_the_allowed_loss_is_absolute_and_inclusive() -> None:
    check_drop(ledger((0.4, 0.39), Agreement(1)), 0.01, "out")
    check_drop(ledger((0.4, 0.0), Agreement(1)), None, "out")
    check_drop(ledger((0.4, 0.41), Agreement(1)), 0.0, "out")
    with pytest.raises(AccuracyError, match="lost more AP"):
        check_drop(ledger((0.4, 0.3899), Agreement(1)), 0.01, "out")
    with pytest.raises(AccuracyError, match="next to nothing"):
        check_drop(ledger((0.001, 0.001), Agreement(1)), 0.5, "out")


# --- bad input -------------------------------------------------------------------------------------------------------


def test_classes_that_disagree_are_refused_before_the_work(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    (data / "data.yaml").write_text("path: .\nval: images\nnames: [bolt, nut, screw]\n", "utf-8")
    message = refusal(*tiny.fpga(tmp_path / "out", "--data", data, "--names", tiny.names))
    assert "screw" in message and "fold BN" not in message and not (tmp_path / "out").exists()


def test_a_set_without_boxes_or_pictures_is_refused_before_the_work(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    for path in (data / "labels").iterdir():
        path.write_text("", "utf-8")
    message = refusal(*tiny.fpga(tmp_path / "out", "--data", data))
    assert "nothing to score" in message and "fold BN" not in message
    for path in (data / "images").iterdir():
        path.unlink()
    assert "load" not in refusal(*tiny.fpga(tmp_path / "out", "--data", data))
    message = refusal(*tiny.fpga(tmp_path / "out", "--data", tmp_path / "nowhere"))
    assert "nowhere" in message and "load  " not in message
    assert not (tmp_path / "out").exists()


def test_a_picture_that_does_not_decode_is_left_out_and_told(tiny: Tiny, labelled: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    path = data / "images/picture-0.jpg"
    path.write_bytes(path.read_bytes()[:700])
    result = succeed(*tiny.fpga(tmp_path / "out", "--data", data, *PLAIN, "--json"))
    entry = json.loads(result.stdout)["ledger"]["data"]
    assert entry["pictures"] == PICTURES - 1 and sum(entry["label_problems"].values()) == 1
    assert "label problems" in result.stderr


def test_options_that_do_nothing_without_data_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    assert "without --data" in refusal(*tiny.fpga(tmp_path / "out", "--data-limit", 2))
    command = ("export", *tiny.model(), "--target", "onnx", "-o", tmp_path / "out")
    assert "--data" in refusal(*command, "--data", "scenes:val:2")


# --- the embedded default --------------------------------------------------------------------------------------------


def test_without_a_model_everything_has_a_default(
    tiny: Tiny, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CFG", tiny.cfg), ("WEIGHTS", tiny.weights), ("NAMES", tiny.names)):
        monkeypatch.setattr(assets, name, value)
    monkeypatch.setattr(assets, "CALIBRATION", tiny.pictures)
    monkeypatch.setattr(assets, "DATA", str(labelled))
    monkeypatch.chdir(tmp_path)
    result = succeed("export", "--target", "fpga", *PLAIN)
    assert "embedded default, tiny.cfg" in result.stderr
    manifest = Bundle.open(tmp_path / "out/tiny-fpga").manifest
    assert manifest["detector"]["names"] == ["bolt", "nut"] and manifest["ledger"]["stages"][0]["ap"] > 0.9
    succeed("export", "--target", "onnx")
    assert (tmp_path / "out/tiny-onnx.onnx").is_file()


def test_the_embedded_default_on_a_few_of_its_scenes(tmp_path: Path) -> None:
    command = ("export", "--target", "fpga", "--bits", 4, "-o", tmp_path / "out", *PLAIN, "--json")
    result = succeed(*command, "--calib", "scenes:train:3:1000", "--data", "scenes:val:3")
    document = json.loads(result.stdout)
    assert document["source"]["name"] == "digits.cfg" and document["pictures"] == 3
    assert document["ledger"]["data"]["name"] == "scenes:val:3" and document["ledger"]["data"]["pictures"] == 3


def test_weights_without_their_model_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    message = refusal("export", "--target", "fpga", "--weights", tiny.weights, "-o", tmp_path / "out")
    assert "--weights without MODEL" in message and "no model given" in message
    assert "--names" in refusal("export", "--target", "onnx", "--names", tiny.names, "-o", tmp_path / "out")


def test_a_loss_of_just_what_is_allowed_is_allowed() -> None:
    """198 matched of 200 and 200 is an F1 of .99, whose distance to 1 is not exactly .01 in binary."""
    counts = Agreement(198, 2, 2)
    ledger = Ledger((LedgerRow("a", None, None, 1.0, None, 1, 1),) * 2, None, 1, 0, 1, Setting(), {}, counts, 20.0)
    check_drop(ledger, 0.01, "out")
    with pytest.raises(AccuracyError):
        check_drop(ledger, 0.0099, "out")
