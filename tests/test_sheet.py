"""Picture sheets: what is on them, that nobody's text is markup, that nothing is fetched, and what is refused."""

from __future__ import annotations

import base64
import builtins
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_detect import DETECTOR, bright_square_model

from edgeyolo.cli.detect import detect
from edgeyolo.cli.eval import eval as evaluate_command
from edgeyolo.errors import BundleError, InputError
from edgeyolo.postprocess import Detections
from edgeyolo.sheet import Sheet, Side, Subject, write_sheet
from edgeyolo.sheet.contact import MARGIN, card_size
from edgeyolo.sheet.content import choice_text, choose
from edgeyolo.sheet.layers import MAX_BYTES, Layer, read_layers
from edgeyolo.sheet.panes import OTHER, SAME, panes

NAMES = ("square", "other")
HOSTILE = "<script>alert(1)</script>\"'&$\\x$\u202e"
PICTURES = 6
"""Every second one shows a square that the model finds and its weaker twin does not."""


class Page(HTMLParser):
    """The elements of a page: every tag with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def save_model(path: Path, bias: float = -20, names: tuple[str, ...] = NAMES) -> Path:
    """The model of bright squares; a lower bias makes it see less."""
    model = bright_square_model(dataclasses.replace(DETECTOR, names=names))
    model.graph.initializers["bias"].const_value = ir.tensor(np.array([0, 0, 0, 0, bias, 4, -9], np.float32))
    ir.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good and a blind model, and labelled pictures 32 x 24."""
    save_model(tmp_path / "good.onnx")
    save_model(tmp_path / "blind.onnx", bias=-60)
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for i in range(PICTURES):
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[6:12, 16:24] = 255 if i % 2 else 0
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        (tmp_path / f"labels/{i}.txt").write_text("0 .625 .375 .25 .25", "utf-8")
    return tmp_path


def score(folder: Path, *arguments: object, model: str = "good.onnx") -> Result:
    return CliRunner().invoke(evaluate_command, [str(a) for a in (folder / model, "--data", folder, *arguments)])


def find(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(detect, [str(a) for a in (folder / "good.onnx", folder / "images", *arguments)])


def error(result: Result) -> str:
    assert isinstance(result.exception, InputError), result.exception
    assert result.stdout == ""
    return str(result.exception)


def test_weak_boxes_count_for_the_score_but_are_not_shown(folder: Path):
    """The square scores .12: more than the .001 of average precision, less than the .25 of detect."""
    save_model(folder / "weak.onnx", bias=-42)
    more = ("--against", folder / "good.onnx", "--sheet", folder / "a.html", "--json")
    document = json.loads(score(folder, *more, model="weak.onnx").stdout)
    assert document["AP50"] == pytest.approx(51 / 101) and document["against"]["agreement"]["missed"] == 3
    captions = {str(image["alt"]) for image in Page((folder / "a.html").read_text("utf-8")).all("img")}
    assert "model: 0 found: 0 of 1 labelled, 0 false" in captions
    assert "reference: 1 found: 1 of 1 labelled, 0 false" in captions


def test_boxes_are_green_where_both_sides_agree_and_magenta_elsewhere():
    sheet = hostile_sheet()
    other = dataclasses.replace(sheet.pictures[0].truth, classes=np.ones(1, np.int64))  # type: ignore[type-var]
    differing = hostile_sheet(model=Side("", "", [other]), names=["a", "b"])
    for shown, colour, absent in ((sheet, SAME, OTHER), (differing, OTHER, SAME)):
        for pane in panes(shown, 0):
            pixels = np.asarray(pane.image)
            assert (pixels == colour).all(-1).any() and not (pixels == absent).all(-1).any()


@pytest.fixture
def page(folder: Path) -> Page:
    """The page of the blind model against the good one."""
    more = ("--against", folder / "good.onnx", "--sheet", folder / "a.html")
    result = score(folder, *more, model="blind.onnx")
    assert result.exit_code == 0, result.exception
    return Page((folder / "a.html").read_text("utf-8"))


def test_page_has_both_models_figures_and_their_agreement(page: Page):
    assert "good.onnx" in page.text and "blind.onnx" in page.text
    # three of six squares: of the recalls 0, .01 ... 1 COCO counts the 51 up to .5
    for text in ("0.505", "0.000", "−0.505", "F1 0.000", "0 boxes matched, 3 missed, 0 invented", "score > 0.001"):
        assert text in page.text
    assert "COCO: 101 recall points" in page.text


def test_page_shows_every_picture_with_both_sides_and_labels(page: Page):
    images = page.all("img")
    assert len(images) == 3 * PICTURES
    order = [str(image["alt"]).partition(":")[0] for image in images]
    assert order == ["reference", "model", "labels"] * PICTURES
    for image in images:
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (480, 360)


def test_page_stands_alone_and_runs_nothing(page: Page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "foreignobject"}
    links = [
        v or "" for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "xlink:href")
    ]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not [k for _, attributes in page.tags for k in attributes if k.startswith("on")]
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_plots_in_one_page_share_no_identifiers(tmp_path: Path):
    """Or one would be drawn with the marks of another."""
    write_sheet(tmp_path / "a.html", hostile_sheet())
    page = Page((tmp_path / "a.html").read_text("utf-8"))
    assert len(page.all("svg")) == 2
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = [str(v)[1:] for _, attributes in page.tags for k, v in attributes.items() if k == "xlink:href"]
    assert used and set(used) <= set(names)
    assert len(names) == len(set(names))


