"""A page in chromium for as long as it takes: `--dump-dom` with virtual time does not wait for WebAssembly to compile."""

import contextlib
import functools
import http.server
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from tests.test_browser import CHROMIUM, FLAGS, altered

REAL_TIME = [flag for flag in FLAGS if not flag.startswith("--virtual-time-budget")]


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        self.server.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """An HTTP server of a folder on a free port, which also takes an answer."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=folder))
    server.answers = queue.Queue()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _end(session):
    """End every process of a browser's session: its helpers outlive it a moment and would write on into a folder being removed."""
    for _ in range(100):
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _running(pid, session)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"chromium's processes {left} do not end")


def _running(pid, session):
    try:
        state, _, _, of = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(of) == session and state != "Z"


def answer_of(page, script, *flags, theme="light", from_server=False, timeout=150):
    """(answer, console): what `script` (an async function's body) returns on a built page, and chromium's console lines.

    The page is opened from its file, or from a server.
    """
    with served(page.parent) as (server, address), tempfile.TemporaryDirectory() as folder:
        send = f"await fetch('{address}/answer', {{ method: 'POST', mode: 'no-cors', body: JSON.stringify(answer) }});"
        script = f"const answer = await (async () => {{ {script} }})().catch((problem) => String(problem.stack)); {send}"
        with altered(page, theme, script) as copy, open(Path(folder) / "log", "w+", encoding="utf-8") as log:
            # its crash reports would go into the user's ~/.config in spite of --user-data-dir
            browser = subprocess.Popen(
                [CHROMIUM, *REAL_TIME, f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--remote-debugging-port=0",
                 *flags, f"{address}/{copy.name}" if from_server else copy.as_uri()],
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                env={**os.environ, "HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config"})
            try:
                answer = server.answers.get(timeout=timeout)
            except queue.Empty:
                log.seek(0)
                raise AssertionError(f"the page gave no answer: {log.read()[-3000:]}") from None
            finally:
                browser.terminate()
                browser.wait(30)
                _end(browser.pid)
            log.seek(0)
            return answer, [line for line in log.read().splitlines() if "CONSOLE" in line]
