"""The demo: what it is fed, the copy of its runtime, and its scores in a real browser, offline."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from anl.data.decode import decode
from anl.data.images import pad, to_tensor
from anl.data.processing import encode
from anl.detect import card as cards
from anl.detect import demo, onnx_file
from anl.detect.detector import ImageDetector
from anl.detect.onnx_file import INPUT, open_session
from anl.detect.tiles import grid
from anl.io import UserError, write_text
from anl.training import generators
from anl.training.benchmark import make_benchmark
from tests.conftest import ROOT, photograph
from tests.detect.conftest import tiny
from tests.training import tiny as profiles

STATIC = ROOT / "book" / "_static"
VENDOR = STATIC / demo.RUNTIME
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
         "--enable-logging=stderr", "--remote-debugging-port=0"]


@pytest.fixture(scope="module")
def benchmark():
    """Four test photographs with two patches each, untouched and by two generators."""
    rows = [{"image_id": f"{generator}/p{index}@{top}x0", "group": f"p{index}", "generator": generator, "split": "test",
             "sha256": hashlib.sha256(f"{generator}{index}{top}".encode()).hexdigest()}
            for generator in ("real", "ddim", "vae") for index in range(4) for top in (0, 9)]

    def pixels(part):
        return np.stack([photograph(int(row.sha256[:6], 16), 32, 32) for row in part.itertuples()])

    return types.SimpleNamespace(rows=pd.DataFrame(rows), pixels=pixels)


@pytest.fixture(scope="module")
def written(config, scores, benchmark, tmp_path_factory):
    """(the page's folder, detector): the page's own HTML and scripts with a tiny detector, which is no book."""
    folder = tmp_path_factory.mktemp("book")
    cards.write(tiny(), folder / "detector", config=config, scores=scores)
    detector = ImageDetector.load(folder / "detector")
    shutil.copytree(STATIC / "demo", folder / "_static" / "demo", ignore=shutil.ignore_patterns("model.js", "samples.js"))
    shutil.copytree(VENDOR, folder / "_static" / demo.RUNTIME)
    (folder / "photos.csv").write_text(
        "file,sha256,bytes,width,height,format,licence,author,source,package,path_in_package,group\n"
        + "".join(f"p{index}.png,0,1,1,1,PNG,CC0,me,,,,\n" for index in range(4)))
    runs = types.ModuleType("anl.training.runs")
    runs.open_benchmark = lambda config: benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "anl.training.runs", runs)
        patch.setattr(onnx_file, "INT8_FROM", 0)  # a tiny detector has no large layers
        demo.write_demo(folder / "_static" / "demo", config=config.override(data={"card": str(folder / "photos.csv")}),
                        detector=detector)
    return folder, detector


def value_of(path):
    return json.loads(re.fullmatch(r"\(window\.anlDemo \?\?= \{\}\)\.\w+ = (.*);\n", path.read_text(), re.DOTALL)[1])


def test_samples_follow_the_rule_and_the_numbers_are_the_cards(written, benchmark):
    folder, detector = written
    built = value_of(folder / "_static/demo/samples.js")
    patches, card = built["samples"], detector.card
    assert (built["card"]["threshold"], built["card"]["midpoint"], built["card"]["size"]) == (card.threshold, card.midpoint, 32)
    rows = benchmark.rows.set_index("image_id").loc[[patch["name"] for patch in patches]]
    assert rows["sha256"].is_monotonic_increasing and sorted(rows["group"]) == ["p0", "p1", "p2", "p3"]
    assert [generator for _, generator in sorted(zip(rows["group"], rows["generator"]))] == ["real", "ddim", "real", "vae"]
    for patch, pixels in zip(patches, benchmark.pixels(rows)):
        assert np.array_equal(decode(base64.b64decode(patch["png"])), pixels) and patch["credit"].endswith(".png, me, CC0")
        assert ("not trained on" in patch["of"]) == (patch["generator"] == "vae")
    used = set(re.findall(r'data-word="(\w+)"', (ROOT / "book/use.md").read_text()))
    assert used and used <= set(built["words"])


def test_a_detector_of_larger_crops_gets_samples_of_its_size(tmp_path):
    place = profiles.write_photographs(tmp_path, 20)
    config = profiles.embedded_profile(place)
    generators.make_generators(config)
    trained = types.SimpleNamespace(seen=["elsewhere", "vae"], held_out=[], unseen=["ddim"])
    chosen = demo.samples(types.SimpleNamespace(size=32, training=trained), config)
    assert sorted(patch["generator"] for patch in chosen) == ["ddim", "real", "real", "vae"]
    assert {decode(base64.b64decode(patch["png"])).shape for patch in chosen} == {(32, 32, 3)}
    assert [patch["of"] for patch in chosen if patch["generator"] == "vae"] == ["made by vae, trained on"]
    assert sorted(path.name for path in place.iterdir()) == ["models", "photos", "photos.csv"]  # its benchmark is gone
    make_benchmark(config)
    unknown = types.SimpleNamespace(seen=["elsewhere"], held_out=[], unseen=[])
    assert demo.samples(types.SimpleNamespace(size=32, training=unknown), config) == []


def test_a_script_cannot_be_ended_by_its_text_and_a_missing_runtime_is_named(config, written, tmp_path):
    demo.write_script(tmp_path / "x.js", "x", {"b": "</script>", "a": 1})
    assert "</script>" not in (tmp_path / "x.js").read_text() and value_of(tmp_path / "x.js") == {"a": 1, "b": "</script>"}
    with pytest.raises(UserError, match="ort.wasm.min.js is missing; get it again with `git checkout"):
        demo.write_demo(tmp_path / "demo", config=config, detector=written[1])


def test_the_runtime_is_the_one_that_its_readme_names():
    hashes = dict(re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})`", (VENDOR / "README.md").read_text(), re.MULTILINE))
    packed = json.loads((VENDOR / "ort-wasm.js").read_text().partition(" = ")[2].rstrip(";\n"))
    found = {"ort.wasm.min.js": (VENDOR / "ort.wasm.min.js").read_bytes(),
             **{f"ort-wasm-simd-threaded.{end}": gzip.decompress(base64.b64decode(packed[key]))
                for key, end in (("module", "mjs"), ("wasm", "wasm"))}}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == hashes
    assert "MIT License" in (VENDOR / "LICENSE").read_text()


# ---- in a browser ----------------------------------------------------------------------------------------------------
class _Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def answer_of(folder, script, tmp_path, timeout=200):
    """What `script`, an async function's body, returns on the page opened from its file, and chromium's console lines."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.answers = queue.Queue()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = re.search(r"```\{raw\} html\n(.*?)```", (ROOT / "book/use.md").read_text(), re.DOTALL)[1]
    send = f"fetch('http://127.0.0.1:{server.server_address[1]}/', {{ method: 'POST', mode: 'no-cors', body: JSON.stringify(answer) }})"
    run = (f"<script>window.addEventListener('load', async () => {{ const answer = await (async () => {{ {script} }})()"
           f".catch((problem) => String(problem.stack)); {send}; }});</script>")
    write_text(folder / "demo.html", f'<!doctype html><meta charset="utf-8"><title>Demo</title>{body}{run}')
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        browser = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", (folder / "demo.html").as_uri()],
                                   stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                                   env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": f"{tmp_path}/config"})
        try:
            answer = server.answers.get(timeout=timeout)
        except queue.Empty:
            log.seek(0)
            raise AssertionError(f"the page gave no answer: {log.read()[-3000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)  # its own session: helpers would write on into the folder
            browser.wait(30)
            server.shutdown()
            server.server_close()
        log.seek(0)
        return answer, [line for line in log.read().splitlines() if "CONSOLE" in line]


def png(pixels, **options):
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, **{"format": "PNG"} | options)
    return stream.getvalue()


def pictures():
    """{name: bytes} of lossless pictures that both sides must read alike."""
    wide, exif = photograph(4, 60, 90), Image.Exif()
    exif[0x0112] = 6
    return {"several crops": png(wide), "smaller than a crop": png(photograph(5, 9, 21)), "low": png(photograph(5, 9, 70)),
            "more than are looked at": png(photograph(6, 153, 270)), "grey": png(wide[..., 0]), "turned": png(wide, exif=exif),
            "a colour profile": png(wide, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
            "a palette": png(Image.fromarray(wide).quantize(64)), "BMP": png(wide, format="BMP"),
            "lossless WebP": png(wide, format="WEBP", lossless=True)}


def refused():
    """{name: (bytes, what the page says)}."""
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in (1, 2)]
    return {"letter.png": (b"no picture, but a letter", "not an image of a known format"), "empty.png": (b"", r"empty \(0 bytes\)"),
            "huge.png": (png(Image.new("1", (10000, 9000))), "too large: 10,000 × 9,000 pixels"),
            "cut.png": (encode(photograph(4))[:-40], "cut short"), "scan.tif": (png(frames[0], format="TIFF"), "browsers do not read"),
            "film.gif": (png(frames[0], format="GIF", save_all=True, append_images=frames[1:]), "animated")}


SCRIPT = """
  const part = (name) => document.querySelector(`#try [data-part="${name}"]`);
  const until = async (ready) => {
    for (let i = 0; i < 2000; i++) {
      if (ready()) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`never ready: ${ready}: ${part("status").textContent} ${part("refused").textContent}`);
  };
  const fileOf = (text, name) => new File([anlDemo.scoring.fromBase64(text)], name);
  const { picture, scoring, built } = anlDemo;
  const before = document.querySelectorAll("script[src*=ort], script[src*=model]").length;
  const button = document.querySelector(".try-samples button");
  button.click();
  await until(() => button.getAttribute("aria-pressed") === "true");
  const shown = { status: part("status").textContent, label: button.textContent, credit: part("credit").textContent,
    crops: part("crops").textContent, hidden: part("result").hidden };
  const canvas = part("evidence");
  const drawn = [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
  const said = {};
  for (const [name, text] of Object.entries(REFUSED)) {
    const data = new DataTransfer();
    data.items.add(fileOf(text, name));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    await until(() => part("refused").textContent.startsWith(name));
    said[name] = [part("refused").textContent, part("result").hidden];
  }
  const loaded = await scoring.load();
  const scores = {};
  for (const [name, text] of [...built.samples.map(({ name, png }) => [name, png]), ...Object.entries(PICTURES)]) {
    const bitmap = await picture.decode(fileOf(text, name), loaded.card.limits);
    const { logit, probability, verdict, crops } = await scoring.score(loaded, picture.tile(bitmap, loaded.card.size, loaded.card.most));
    scores[name] = { logit, probability, verdict, crops: crops.length, evidence: [...crops[0].evidence.data] };
  }
  return { before, shown, drawn, said, scores, places: SHAPES.map(([h, w]) => picture.places(h, w, 64, loaded.card.most)),
    mirrored: [1, 5, 31].map((length) => Array.from({ length: 32 }, (_, i) => picture.mirrored(i, length, 32))),
    words: [...document.querySelectorAll("[data-word]")].length,
    addresses: performance.getEntriesByType("resource").map((entry) => entry.name) };
"""


class AsOnThePage(ImageDetector):
    """The detector that model.js holds, whose weights are int8, run by onnxruntime."""

    def __init__(self, folder, card):
        onnx = folder / "page.onnx"
        onnx.write_bytes(base64.b64decode(value_of(folder / "_static/demo/model.js")))
        self.session, self.card = open_session(onnx), card

    def run(self, crops):
        return self.session.run(None, {INPUT: to_tensor(crops).numpy()})

    def logits(self, crops, batch_size=32):
        return self.run(crops)[0].astype(float)

    def evidence(self, crops, batch_size=32):
        return self.run(crops)[2]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")
def test_the_page_scores_as_python_does_and_nothing_leaves_the_machine(written, tmp_path):
    folder, detector = written
    shapes = [(h, w) for h in (64, 65, 100, 333) for w in (64, 150, 199, 2001, 9000)]
    made, bad = pictures(), refused()
    values = {"PICTURES": {name: base64.b64encode(data).decode() for name, data in made.items()}, "SHAPES": shapes,
              "REFUSED": {name: base64.b64encode(data).decode() for name, (data, _) in bad.items()}}
    script = f"const {{ PICTURES, SHAPES, REFUSED }} = {json.dumps(values)}; {SCRIPT}"
    answer, console = answer_of(folder, script, tmp_path)
    assert isinstance(answer, dict), answer
    built = value_of(folder / "_static/demo/samples.js")
    made |= {sample["name"]: base64.b64decode(sample["png"]) for sample in built["samples"]}
    assert set(answer["scores"]) == set(made)
    detector = AsOnThePage(folder, detector.card)
    for name, data in made.items():
        wanted, found = detector.score(decode(data)), answer["scores"][name]
        assert found["logit"] == pytest.approx(wanted.logit, abs=1e-3), name
        assert found["probability"] == pytest.approx(wanted.probability, abs=1e-3), name
        assert (found["verdict"], found["crops"]) == (wanted.verdict, wanted.crops), name
        evidence = detector.evidence(detector.tile(decode(data)).crops[:1])
        np.testing.assert_allclose(found["evidence"], evidence.ravel(), rtol=1e-2, atol=1e-2)
    assert answer["places"] == [[list(place) for place in grid(h, w, 64)] for h, w in shapes]
    for length, rows in zip((1, 5, 31), answer["mirrored"]):
        line = np.arange(length, dtype=np.uint8)[:, None, None].repeat(3, 2)
        assert rows == pad(line, 32)[:, 0, 0].tolist()
    for name, (_, reason) in bad.items():
        text, hidden = answer["said"][name]
        assert re.search(reason, text) and hidden, text
    shown, first = answer["shown"], built["samples"][0]
    assert answer["before"] == 0  # the megabytes come when they are needed
    assert "Probability that it is generated" in shown["status"] and f"In truth: {first['of']}." in shown["status"]
    assert shown["label"] == f"Sample 1: {first['generator']}" and first["credit"] in shown["credit"] and not shown["hidden"]
    assert shown["crops"] == "1 of 32 × 32 pixels, of 32 × 32" and len(set(answer["drawn"])) > 20
    assert all(address.startswith(("file:", "data:", "blob:")) for address in answer["addresses"]), answer["addresses"]
    assert not [line for line in console if "rror" in line or "net::" in line], console
