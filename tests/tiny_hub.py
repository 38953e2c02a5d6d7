"""A local stand-in for the Hugging Face hub, which serves one commit of one repository."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef" * 2 + "01234567"


class _Hub(BaseHTTPRequestHandler):
    """`server`: kind (`models` or `datasets`), repo, files (path -> bytes), requests (list of paths)."""

    def do_GET(self):
        self.respond(body=True)

    def do_HEAD(self):
        self.respond(body=False)

    def respond(self, body):
        server, path = self.server, self.path.split("?")[0]
        server.requests.append(self.path)
        api = f"/api/{server.kind}/{server.repo}/"
        resolve = f"/{'' if server.kind == 'models' else server.kind + '/'}{server.repo}/"
        if not path.startswith((api, resolve)):
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
        if COMMIT not in path:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        if path.startswith(f"{api}tree/{COMMIT}"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in server.files.items()]
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode(), body)
        if path.startswith(f"{api}revision/"):
            data = {"id": server.repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in server.files]}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(data).encode(), body)
        data = server.files.get(path.removeprefix(f"{resolve}resolve/{COMMIT}/"))
        if data is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"", body)
        return self.send(200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data, body)

    def send(self, status, headers, data, body):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(kind, repo, files):
    """Yield a running server that holds `files` (path -> bytes) as commit COMMIT of `repo`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.kind, server.repo, server.files, server.requests = kind, repo, files, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
