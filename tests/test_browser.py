"""The built pages in Debian's chromium: from files, with the network cut."""

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=20000",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")


AXE = Path(__file__).parent / "vendor/axe.min.js"  # axe-core, MPL 2.0


def chromium(page, folder, *flags, query=""):
    # its crash reports would go into the user's ~/.config in spite of --user-data-dir
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={folder}/profile", "--enable-logging=stderr", *flags,
                           page.as_uri() + query], capture_output=True, text=True, timeout=180, check=False,
                          env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/config"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_mathematics_is_rendered_without_network(built_book, tmp_path):
    done = chromium(built_book / "method.html", tmp_path, "--dump-dom")
    assert done.stdout.count("<mjx-container") > 30
    assert "<mjx-merror" not in done.stdout and "\\operatorname" not in done.stdout.split("<article")[1].split(
        "<mjx-assistive-mml")[0]


@pytest.mark.parametrize("page", ["index.html", "method.html", "claims.html", "data_card.html", "gallery.html", "demo.html",
                                  "generated/notebooks/step_t.html"])
def test_no_console_error_and_no_request(built_book, tmp_path, page):
    done = chromium(built_book / page, tmp_path, "--dump-dom")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if "rror" in line or "net::" in line or "Failed" in line], console


@contextlib.contextmanager
def altered(page, theme="light", script=""):
    """A copy of a page beside it, in one theme, that runs `script` (an async function's body) and keeps what it returns."""
    text = page.read_text(encoding="utf-8")
    stored = "".join(f'localStorage.setItem("{key}", "{theme}");' for key in ("mode", "theme"))
    text = text.replace("<head>", f"<head><script>{stored}</script>", 1)
    run = f"""<script>window.addEventListener("load", async () => {{
      const answer = await (async () => {{ {script} }})().catch((problem) => String(problem.stack));
      document.body.append(Object.assign(document.createElement("pre"), {{ id: "answer", textContent: JSON.stringify(answer) }}));
    }});</script>"""
    copy = page.with_name(f"altered-{page.name}")
    copy.write_text(text.replace("</body>", f"{run if script else ''}</body>"), encoding="utf-8")
    try:
        yield copy
    finally:
        copy.unlink()


def answer_of(page, folder, script, *flags):
    with altered(page, script=script) as copy:
        done = chromium(copy, folder, "--dump-dom", *flags)
    return json.loads(html.unescape(re.search(r'<pre id="answer"[^>]*>(.*?)</pre>', done.stdout, re.DOTALL)[1]))


@pytest.mark.parametrize("page, width, theme", [
    ("index.html", 390, "light"), ("index.html", 1280, "dark"), ("claims.html", 390, "dark"), ("claims.html", 1280, "light"),
    ("cross_generator.html", 390, "dark"), ("cross_generator.html", 1280, "light"), ("peers.html", 390, "light"),
    ("step_t.html", 1280, "dark"), ("gallery.html", 390, "dark"), ("gallery.html", 1280, "light"),
    ("demo.html", 390, "dark"), ("demo.html", 1280, "light")])
