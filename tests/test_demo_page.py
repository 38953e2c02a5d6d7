"""The page "Try it" in Debian's chromium: the same scores as Python, from files, with the network cut."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from anl.detect import crops, scorer
from tests.conftest import ROOT, photograph
from tests.live_page import answer_of
from tests.test_browser import AXE, CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")

TOLERANCE = 1e-3  # of a logit
HELPERS = """
  const part = (name) => document.querySelector(`#try [data-part="${name}"]`);
  const until = async (ready) => {
    for (let i = 0; i < 1000; i++) {
      if (ready()) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`never ready: ${ready}: ${part("status").textContent} ${part("refused").textContent}`);
  };
  const fileOf = (text, name) => new File([anlDemo.scoring.fromBase64(text)], name);
  const drop = (files) => {
    const data = new DataTransfer();
    files.forEach((file) => data.items.add(file));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
  };
  const choose = (file) => {
    const data = new DataTransfer();
    data.items.add(file);
    part("file").files = data.files;
    part("file").dispatchEvent(new Event("change"));
  };
"""


@pytest.fixture(scope="module")
def in_use():
    return scorer.load_detector(ROOT / "models/detector")


def png(pixels, **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, format=options.pop("format", "PNG"), **options)
    return stream.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


def pictures():
    """{name: bytes} of lossless pictures that both sides must see alike."""
    wide = photograph(4, 100, 150)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"several crops": png(wide), "smaller than a crop": png(photograph(5, 37, 50)),
            "more crops than are looked at": png(photograph(6, 333, 470)),
            "a colour profile": png(wide, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
            "a gamma": _with_gamma(png(wide)), "grey": png(wide[..., 0]), "a palette": png(Image.fromarray(wide).quantize(64)),
            "turned": png(wide, exif=exif), "BMP": png(wide, format="BMP"),
            "lossless WebP": png(wide, format="WEBP", lossless=True)}


def _with_gamma(data):
    """A PNG with a gAMA chunk of 1.0, which Python's readers ignore."""
    import zlib

    body = b"gAMA" + (100000).to_bytes(4, "big")
    return data[:33] + (4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + data[33:]


def test_scores_are_those_of_python(built_book, in_use):
    made = pictures()
    answer, console = answer_of(built_book / "demo.html", HELPERS + f"""
      const made = {json.dumps({name: b64(data) for name, data in made.items()})};
      const loaded = await anlDemo.scoring.load();
      const scores = {{}};
      for (const [name, text] of [...anlDemo.samples.map(({{ name, png }}) => [name, png]), ...Object.entries(made)]) {{
        const begun = performance.now();
        const bitmap = await anlDemo.picture.decode(fileOf(text, name), loaded.card.limits);
        const crops = anlDemo.picture.tile(bitmap, loaded.card.size, loaded.card.most);
        const {{ logit, probability, verdict, crops: {{ length }} }} = await anlDemo.scoring.score(loaded, crops);
        scores[name] = {{ logit, probability, verdict, crops: length, width: bitmap.width, height: bitmap.height,
          seconds: (performance.now() - begun) / 1000 }};
      }}
      const rules = Object.fromEntries(Object.entries(anlDemo.scoring.RULES).map(([name, rule]) =>
        [name, [[3, 1, 2], [4, 1, 3, 2], [5], [9, 1, 8, 2, 7, 3, 6, 4]].map((values) => rule(values))]));
      return {{ scores, rules, samples: anlDemo.samples }};
    """)
    scores = answer["scores"]
    made |= {sample["name"]: base64.b64decode(sample["png"]) for sample in answer["samples"]}
    assert len(scores) == len(made) >= 20
    for name, data in made.items():
        wanted, found = in_use.score(_decoded(data)), scores[name]
        assert found["logit"] == pytest.approx(wanted.logit, abs=TOLERANCE), name
        assert found["probability"] == pytest.approx(wanted.probability, abs=TOLERANCE), name
        assert (found["verdict"], found["crops"], found["width"], found["height"]) == (
            wanted.verdict, wanted.crops, wanted.width, wanted.height), name
    assert scores["several crops"]["crops"] == 6 and scores["smaller than a crop"]["crops"] == 1
    patches = [scores[sample["name"]]["seconds"] for sample in answer["samples"]]
    assert np.median(patches) < 1, patches
    for name, rule in crops.RULES.items():
        expected = [float(rule(np.array(values, float))) for values in ([3, 1, 2], [4, 1, 3, 2], [5], [9, 1, 8, 2, 7, 3, 6, 4])]
        assert answer["rules"][name] == pytest.approx(expected)
    assert not [line for line in console if "rror" in line], console


def _decoded(data):
    from anl.data.decode import decode

    return decode(data)


def test_crops_lie_where_python_cuts_them(built_book):
    shapes = [(h, w) for h in (1, 37, 64, 65, 69, 100, 129, 333, 1000) for w in (5, 64, 67, 150, 199, 470, 2001, 9000)]
    answer, _ = answer_of(built_book / "demo.html", f"""
      return {json.dumps(shapes)}.map(([height, width]) => anlDemo.picture.places(height, width, 64, {crops.MOST}));
    """)
    for (height, width), found in zip(shapes, answer, strict=True):
        assert crops.tile(np.zeros((height, width, 3), np.uint8), 64)[1].tolist() == found, (height, width)


SHOWN = HELPERS + """
  const loads = () => performance.getEntriesByType("resource").map((entry) => entry.name);
  const scripts = () => [...document.scripts].map((script) => script.src).filter((name) => /ort|model\\.js/.test(name)).length;
  const before = scripts();
  const button = document.querySelectorAll(".try-samples button")[0];
  button.focus();
  const focused = document.activeElement === button;
  button.click();
  await until(() => button.getAttribute("aria-pressed") === "true");
  const text = (name) => part(name).textContent;
  const sample = { said: text("status"), verdict: text("verdict"), probability: text("probability"), threshold: text("threshold"),
    time: text("time"), credit: text("credit"), scale: part("scale").getAttribute("aria-label"), label: button.textContent };
  choose(new File([anlDemo.scoring.fromBase64(WIDE)], "wide.png"));
  await until(() => text("status").startsWith("wide.png: "));
  const drawn = ["picture", "noise", "attention"].map((name) => {
    const { width, height } = part(name);
    const data = [...part(name).getContext("2d").getImageData(0, 0, width, height).data];
    return { width, height, colours: new Set(data).size, label: part(name).getAttribute("aria-label") };
  });
  return { before, focused, sample, drawn, after: loads(), scripts: scripts(), crops: text("crops"), credit: part("credit").hidden };
"""


@pytest.mark.parametrize("from_server", [False, True])
def test_a_sample_and_a_chosen_file_are_shown_and_nothing_leaves_the_machine(built_book, in_use, from_server):
    wide = png(photograph(4, 100, 150))
    answer, console = answer_of(built_book / "demo.html", SHOWN.replace("WIDE", f'"{b64(wide)}"'), from_server=from_server)
    sample = answer["sample"]
    assert (answer["before"], answer["scripts"]) == (0, 3)  # the megabytes come when asked for
    assert answer["focused"] and f": {sample['verdict']}. Probability" in sample["said"] and "In truth: " in sample["said"]
    assert sample["credit"].startswith("Photograph: ") and sample["label"].startswith("Sample 1: ")
    assert sample["threshold"] == f"{100 * in_use.card.probability(in_use.card.threshold):.1f} %"
    assert sample["probability"] in sample["scale"] and float(sample["time"].split()[0]) < 1
    assert answer["crops"] == "6 of 64 \u00d7 64 pixels, of 150 \u00d7 100" and answer["credit"]
    for drawing in answer["drawn"]:
        assert (drawing["width"], drawing["height"]) == (150, 100) and drawing["colours"] > 20 and len(drawing["label"]) > 30
    start = "http://127.0.0.1:" if from_server else "file:///"
    assert not from_server or any("ort-wasm" in name for name in answer["after"])
    assert all(name.startswith((start, "data:", "blob:")) for name in answer["after"]), answer["after"]
    bad = [line for line in console if ("rror" in line or "net::" in line or "Failed" in line) and "favicon" not in line]
    assert not bad, bad


def test_bad_input_is_refused_with_its_reason_and_nothing_else_is_shown(built_book):
    good = png(photograph(4, 100, 150))
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in (1, 2)]
    bad = {"holiday.png": (b"no picture, but a letter", "not an image of a known format"), "empty.png": (b"", r"empty \(0 bytes\)"),
           "huge.png": (png(Image.new("1", (10000, 9000))), "too large: 10,000 × 9,000 pixels, over the limit of"),
           "cut.png": (good[:-40], "cut short"), "torn.jpg": (b"\xff\xd8\xff\xe0" + good + b"\xff\xd9", "damaged"),
           "film.gif": (png(frames[0], format="GIF", save_all=True, append_images=frames[1:]), "animated"),
           "film.webp": (png(frames[0], format="WEBP", save_all=True, append_images=frames[1:]), "animated"),
           "scan.tif": (png(frames[0], format="TIFF"), "TIFF file, which browsers do not read")}
    answer, console = answer_of(built_book / "demo.html", HELPERS + f"""
      const bad = {json.dumps({name: b64(data) for name, (data, _) in bad.items()})};
      const said = {{}};
      for (const [name, text] of Object.entries(bad)) {{
        drop([fileOf(text, name)]);
        await until(() => part("refused").textContent.startsWith(name));
        said[name] = [part("refused").textContent, part("result").hidden, part("status").textContent];
      }}
      drop([fileOf(bad["cut.png"], "a.png"), fileOf(bad["cut.png"], "b.png")]);
      const two = part("refused").textContent;
      const large = await anlDemo.picture.decode(new File([new Uint8Array(11)], "x"), {{ bytes: 10, pixels: 10 }}).catch(String);
      return {{ said, two, large, role: part("refused").getAttribute("role") }};
    """)
    for name, (_, reason) in bad.items():
        text, hidden, status = answer["said"][name]
        assert re.search(reason, text) and "Nothing was scored" in text and hidden and status == "", text
    assert answer["two"] == "2 files were given; give one at a time." and answer["role"] == "alert"
    assert "too large: 11 bytes, over the limit of 10" in answer["large"]
    assert not [line for line in console if "rror" in line], console


