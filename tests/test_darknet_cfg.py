"""Darknet's parsing rules, refusals and limits, without weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeyolo.errors import EdgeYoloError, InputError, UnsupportedError
from edgeyolo.frontend.darknet import describe_darknet, load_darknet
from edgeyolo.frontend.darknet.cfg import MAX_CFG_BYTES, MAX_SECTIONS, integer, integers, parse_cfg, real, reals, text
from edgeyolo.frontend.darknet.keys import check
from edgeyolo.frontend.darknet.plan import check_live_values, plan_network

HOSTILE = Path(__file__).parent / "hostile"
NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n"
HEAD = "[convolutional]\nfilters=18\nactivation=linear\n[yolo]\nclasses=1\nnum=3\nmask=0,1,2\nanchors=1,2, 3,4, 5,6\n"


def write(tmp_path, cfg):
    path = tmp_path / "net.cfg"
    path.write_text(cfg, "utf-8")
    return path


def one(body):
    """The last section of a cfg."""
    return parse_cfg(NET + body, "test.cfg")[-1]


def test_sections_are_numbered_as_darknet_does():
    parsed = parse_cfg("# a comment\n[net]\nwidth=1\n\n[conv]\nfilters=2\n[max]\nsize=2\n", "test.cfg")
    assert [(s.kind, s.index, s.line) for s in parsed] == [("net", -1, 2), ("convolutional", 0, 5), ("maxpool", 1, 7)]
    assert parsed[1].options["filters"].line == 6
    assert parsed[1].where("filters") == "test.cfg, line 6, section 0 [convolutional]"


@pytest.mark.parametrize(
    ("alias", "kind"),
    [
        ("conv", "convolutional"),
        ("max", "maxpool"),
        ("avg", "avgpool"),
        ("local_avg", "local_avgpool"),
        ("conn", "connected"),
        ("soft", "softmax"),
        ("silence", "empty"),
    ],
)
def test_section_aliases(alias, kind):
    assert one(f"[{alias}]\n").kind == kind


def test_network_is_an_alias_of_net():
    assert parse_cfg("[network]\nwidth=3\n", "x")[0].kind == "net"


def test_blanks_vanish_even_inside_a_line_and_windows_line_ends_too():
    section = one(" [ conv ] \r\n\t fil ters =  3 2 \r\n acti vation = le aky\r\n")
    assert integer(section, "filters", 1) == 32
    assert text(section, "activation", "") == "leaky"


def test_lines_that_begin_with_a_comment_sign_are_skipped():
    assert dict(one("[conv]\n# filters=1\n ; filters=2\n").options) == {}


def test_the_first_of_duplicate_keys_wins():
    section = one("[conv]\nfilters=3\nfilters=5\n")
    assert (integer(section, "filters", 1), section.options["filters"].line) == (3, 6)


@pytest.mark.parametrize(
    ("value", "number"), [("16", 16), ("16 # more", 16), ("-7x", -7), ("+3", 3), ("2.9", 2), ("007", 7), ("1e3", 1)]
)
def test_text_after_an_integer_is_ignored_as_atoi_does(value, number):
    assert integer(one(f"[conv]\nfilters={value}\n"), "filters", 1) == number


@pytest.mark.parametrize(("value", "number"), [(".5", 0.5), ("1.", 1.0), ("-1e-2,", -0.01), ("3px", 3.0)])
def test_text_after_a_number_is_ignored_as_atof_does(value, number):
    assert real(one(f"[upsample]\nscale={value}\n"), "scale", 1) == number


@pytest.mark.parametrize("value", ["abc", "-", "#3", "99999999999", "9" * 5000, "٣"])
def test_what_is_no_int_is_an_error_with_its_line(value):
    with pytest.raises(InputError, match=r"filters is (not an integer|out of range)") as caught:
        integer(one(f"[conv]\n\nfilters={value}\n"), "filters", 1)
    assert "line 7, section 0 [convolutional]" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "x"])
def test_what_is_no_finite_number_is_an_error(value):
    with pytest.raises(InputError, match="not a finite number"):
        real(one(f"[upsample]\nscale={value}\n"), "scale", 1)


def test_lists_tolerate_a_comment_and_a_trailing_comma():
    assert integers(one("[route]\nlayers = -1, 8 # one, two\n"), "layers") == (-1, 8)
    assert reals(one("[yolo]\nanchors = 1.5,2, 3,4,\n"), "anchors") == (1.5, 2.0, 3.0, 4.0)


def test_a_line_without_value_is_ignored_with_a_note():
    parsed = parse_cfg(NET + "[conv]\nfilters=\nnonsense\n", "x")
    assert dict(parsed[1].options) == {}
    assert [note[:7] for note in check(parsed)] == ["line 6:", "line 7:"]


def test_control_characters_never_reach_a_message():
    with pytest.raises(UnsupportedError) as caught:
        check(parse_cfg(NET + "[conv\x1b[31m]\n", "x"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "first section"),
        (b"[conv]\n", "first section"),
        (b"width=3\n[net]\n", "before the first section"),
        (b"[net]\n\0", "not a text file"),
        (b"[net]\n" + b"#" * MAX_CFG_BYTES, "too large"),
        (b"[net]\n" + b"[conv]\n" * MAX_SECTIONS, "too many sections"),
    ],
    ids=["empty", "no net", "option first", "binary", "huge", "sections"],
)
def test_what_is_no_cfg_is_refused(data, words, tmp_path):
    path = tmp_path / "x.cfg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        describe_darknet(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.cfg", tmp_path):
        with pytest.raises(InputError, match="not a file"):
            describe_darknet(path)


def test_comments_in_any_encoding_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "x.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + NET.encode() + "# größe\n".encode("latin-1") + CONV.encode() + HEAD.encode())
    assert len(describe_darknet(path).layers) == 3


def test_all_offenders_are_listed_with_section_and_line():
    cfg = NET + (
        "[convolutional]\nactivation=gleaky\nxnor=1\n[crop]\n[convolutional]\nantialiasing=1\nshare_index=0\n"
        "[shortcut]\nfrom=-1\nweights_type=per_pixel\nalpha=.5\n[net]\n[Gaussian_yolo]\nyolo_point=left_top\n"
        "nms_kind=cornersnms\n[softmax]\ntree=9k.tree\n[region]\ncoords=5\nmap=x\n[sam]\nactivation=mish\n"
    )
    with pytest.raises(UnsupportedError) as caught:
        check(parse_cfg(cfg, "bad.cfg"))
    message = str(caught.value)
    for row in (
        "line 6, section 0 [convolutional]: activation=gleaky",
        "line 7, section 0 [convolutional]: xnor=1",
        "line 8, section 1 [crop]",
        "line 10, section 2 [convolutional]: antialiasing=1",
        "line 11, section 2 [convolutional]: share_index=0",
        "line 14, section 3 [shortcut]: weights_type=per_pixel",
        "line 15, section 3 [shortcut]: alpha=.5",
        "line 16, section 4 [net]",
        "line 18, section 5 [Gaussian_yolo]: yolo_point=left_top",
        "line 19, section 5 [Gaussian_yolo]: nms_kind=cornersnms",
        "line 21, section 6 [softmax]: tree=9k.tree",
        "line 23, section 7 [region]: coords=5",
        "line 24, section 7 [region]: map=x",
        "line 26, section 8 [sam]: activation=mish",
    ):
        assert row in message
    assert message.count("\n    line ") == 14


@pytest.mark.parametrize(
    "kind", ["detection", "local", "rnn", "gru", "lstm", "crnn", "conv_lstm", "lrn", "implicit", "wat"]
)
def test_other_sections_are_refused(kind):
    with pytest.raises(UnsupportedError, match=rf"section 0 \[{kind}\]"):
        check(parse_cfg(NET + f"[{kind}]\n", "x"))


@pytest.mark.parametrize("key", ["dontload", "dontloadscales", "flipped", "binary", "bin_output", "sway", "coordconv"])
def test_a_key_that_changes_the_result_is_refused_unless_neutral(key):
    assert check(parse_cfg(NET + f"[conv]\n{key}=0\n", "x")) == ()
    with pytest.raises(UnsupportedError, match=f"{key}=1"):
        check(parse_cfg(NET + f"[conv]\n{key}=1\n", "x"))


def test_training_keys_are_silent_and_unknown_keys_are_noted():
    cfg = NET + "momentum=0.9\nmosaic=1\n[conv]\nstopbackward=1\nfliters=9\n[yolo]\niou_loss=ciou\njitter=.3\n"
    assert check(parse_cfg(cfg, "x")) == (
        "line 9, section 0 [convolutional]: the unknown key fliters=9 is ignored, as Darknet does",
    )


HUGE = {
    "filters": "[convolutional]\nfilters=2000000000\nsize=3\n",
    "kernel": "[convolutional]\nfilters=4\nsize=1000000\npad=1\n",
    "padding": "[convolutional]\nfilters=4\npadding=2000000\n",
    "upsample": "[upsample]\nstride=100000\n",
    "upsamples": "[upsample]\nstride=64\n" * 8,
    "connected": "[connected]\noutput=2000000000\n",
    "parameters": "[connected]\noutput=100000\n",
    "many parameters": "[convolutional]\nfilters=20000\nsize=3\nactivation=linear\nstride=64\n" * 3,
    "routes": CONV + "[route]\nlayers=" + ",".join(["0"] * 300) + "\n",
    "shortcuts": CONV + "[shortcut]\nfrom=" + ",".join(["0"] * 300) + "\n",
    "long lists": CONV + "[shortcut]\nfrom=" + "0," * 1000000 + "\n",
}


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE.keys())
def test_a_network_beyond_the_limits_is_refused_before_anything_is_allocated(body, tmp_path):
    with pytest.raises(InputError):
        describe_darknet(write(tmp_path, NET + body))


def test_activations_that_live_together_are_bounded():
    """Every layer fits by itself; a late route keeps all of them alive."""
    cfg = "[net]\nwidth=4096\nheight=4096\nchannels=1\n" + "[dropout]\n" * 40
    layers = plan_network(parse_cfg(cfg + "[route]\nlayers=0\n", "x"), (4096, 4096))
    assert check_live_values(layers, [40], "x") == 2 * 4096 * 4096
    kept = "[shortcut]\nfrom=" + ",".join(map(str, range(40))) + "\n"
    layers = plan_network(parse_cfg(cfg + kept, "x"), (4096, 4096))
    with pytest.raises(InputError, match="activations are too large"):
        check_live_values(layers, [40], "x")


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (20000, 8)])
def test_an_input_size_out_of_range_is_refused(size, tmp_path):
    cfg = f"[net]\nwidth={size[0]}\nheight={size[1]}\nchannels=3\n" + CONV + HEAD
    with pytest.raises(InputError, match=r"(width|height) is out of range"):
        describe_darknet(write(tmp_path, cfg))


def test_imgsz_changes_shapes_and_strides(tmp_path):
    path = write(tmp_path, NET + CONV * 3 + HEAD)
    described = describe_darknet(path, "96x32")
    assert described.layers[0].input == (3, 32, 96)
    assert described.layers[-1].output == (18, 4, 12)
    assert described.detector.heads[0].stride == (8.0, 8.0)
    assert (described.detector.preprocess.width, described.detector.preprocess.height) == (96, 32)
    assert describe_darknet(path, "40").layers[0].input == (3, 40, 40)


def test_strides_are_horizontal_and_vertical(tmp_path):
    body = CONV.replace("stride=2", "stride_x=4\nstride_y=2") + HEAD
    described = describe_darknet(write(tmp_path, NET + body))
    assert described.detector.heads[0].stride == (4.0, 2.0)
    assert described.layers[0].size == "3x3/4x2"
    with pytest.raises(InputError, match="4x2"):
        describe_darknet(write(tmp_path, NET + body), "62x62")


def test_an_imgsz_between_multiples_is_refused_with_the_nearest_legal_sizes(tmp_path):
    with pytest.raises(InputError, match="multiple of the largest stride, 8x8") as caught:
        describe_darknet(write(tmp_path, NET + CONV * 3 + HEAD), "100x60")
    assert caught.value.allowed == "96x56, 104x64"


def test_the_largest_stride_counts_below_a_pyramid(tmp_path):
    """The coarsest map has stride 8 although the head's is 4."""
    body = CONV * 3 + "[upsample]\nstride=2\n[route]\nlayers=-1,1\n" + HEAD
    with pytest.raises(InputError, match="8x8"):
        describe_darknet(write(tmp_path, NET + body), "68")
    assert describe_darknet(write(tmp_path, NET + body), "72").detector.heads[0].stride == (4.0, 4.0)


