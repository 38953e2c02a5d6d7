"""What strangers' folders and strangers' models may hold, through the whole of `anl detect`."""

import csv
import io
import json
import os
import shutil
import sys
import zipfile
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from anl import cli
from anl.detect import export, scorer
from anl.detect.inputs import find
from anl.errors import UserError


def jpeg(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def detect(capsys, folder, *arguments):
    """(exit status, standard output, standard error) of `anl detect`."""
    status = cli.main(["detect", "--model", str(folder), *map(str, arguments)])
    return (status, *capsys.readouterr())


def test_names_that_are_not_utf8_or_steer_a_terminal(folder, picture, tmp_path, capsys):
    place = tmp_path / "pictures"
    place.mkdir()
    names = [b"caf\xe9.jpg", b"\x1b[31mred.jpg", "\u202egpj.exe.jpg".encode(), b"two\nlines.jpg"]
    for name in names:
        with open(os.fsencode(place) + b"/" + name, "wb") as file:
            file.write(jpeg(picture))
    status, out, _ = detect(capsys, folder, place, "--json", "--map", tmp_path / "maps")
    assert status == 0 and sorted(os.fsencode(os.path.basename(json.loads(line)["path"])) for line in out.splitlines()) == sorted(names)
    assert len(list((tmp_path / "maps").iterdir())) == 4
    status, out, _ = detect(capsys, folder, place, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and len(rows) == 4 and any(row["path"].endswith("caf\\udce9.jpg") for row in rows)
    status, out, _ = detect(capsys, folder, place)
    assert status == 0 and len(out.splitlines()) == 5 and out.isprintable() is False and "\x1b" not in out and "\u202e" not in out


def test_a_picture_with_something_else_behind_it_is_the_picture(folder, picture, tmp_path, capsys):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("run.py", "print('run')")
    whole, behind = jpeg(picture), (stream.getvalue(), b"<script>alert(1)</script>", b"%PDF-1.7\n")
    for number, tail in enumerate((b"", *behind)):
        (tmp_path / f"{number}.jpg").write_bytes(whole + tail)
    status, out, _ = detect(capsys, folder, tmp_path, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(found) == 4 and len({line["logit"] for line in found}) == 1


@pytest.mark.parametrize("data", [b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
                                  b"<!doctype html><img src=x onerror=alert(1)>", b"#!/bin/sh\n", b"GIF89a/*", b"\x80\x04K\x01."])
def test_what_only_calls_itself_a_picture_has_its_reason(folder, tmp_path, capsys, data):
    (tmp_path / "holiday.jpg").write_bytes(data)
    status, out, said = detect(capsys, folder, tmp_path, "--json")
    line = json.loads(out)
    assert status == 1 and line["verdict"] is None and line["error"] and "1 could not be read" in said


def test_a_hundred_thousand_pixels_a_side_are_refused_by_the_header(folder, tmp_path, capsys):
    head = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0")
    head += zlib.crc32(head[12:]).to_bytes(4) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"
    (tmp_path / "large.png").write_bytes(head)
    Image.new("1", (100_000, 3)).save(tmp_path / "long.png")  # 100,000 along one side alone is a picture
    status, out, _ = detect(capsys, folder, tmp_path, "--json")
    large, long = (json.loads(line) for line in out.splitlines())
    assert status == 1 and "over the limit" in large["error"] and long["error"] is None and long["width"] == 100_000


def test_folders_deeper_than_a_path_may_be_long_are_reported(tmp_path):
    top, made = os.getcwd(), 0
    (tmp_path / "top").mkdir()
    (tmp_path / "top/a.png").write_bytes(b"x")
    try:
        os.chdir(tmp_path / "top")
        for made in range(1, 41):  # 41 names of 120 bytes are over the system's 4096
            os.mkdir("d" * 120)
            os.chdir("d" * 120)
        with open("b.png", "wb") as file:
            file.write(b"x")
    finally:
        os.chdir(top)
    found = list(find([str(tmp_path / "top")]))
    assert made == 40 and found[0] == (str(tmp_path / "top/a.png"), None)
    assert any("too long" in reason for _, reason in found if reason) and not any(path.endswith("b.png") for path, _ in found)


def test_code_beside_a_model_is_never_run(folder, picture, tmp_path, capsys):
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    trap = f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n"
    for name in ("__init__.py", "modeling.py", "conftest.py", "sitecustomize.py", "card.py", "torch.py"):
        (place / name).write_text(trap)
    (place / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    (place / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    before = list(sys.path)
    assert scorer.load_detector(place).score(picture).crops > 0
    assert not (tmp_path / "ran").exists() and sys.path == before


def constant(location):
    """A model whose only weight is a constant of its graph, kept in the file `location`."""
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], name="kept", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return helper.make_node("Constant", [], ["y"], value=tensor)


def graph(nodes, name="g"):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])


@pytest.mark.parametrize("location", ["weights", "../../../../etc/passwd", "/etc/passwd"])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_outside_an_onnx_file_are_refused_wherever_they_stand(tmp_path, location, nested):
    nodes = [constant(location)]
    if nested:
        true = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        nodes = [true, helper.make_node("If", ["c"], ["y"], then_branch=graph(nodes, "a"), else_branch=graph(nodes, "b"))]
    model = helper.make_model(graph(nodes), opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights").write_bytes(np.ones(1, np.float32).tobytes())
    with pytest.raises(UserError, match="keeps the weights .* in another file"):
        export.open_session(tmp_path / "x.onnx")
    assert onnx.load(tmp_path / "x.onnx", load_external_data=False)