def test_no_barrier_in_either_theme_before_and_after_a_score(built_book):
    found, _ = answer_of(built_book / "demo.html", HELPERS + """
      document.head.append(Object.assign(document.createElement("style"), { textContent: "* { transition: none !important; }" }));
      await new Promise((done) => document.head.append(Object.assign(document.createElement("script"), { src: "AXE", onload: done })));
      const found = [];
      const check = async (when) => {
        for (const theme of ["light", "dark"]) {
          document.documentElement.dataset.theme = theme;
          const { violations } = await axe.run("main", { resultTypes: ["violations"] });
          for (const item of violations.filter((item) => ["serious", "critical"].includes(item.impact)))
            found.push(...item.nodes.map((node) => `${when}, ${theme}: ${item.id}: ${node.html.slice(0, 150)} ${node.any[0]?.message ?? ""}`));
        }
      };
      await check("before");
      document.querySelector(".try-samples button").click();
      await until(() => document.querySelector('[aria-pressed="true"]'));
      await check("after");
      drop([new File(["text"], "x.png")]);
      await until(() => part("refused").textContent);
      await check("refused");
      return found;
    """.replace("AXE", AXE.as_uri()))
    assert found == [], "\n".join(map(str, found))[:3000]


def test_without_scripts_a_sentence_says_what_would_be_here(built_book):
    text = (built_book / "demo.html").read_text(encoding="utf-8")
    assert any("That needs scripts" in part for part in re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL))
    assert '<div id="try" hidden>' in text


def test_other_pages_do_not_load_the_demo(built_book):
    for name in ("index.html", "use.html", "generated/notebooks/step_t.html"):
        text = (built_book / name).read_text(encoding="utf-8")
        assert "onnxruntime" not in text.split("<article")[0] and "_static/demo" not in text, name
    assert sum(path.stat().st_size for path in [*(built_book / "_static/demo").iterdir(), built_book / "files/demo/samples.js",
                                                built_book / "demo.html"]) < 1e6