def test_screenshot_is_not_blank(built_book, tmp_path, page, width, theme):
    shot = tmp_path / "page.png"
    with altered(built_book / page, theme) as copy:
        chromium(copy, tmp_path, f"--window-size={width},1200", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.shape == (1200, width)
    assert (np.median(pixels) > 128) == (theme == "light")
    assert pixels.std() > 10 and (abs(pixels - np.median(pixels)) > 60).mean() > 0.01
    bands = pixels.reshape(12, 100, width).std((1, 2))
    assert (bands > 5).sum() >= 8, "most of the page is empty"


def test_tables_sort_and_filter(built_book, tmp_path):
    answer = answer_of(built_book / "data_card.html", tmp_path, """
        const cells = (block, column) => [...block.querySelector("tbody").rows].filter((row) => !row.hidden)
          .map((row) => row.cells[column].textContent.trim());
        const [licences, photos] = [...document.querySelectorAll(".results-block")];
        const button = licences.querySelectorAll("th button")[4];
        button.click();
        const rising = cells(licences, 4);
        button.click();
        const box = photos.querySelector("input");
        box.value = "cc0 VAL";
        box.dispatchEvent(new Event("input"));
        return { rising, falling: cells(licences, 4), sort: button.parentNode.getAttribute("aria-sort"),
                 kept: cells(photos, 1), said: photos.querySelector("output").textContent };
    """)
    counts = [int(text) for text in answer["rising"]]
    assert counts[:-1] == sorted(counts[:-1]) and counts[-1] == sum(counts[:-1])  # the sum stays last
    assert [int(text) for text in answer["falling"]] == [*sorted(counts[:-1], reverse=True), counts[-1]]
    assert answer["sort"] == "descending"
    assert answer["kept"] and all("CC0" in text for text in answer["kept"])
    assert answer["said"].startswith(f"{len(answer['kept'])} of ")


def test_sorting_reads_the_first_number_of_an_interval(built_book, tmp_path):
    answer = answer_of(built_book / "step_t.html", tmp_path, """
        const table = document.querySelector(".results-block table");
        ["\u22120.144 [0.1, 0.2]", "1,000", "\u2013", "0.02 [0.01, 0.03]"].forEach((text, line) => {
          table.tBodies[0].rows[line].cells[1].textContent = text; });
        while (table.tBodies[0].rows.length > 4) table.tBodies[0].deleteRow(4);
        table.querySelectorAll("th button")[1].click();
        const cells = [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
        const figure = document.querySelector("figure.drawn");
        const select = figure.querySelector("select");
        const before = figure.querySelector("svg").getAttribute("aria-label");
        select.value = "jpeg96";
        select.dispatchEvent(new Event("change"));
        const point = figure.querySelector("circle").closest("g");
        point.focus();
        return { cells, before, after: figure.querySelector("svg").getAttribute("aria-label"),
                 said: figure.querySelector("output").textContent, points: figure.querySelectorAll("circle").length,
                 image: getComputedStyle(figure.querySelector("img")).display };
    """)
    assert answer["cells"] == ["\u22120.144 [0.1, 0.2]", "0.02 [0.01, 0.03]", "1,000", "\u2013"]
    assert "matched" in answer["before"] and "jpeg96" in answer["after"]
    assert answer["said"] == "t = 1: 0.800 [0.700, 0.900], 3 seeds, n = 800"
    assert answer["points"] == 3 and answer["image"] == "none"


def at_width(width):
    """Script that lays the page out as wide as that; the window itself is never narrower than 500."""
    narrow = f'document.body.style.width = "{width}px";' if width < 500 else ""
    return f"{narrow} await new Promise((done) => setTimeout(done, 500));"


@pytest.mark.parametrize("width", [390, 1280])
def test_forest_is_drawn_for_the_width_of_the_page(built_book, tmp_path, width):
    answer = answer_of(built_book / "targets.html", tmp_path, at_width(width) + """
        const figure = document.querySelector("figure.forest");
        const select = figure.querySelector("select");
        select.value = "jpeg96";
        select.dispatchEvent(new Event("change"));
        const points = [...figure.querySelectorAll("g.point")];
        const gain = points.find((point) => point.getAttribute("aria-label").startsWith("highpass, unseen, minus plain, paired"));
        gain.focus();
        const box = figure.querySelector("svg").getBoundingClientRect();
        const places = [...figure.querySelectorAll("circle")].map((circle) => circle.getBoundingClientRect());
        return { points: points.length, said: figure.querySelector("output").textContent, wide: box.width, tall: box.height,
                 inside: places.every((place) => place.left >= box.left && place.right <= box.right && place.bottom <= box.bottom),
                 label: figure.querySelector("svg").getAttribute("aria-label"), image: figure.querySelector("img").checkVisibility(),
                 texts: [...figure.querySelectorAll("svg text")].map((text) => text.textContent) };
    """, f"--window-size={width},900")
    assert answer["points"] == 3 * 2 + 2 * 2 and answer["inside"] and not answer["image"] and "jpeg96" in answer["label"]
    assert answer["said"] == "highpass, unseen, minus plain, paired: \u22120.020 [\u22120.050, 0.010], 3 seeds, n = 800"
    assert answer["texts"].count("highpass") == (2 if width == 390 else 1)  # one panel below the other, or beside it
    assert answer["wide"] < width and (answer["tall"] > 250) == (width == 390)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["claims.html", "peers.html", "data_card.html", "robustness.html"])
