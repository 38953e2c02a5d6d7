"""The built book in chromium, from files and with the network cut: one browser session looks at pages, widths and themes."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.synthetic_book import built_book  # noqa: F401  a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "vendor/axe.min.js"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=600000",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
         "--allow-file-access-from-files"]  # lets the page below, not the book's, look into its frames
PAGES = ["index.html", "method.html", "use.html", "pages/data.html", "library.html", "pages/claims.html",
         "pages/step_t.html"]
SCRIPT = """
const wait = (time) => new Promise((done) => setTimeout(done, time));
const loaded = (part, source) => new Promise((done) => { part.onload = done; part.src = source; document.body.contains(part) || document.body.append(part); });
(async () => {
  const found = [];
  for (const page of PAGES) for (const width of [390, 1280]) {
    const frame = Object.assign(document.createElement("iframe"), { width, height: 900 });
    await loaded(frame, page);
    const { contentDocument: inside, contentWindow: view } = frame;
    inside.head.append(Object.assign(inside.createElement("style"), { textContent: "* { transition: none !important; animation: none !important; }" }));
    inside.querySelectorAll("details").forEach((part) => { part.open = true; });
    await new Promise((done) => inside.head.append(Object.assign(inside.createElement("script"), { src: AXE, onload: done })));
    await wait(700);
    const scrolls = (part) => part.closest(".scroll, .cell_output, pre, mjx-container, .pst-scrollable-table-container, svg, canvas");
    const result = { page, width, barriers: [],
      outside: view.performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^(file|data|blob):/.test(name)),
      overflow: inside.documentElement.scrollWidth - view.innerWidth,
      wide: [...inside.querySelectorAll("article *")].filter((part) => !scrolls(part) && part.checkVisibility()
        && part.getBoundingClientRect().right > width + 1).map((part) => part.outerHTML.slice(0, 100)),
      nameless: [...inside.images].filter((image) => !image.alt.trim()).length,
      mathematics: inside.querySelectorAll("mjx-container").length, unrendered: inside.querySelectorAll("mjx-merror").length };
    result.theme = ["light", "dark"][(PAGES.indexOf(page) + (width > 390)) % 2];  // every page and width meets both
    inside.documentElement.dataset.theme = result.theme;
    await wait(50);
    result.background = view.getComputedStyle(inside.body).backgroundColor;
    const { violations } = await view.axe.run(inside, { resultTypes: ["violations"] });
    for (const item of violations.filter((item) => ["serious", "critical"].includes(item.impact)))
      result.barriers.push(...item.nodes.map((node) => `${item.id}: ${node.html.slice(0, 150)} ${node.any[0]?.message ?? ""}`));
    const head = [...inside.querySelectorAll("button.sort")].find((part) => part.textContent.includes("a long name"));
    const names = () => [...head.closest("table").tBodies[0].rows].map((row) => row.cells[0].textContent.trim()).join(" ");
    result.sorted = head && [names(), ...[1, 2, 3].map(() => { head.click(); return names(); })];
    found.push(result);
    frame.remove();
  }
  return found;
})().catch((problem) => String(problem.stack)).then((answer) => document.body.append(
  Object.assign(document.createElement("pre"), { id: "answer", textContent: JSON.stringify(answer) })));
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def session(built_book, tmp_path_factory):  # noqa: F811
    """What one chromium found on the pages, and the lines of its console."""
    folder, harness = tmp_path_factory.mktemp("chromium"), built_book / "look.html"
    script = f"const PAGES = {json.dumps(PAGES)}, AXE = {json.dumps(AXE.as_uri())};{SCRIPT}"
    harness.write_text(f'<!doctype html><meta charset="utf-8"><body><script>{script}</script></body>', encoding="utf-8")
    # its crash reports would go to the user's ~/.config in spite of --user-data-dir
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={folder}/profile", "--dump-dom", harness.as_uri()], capture_output=True,
                          text=True, timeout=300, check=False, env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/config"})
    harness.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    assert isinstance(answer, list), answer
    assert [(page["page"], page["width"]) for page in answer] == [(page, width) for page in PAGES for width in (390, 1280)]
    return answer, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_no_request_leaves_the_book_and_no_script_fails(session):
    pages, console = session
    assert not [name for page in pages for name in page["outside"]]
    assert not [line for line in console if "rror" in line or "net::" in line or "Failed" in line], console


def test_no_serious_barrier_in_either_theme(session):
    found = [f"{page['page']} at {page['width']} px, {page['theme']}: {line}" for page in session[0] for line in page["barriers"]]
    assert not found, "\n".join(found[:12])
    assert not [page for page in session[0] if page["nameless"]]


def test_nothing_reaches_beyond_the_page(session):
    assert not [(page["page"], page["width"], page["overflow"], page["wide"][:3]) for page in session[0] if page["overflow"] > 0 or page["wide"]]


def test_themes_differ_and_mathematics_is_rendered(session):
    brightness = {theme: {sum(map(int, re.findall(r"\d+", page["background"])[:3])) for page in session[0] if page["theme"] == theme}
                  for theme in ("light", "dark")}
    assert min(brightness["light"]) > 600 and max(brightness["dark"]) < 150
    assert {page["page"]: page["mathematics"] > 20 for page in session[0]}["method.html"]
    assert not [page for page in session[0] if page["unrendered"]]


def test_a_table_is_sorted_by_a_click_on_a_head(session):
    orders = [page["sorted"] for page in session[0] if page["page"] == "pages/step_t.html"]
    assert orders == [["ddim vae vq", "vq ddim vae", "ddim vq vae", "ddim vae vq"]] * 2  # the empty cell stays at the end