@pytest.mark.parametrize("imgsz", ["", "x", "416x", "0", "-32", "4 16", "32x32x32", "999999", "20000", "32X32", "３２"])
def test_what_is_no_size_is_refused(imgsz, tmp_path):
    with pytest.raises(InputError, match="input size"):
        describe_darknet(write(tmp_path, NET + CONV + HEAD), imgsz)


def test_an_own_size_that_is_no_multiple_loads_with_a_note(tmp_path):
    described = describe_darknet(write(tmp_path, NET.replace("64", "60") + CONV * 3 + HEAD))
    assert any("no multiple of the largest stride 8x8" in note for note in described.notes)
    assert described.detector.heads[0].stride == (7.5, 7.5)


def test_the_layer_table_counts_like_darknet(tmp_path):
    cfg = NET + CONV.replace("stride=2", "groups=1\nstride=2") + "[maxpool]\nsize=2\nstride=2\n" + HEAD
    layers = describe_darknet(write(tmp_path, cfg)).layers
    assert (layers[0].size, layers[0].filters, layers[0].params, layers[0].biases) == ("3x3/2", 8, 3 * 8 * 9 + 8, 8)
    assert layers[0].macs == 3 * 8 * 9 * 32 * 32
    assert (layers[1].size, layers[1].output) == ("2x2/2", (8, 16, 16))


def test_describe_and_load_agree(tmp_path):
    path = write(tmp_path, NET + CONV + "[dropout]\n[route]\nlayers=-1,0\n" + HEAD)
    described, loaded = describe_darknet(path), load_darknet(path)
    assert described.layers == loaded.layers
    assert described.detector == loaded.detector


def test_describe_works_without_torch(tmp_path):
    path = write(tmp_path, NET + CONV + HEAD)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from edgeyolo.frontend.darknet import describe_darknet\n"
        f"print(len(describe_darknet(Path({str(path)!r})).layers))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("*.cfg")), ids=lambda p: p.stem)
def test_hostile_files_are_refused_in_one_message(path):
    with pytest.raises(EdgeYoloError) as caught:
        load_darknet(path)
    assert len(str(caught.value)) < 5000