def test_nothing_reaches_beyond_the_page(built_book, tmp_path, page, width):
    answer = answer_of(built_book / page, tmp_path, at_width(width) + """
        const edge = document.body.getBoundingClientRect().right + 1;
        const scrolls = (part) => part.closest(".results-table, .figure-image, pre, mjx-container, svg");
        const wide = [...document.querySelectorAll("article *")].filter((part) => !scrolls(part) && part.checkVisibility()
          && part.getBoundingClientRect().right > edge).map((part) => part.outerHTML.slice(0, 120));
        const boxes = [...document.querySelectorAll(".results-table")].map((box) =>
          [box.scrollWidth > box.clientWidth + 2, !box.parentNode.querySelector(".more-columns").hidden]);
        return { page: document.documentElement.scrollWidth - innerWidth, wide, boxes,
                 unreachable: [...document.querySelectorAll(".results-table, .figure-image")].filter((box) =>
                   box.scrollWidth > box.clientWidth + 2 && box.tabIndex !== 0).length };
    """, f"--window-size={width},900")
    assert answer["page"] <= 0 and not answer["wide"] and answer["unreachable"] == 0
    assert answer["boxes"] and all(scrolls == told for scrolls, told in answer["boxes"])


def test_every_table_can_be_had_as_csv(built_book, tmp_path):
    links = answer_of(built_book / "sources.html", tmp_path, """
        return [...document.querySelectorAll(".results-block")].map((block) => block.querySelector("a.csv").href);
    """)
    text = unquote(links[0].partition(",")[2])
    assert len(links) == 3 and all(link.startswith("data:text/csv") for link in links)
    assert text.splitlines()[0].startswith('"Id","Data set"') and '"cifake"' in text


def test_icons_come_from_the_font(built_book, tmp_path):
    answer = answer_of(built_book / "index.html", tmp_path, """
        const icons = [...document.querySelectorAll("i.fa-solid, i.fas, span.fa-solid")];
        return [icons.length, icons.filter((icon) => !/^"."$/u.test(getComputedStyle(icon, "::before").content)).map((icon) => icon.className)];
    """)
    assert answer[0] > 3 and answer[1] == []


def test_loss_curves_are_drawn_from_their_numbers(built_book, tmp_path):
    answer = answer_of(built_book / "detector.html", tmp_path, """
        const figure = document.querySelector("figure.drawn");
        const select = figure.querySelector("select");
        select.value = "val_AP";
        select.dispatchEvent(new Event("change"));
        [...figure.querySelectorAll("g.point")].find((group) => group.getAttribute("aria-label").startsWith("anl")).focus();
        return { count: figure.querySelectorAll("circle").length, said: figure.querySelector("output").textContent,
                 lines: figure.querySelectorAll("polyline").length, text: figure.querySelector("svg").textContent };
    """)
    assert answer["count"] == 6 and answer["lines"] == 2 and "validation AP" in answer["text"]
    assert answer["said"] == "anl, step 10: 0.100"


GALLERY = """
    const figure = document.querySelector("figure.gallery");
    // tasks, not timers: virtual time must not run out while pictures are being decoded
    const until = async (ready) => { while (!ready()) await new Promise((done) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = done;
      port2.postMessage(0); }); };
    const said = (text) => until(() => figure.querySelector("output").textContent.includes(text));
    await until(() => figure.classList.contains("drawn"));
    const state = () => ({ said: figure.querySelector("output").textContent,
      names: [...figure.querySelectorAll("canvas")].filter((canvas) => canvas.checkVisibility()).map((canvas) => canvas.getAttribute("aria-label")),
      labels: [...figure.querySelectorAll(".gallery-line > p")].map((label) => label.textContent),
      pixels: Object.fromEntries([...[...figure.querySelectorAll(".gallery-line.generated")].at(-1).querySelectorAll("canvas")]
        .map((canvas) => [canvas.getAttribute("aria-label").split(",")[0],
          [...canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data].filter((_, index) => index % 4 < 3)])) });
"""


