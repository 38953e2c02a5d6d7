"""The built pages in Debian's chromium: from files, with the network cut."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=20000",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")


def chromium(page, folder, *flags):
    # its crash reports would go into the user's ~/.config in spite of --user-data-dir
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={folder}/profile", "--enable-logging=stderr", *flags,
                           page.as_uri()], capture_output=True, text=True, timeout=180, check=False,
                          env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/config"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_mathematics_is_rendered_without_network(built_book, tmp_path):
    done = chromium(built_book / "method.html", tmp_path, "--dump-dom")
    assert done.stdout.count("<mjx-container") > 30
    assert "<mjx-merror" not in done.stdout and "\\operatorname" not in done.stdout.split("<article")[1].split(
        "<mjx-assistive-mml")[0]


@pytest.mark.parametrize("page", ["index.html", "method.html", "data_card.html", "generated/notebooks/step_t.html"])
def test_no_console_error_and_no_request(built_book, tmp_path, page):
    done = chromium(built_book / page, tmp_path, "--dump-dom")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if "rror" in line or "net::" in line or "Failed" in line], console


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["index.html", "claims.html", "cross_generator.html"])
def test_screenshot_is_not_blank(built_book, tmp_path, page, width):
    shot = tmp_path / "page.png"
    chromium(built_book / page, tmp_path, f"--window-size={width},1200", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.shape == (1200, width)
    assert pixels.std() > 10 and (pixels < 128).mean() > 0.01
    bands = pixels.reshape(12, 100, width).std((1, 2))
    assert (bands > 5).sum() >= 8, "most of the page is empty"
