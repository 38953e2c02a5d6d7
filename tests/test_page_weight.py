"""What a page costs its reader: bytes, and the time until something is seen, from a local server in Debian's chromium."""

import os

import pytest

from tests.live_page import answer_of
from tests.test_book import OURS, Page
from tests.test_browser import CHROMIUM

MOST = 2e6  # bytes; pages that are galleries are free of it
SOON = 1000  # ms until the first text or picture is painted
GALLERIES = {"data", "gallery", "prior"}  # pages of pictures


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")
@pytest.mark.parametrize("page", ["index", "method", "step_t", "demo"])
def test_a_page_is_light_and_soon_readable(built_book, page):
    loads, _ = answer_of(built_book / f"{page}.html", """
      const entries = () => performance.getEntriesByType("resource");
      for (let count = -1; count !== entries().length;) { // until nothing more comes
        count = entries().length;
        await new Promise((done) => setTimeout(done, 1000));
      }
      const [own] = performance.getEntriesByType("navigation");
      return { bytes: [own, ...entries()].map((entry) => [entry.name, entry.encodedBodySize]),
               seen: performance.getEntriesByName("first-contentful-paint")[0].startTime };
    """, from_server=True)
    total = sum(size for _, size in loads["bytes"])
    assert 2e5 < total < MOST, sorted(loads["bytes"], key=lambda item: -item[1])[:8]
    share = max(1, os.getloadavg()[0] / os.cpu_count())  # of the machine, when others are at work on it
    assert page != "index" or loads["seen"] < SOON * share, (loads["seen"], share)


def test_what_each_page_names_weighs_little(built_book):
    """Without a browser, of every page: itself, its styles, scripts and images; fonts come on top."""
    for name in sorted(set(OURS) - GALLERIES):
        path = built_book / f"{name}.html"
        files = {(path.parent / load.partition("?")[0]).resolve() for load in Page(path).loads if not load.startswith("data:")}
        total = path.stat().st_size + sum(file.stat().st_size for file in files)
        assert total < MOST, f"{name}: {total}"