def test_gallery_shows_the_pictures_of_the_chosen_generator_and_step(built_book, tmp_path):
    first, other, flipped, image = answer_of(built_book / "gallery.html", tmp_path, GALLERY + """
        const first = state();
        const select = figure.querySelector("select");
        select.value = "vae";
        select.dispatchEvent(new Event("change"));
        figure.querySelector("input[name$=step][value='10']").click();
        await said("vae (unseen), t = 10");
        const other = state();
        const press = () => figure.querySelector("button").dispatchEvent(new KeyboardEvent("keydown", { key: "f", bubbles: true }));
        press();
        await said("showing regeneration");
        press();
        await said("showing photograph");
        return [first, other, state(), getComputedStyle(figure.querySelector("img")).display];
    """, "--allow-file-access-from-files")  # lets the test, not the page, read the canvas back
    assert "ddim (trained on), t = 1, showing both" in first["said"] and image == "none"
    assert "vae (unseen), t = 10, showing both" in other["said"]
    assert "showing photograph" in flipped["said"]
    assert "photograph: score" in first["labels"][0] and "ddim: score" in first["labels"][1] and "vae: score" in other["labels"][1]
    assert len(first["names"]) == 2 * 9 and len(flipped["names"]) == 2 * 4
    assert all("photograph" in name for name in flipped["names"])
    sheets = built_book / "files/gallery/sheets"
    for state, column, step in ((first, 1, 1), (other, 2, 10)):
        for title, name, side in (("image", "images", 64), ("difference", "differences", 64), ("prior\u2019s noise", f"noise-t{step}", 64),
                                  ("predicted noise", f"predicted-t{step}", 64), ("attention", f"attention-t{step}", 8)):
            tile = np.asarray(Image.open(sheets / f"{name}.png"))[side, column * side:(column + 1) * side]
            assert state["pixels"][title] == tile.ravel().tolist(), (title, step)


def test_gallery_works_from_a_file_by_keyboard_and_leads_to_the_data_card(built_book, tmp_path):
    answer = answer_of(built_book / "gallery.html", tmp_path, GALLERY + """
        const controls = [...figure.querySelectorAll("select, input, button, .gallery-patch a")];
        const reached = controls.filter((control) => { control.focus(); return document.activeElement === control; });
        const patch = figure.querySelector(".gallery-patch");
        const before = patch.querySelector("canvas").clientWidth;
        patch.querySelector("button").click();
        const pressed = patch.querySelector("button").getAttribute("aria-pressed");
        return { controls: controls.length, reached: reached.length, before, after: patch.querySelector("canvas").clientWidth, pressed,
                 unnamed: controls.filter((control) => !(control.labels?.length || control.textContent.trim())).length,
                 said: figure.querySelector("output").getAttribute("aria-live"),
                 links: [...figure.querySelectorAll(".gallery-patch a")].map((link) => link.getAttribute("href")) };
    """)
    assert answer["reached"] == answer["controls"] >= 10 and answer["unnamed"] == 0 and answer["said"] == "polite"
    assert answer["pressed"] == "true" and answer["after"] > 2 * answer["before"] > 0
    card = (built_book / "data_card.html").read_text(encoding="utf-8")
    assert len(answer["links"]) == 2
    for link in answer["links"]:
        assert link.startswith("data_card.html#") and f'id="{link.partition("#")[2]}"' in card


def test_search_finds_a_term(built_book, tmp_path):
    done = chromium(built_book / "search.html", tmp_path, "--dump-dom", query="?q=bootstrap")
    assert re.search(r'<ul class="search[^"]*">.*?href="protocol.html', done.stdout, re.DOTALL)


@pytest.mark.parametrize("page", ["index.html", "claims.html", "step_t.html", "data_card.html", "detector.html", "families.html", "gallery.html"])
def test_no_serious_barrier_in_either_theme(built_book, tmp_path, page):
    found = answer_of(built_book / page, tmp_path, """
        document.querySelectorAll("details").forEach((part) => { part.open = true; });
        document.head.append(Object.assign(document.createElement("style"), { textContent: "* { transition: none !important; }" }));
        await new Promise((done) => document.head.append(Object.assign(document.createElement("script"),
          { src: "AXE", onload: done })));
        const found = [];
        for (const theme of ["light", "dark"]) {
          document.documentElement.dataset.theme = theme;
          const { violations } = await axe.run(document, { resultTypes: ["violations"] });
          for (const item of violations.filter((item) => ["serious", "critical"].includes(item.impact)))
            found.push(...item.nodes.map((node) => `${theme}: ${item.id}: ${node.html.slice(0, 150)} ${node.any[0]?.message ?? ""}`));
        }
        return found;
    """.replace("AXE", AXE.as_uri()))
    assert not found, "\n".join(found[:12])