def test_the_same_results_give_the_same_bytes(folder: Path):
    for name in ("a.html", "b.html", "a.png", "b.png"):
        assert score(folder, "--sheet", folder / name).exit_code == 0
    assert (folder / "a.html").read_bytes() == (folder / "b.html").read_bytes()
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()


def test_figures_are_the_same_with_and_without_a_sheet(folder: Path):
    plain = json.loads(score(folder, "--json").stdout)
    more = ("--sheet", folder / "a.html", "--against", folder / "blind.onnx")
    document = json.loads(score(folder, "--json", *more).stdout)
    against = document.pop("against")
    assert document == plain
    assert against["AP50"] == 0 and against["model"].endswith("blind.onnx")
    assert against["agreement"] == {"f1": 0.0, "matched": 0, "missed": 0, "invented": 3, "conf": 0.25}


def test_text_has_the_second_models_figures(folder: Path):
    shown = score(folder, "--against", folder / "blind.onnx", "--sheet", folder / "a.html").output
    for text in ("AP50 0.505", "AP50 0.000", "F1 0.000 (0 matched, 0 missed, 3 invented)", "a.html"):
        assert text in shown


def hostile_sheet(**more: object) -> Sheet:
    """One picture; every text is an attack."""
    box = Detections(np.array([[1, 1, 8, 8]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    layers = (Layer(HOSTILE, HOSTILE, 3.0, 0.0, 0.0), Layer("_" + HOSTILE, "i8", -1.0, 0.5, 1.0))
    side = Side(HOSTILE, HOSTILE, [box], None, layers)
    picture = Subject(HOSTILE, lambda: np.zeros((16, 16, 3), np.uint8), box)
    values = {"title": HOSTILE, "data": HOSTILE, "settings": (HOSTILE,), "names": [HOSTILE], "pictures": [picture]}
    return Sheet(**{**values, "model": side, "against": dataclasses.replace(side), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_texts_from_others_are_never_markup(tmp_path: Path, suffix: str):
    target = tmp_path / f"a.{suffix}"
    write_sheet(target, hostile_sheet())
    if suffix == "html":
        text = target.read_text("utf-8")
        found = Page(text)
        assert not found.all("script") and "<script" not in text and "\u202e" not in text
        assert found.text.count("<script>alert(1)</script>") > 5 and "$\\x$" in found.text


def test_class_names_and_paths_from_files_are_never_markup(folder: Path):
    evil = folder / "<img src=x onerror=alert(1)>.onnx"
    save_model(evil, names=(HOSTILE, "b"))
    result = score(folder, "--sheet", folder / "a.html", model=evil.name)
    assert result.exit_code == 0, result.exception
    found = Page((folder / "a.html").read_text("utf-8"))
    assert not found.all("script") and all("onerror" not in image for image in found.all("img"))
    assert "<script>alert(1)</script>" in found.text and evil.name in found.text


def sheet_of(counts: list[int], limit: int) -> Sheet:
    """Pictures on which only the model sees so many boxes."""

    def found(n: int) -> Detections:
        return Detections(np.tile(np.array([0, 0, 9, 9], np.float32), (n, 1)), np.ones(n), np.zeros(n, np.int64))

    pictures = [Subject(str(i), lambda: np.zeros((9, 9, 3), np.uint8)) for i in range(len(counts))]
    sides = (Side("m", "", [found(n) for n in counts]), Side("a", "", [found(0) for _ in counts]))
    return Sheet("t", "d", (), ["c"], pictures, *sides, limit)


def test_half_of_the_pictures_are_the_worst_and_the_rest_is_even():
    sheet = sheet_of([0, 3, 0, 5, 1, 0, 0, 0, 0, 0], 6)
    assert choose(sheet) == ([3, 1, 4, 0, 5, 7], 3)
    assert "6 of 10 pictures: first the 3 with the largest disagreement between the two models" in choice_text(sheet)
    assert "then 3 evenly spread" in choice_text(sheet)
    agreed = sheet_of([0] * 10, 5)
    assert choose(agreed) == ([0, 2, 4, 6, 8], 0) and "5 of 10 pictures, evenly spread" in choice_text(agreed)
    assert sorted(choose(sheet_of([1] * 4, 24))[0]) == [0, 1, 2, 3]


def test_sheet_pictures_limits_the_page(folder: Path):
    assert score(folder, "--sheet", folder / "a.html", "--sheet-pictures", 2).exit_code == 0
    found = Page((folder / "a.html").read_text("utf-8"))
    assert len(found.all("img")) == 2 * 2
    assert "2 of 6 pictures: first the 1 with the largest disagreement between the model and the labels" in found.text


def test_png_holds_the_cards_and_curves(folder: Path):
    assert score(folder, "--sheet", folder / "a.png", "--against", folder / "blind.onnx").exit_code == 0
    with Image.open(folder / "a.png") as image:
        image.load()
    card = card_size(hostile_sheet())
    assert image.width == 2 * card[0] + 2 * MARGIN
    cards = PICTURES // 2 * card[1]
    pixels = np.asarray(image)
    assert cards < image.height < cards + 900
    orange = (np.abs(pixels[: image.height - cards].astype(int) - (0xE8, 0x75, 0x1A)).sum(-1) < 30).sum()
    assert orange > 300, "the model's curve is drawn"
    green = (np.abs(pixels[-cards:].astype(int) - (64, 201, 109)).sum(-1) < 30).sum()
    magenta = (np.abs(pixels[-cards:].astype(int) - (255, 69, 181)).sum(-1) < 30).sum()
    assert green > 300 and magenta > 300, "found squares agree with their labels, missed ones do not"


def test_detect_compares_two_models_without_labels(folder: Path):
    result = find(folder, "--against", folder / "blind.onnx", "--sheet", folder / "a.html", "--json")
    document = json.loads(result.stdout)
    assert document["against"]["agreement"] == {"f1": 0.0, "matched": 0, "missed": 0, "invented": 3}
    found = Page((folder / "a.html").read_text("utf-8"))
    assert [str(image["alt"]) for image in found.all("img")][:2] == ["reference: 0 found", "model: 1 found"]
    assert len(found.all("img")) == 2 * PICTURES and "AP50" not in found.text
    shown = find(folder, "--against", folder / "good.onnx").stdout
    assert "F1 1.000 (3 matched, 0 missed, 0 invented)" in shown


def test_detect_alone_needs_no_curves(folder: Path, monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch, "matplotlib")
    for name in ("a.html", "a.png"):
        result = find(folder, "--sheet", folder / name)
        assert result.exit_code == 0, result.exception
    found = Page((folder / "a.html").read_text("utf-8"))
    assert len(found.all("img")) == PICTURES and not found.all("svg")


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make importing a package fail."""
    original = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)


def test_missing_matplotlib_is_named_with_its_extra_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch, "matplotlib")
    (folder / "good.onnx").unlink()
    assert "edgeyolo[eval]" in error(score(folder, "--sheet", folder / "a.html"))


def test_matplotlib_is_imported_for_curves_only():
    code = "import sys, edgeyolo.sheet, edgeyolo.cli.eval, edgeyolo.cli.detect; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("command", [score, find])
def test_an_existing_file_is_refused_before_any_work(folder: Path, command):
    target = folder / "a.html"
    target.write_text("mine", "utf-8")
    blind = ("--against", folder / "none.onnx")  # is not looked at before the file is
    assert "add --force" in error(command(folder, "--sheet", target, *blind))
    assert target.read_text("utf-8") == "mine"
    assert command(folder, "--sheet", target, "--force").exit_code == 0
    assert target.read_text("utf-8").startswith("<!doctype html>")
    (folder / "b.html").mkdir()
    assert "exists" in error(command(folder, "--sheet", folder / "b.html", "--force"))


def test_other_suffixes_are_refused(folder: Path):
    for name in ("a.pdf", "a", "a.html.gz"):
        message = error(find(folder, "--sheet", folder / name))
        assert ".html or .png" in message and not (folder / name).exists()


def test_models_of_different_classes_are_not_compared(folder: Path):
    save_model(folder / "c.onnx", names=("square", "else"))
    for command in (score, find):
        message = error(command(folder, "--against", folder / "c.onnx", "--sheet", folder / "a.html"))
        assert "different classes" in message and "square, else" in message and "square, other" in message
    assert not (folder / "a.html").exists()


def test_a_model_without_names_takes_those_of_the_other(folder: Path):
    save_model(folder / "c.onnx", names=())
    result = find(folder, "--against", folder / "good.onnx", "--json")
    assert result.exit_code == 0, result.exception
    named = CliRunner().invoke(detect, [str(folder / "c.onnx"), str(folder / "images/1.png"), "--json", "--against",
                                        str(folder / "good.onnx")])  # fmt: skip
    assert json.loads(named.stdout)["pictures"][0]["detections"][0]["class"] == "square"


def test_weights_without_the_second_model_are_refused(folder: Path):
    assert "--against" in error(score(folder, "--against-weights", folder / "a.weights"))


def test_only_bundles_have_a_plot_of_their_layers(good_bundle: Path, tiny, tmp_path: Path):
    arguments = [str(good_bundle), str(tiny.pictures), "--sheet", str(tmp_path / "a.html")]
    result = CliRunner().invoke(detect, arguments)
    assert result.exit_code == 0, result.exception
    found = Page((tmp_path / "a.html").read_text("utf-8"))
    layers = read_layers(good_bundle)
    assert layers and len(found.all("svg")) == 1 and "SNR in dB" in found.text
    assert all(layer.name in found.text for layer in layers)
    arguments = [str(good_bundle / "model.onnx"), str(tiny.pictures), "--sheet", str(tmp_path / "b.html")]
    assert CliRunner().invoke(detect, arguments).exit_code == 0
    assert not Page((tmp_path / "b.html").read_text("utf-8")).all("svg")
    assert read_layers(good_bundle / "model.onnx") == ()


@pytest.mark.parametrize(
    "report",
    ["{}", "[1]", "[" * 5000, '[{"name": 1}]', "[NaN]", " " * (MAX_BYTES + 1),
     '[{"name": "a", "qtype": "b", "snr_db": NaN, "clipped": 0, "saturated": 0}]',
     '[{"name": "a", "qtype": "b", "snr_db": true, "clipped": 0, "saturated": 0}]',
     '[{"name": "a", "qtype": "b", "snr_db": ' + "9" * 400 + ', "clipped": 0, "saturated": 0}]',
     '[{"name": "a", "qtype": "b", "snr_db": 1e308, "clipped": 0, "saturated": 0}]',
     '[{"name": "a", "qtype": "b", "snr_db": 9, "clipped": 2, "saturated": 0}]'],
)  # fmt: skip
def test_damaged_reports_are_refused(tmp_path: Path, report: str):
    from edgeyolo.bundle import write_manifest

    (tmp_path / "report.json").write_text(report, "utf-8")
    write_manifest(tmp_path, {"tool": "t", "target": "fpga", "source": {}}, DETECTOR)
    with pytest.raises(BundleError, match="report"):
        read_layers(tmp_path)


def test_curves_of_every_class_fall_from_left_to_right(page: Page):
    lines = [str(line["points"]) for line in page.all("polyline")]
    assert len(lines) == 2
    for line in lines:
        x, y = zip(*(tuple(map(int, point.split(","))) for point in line.split()), strict=True)
        assert list(x) == sorted(set(x)) and (x[0], x[-1]) == (0, 100)
        assert list(y) == sorted(y), "precision falls, and so does the line: y points down"
    assert re.match(r"0,0 50,0 51,100 100,100", lines[0])
