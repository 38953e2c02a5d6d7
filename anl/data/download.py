"""One file over HTTP: resumed where it stopped, never spliced from two versions, checked before it gets its name.

While it comes, the file is NAME.part, and NAME.part.json says which version of which address it is a part of. A later
try asks for the rest with `Range`, on the condition (`If-Range`, RFC 9110 section 13.1.5) that the file is still that one.
"""

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.cookies import RequestsCookieJar
from tqdm import tqdm

from anl.errors import UserError
from anl.files import write_text

BLOCK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
PASSING = {408, 425, 429, 500, 502, 503, 504}  # states of a server that may pass
LONGEST_WAIT = 60
HOPS = 10  # redirects in a row
SPARE = 100 << 20  # bytes that stay free on the disk


class _Again(Exception):
    """A try that failed in a way that another may not. after: seconds that the server asked to wait, or None."""

    def __init__(self, reason, after=None):
        super().__init__(reason)
        self.after = after


def download(url, path, size=None, sha256=None, md5=None, tries=6, sleep=time.sleep):
    """Download `url` to `path`, or go on with it; returns the SHA-256 of the whole file in hex.

    size, sha256, md5: what the file has to have, None where it is not known. tries: attempts in a row that bring nothing
    new, before it gives up; the pause between them doubles from 1 s. A file that is at `path` already is only checked.
    Raises UserError naming the address and the mend: not there or not allowed, another size, a wrong hash (the file is
    removed), no room on the disk, no connection (what has come stays, and the same command goes on from there).
    """
    path = Path(path)
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while not _is_whole(url, part, note):
            before = _length(part)
            try:
                _attempt(url, part, note, size)
                break
            except _Again as problem:
                failures = 1 if _length(part) > before else failures + 1
                if failures >= tries:
                    raise UserError(f"{url} cannot be downloaded ({problem}); {_length(part):,} bytes have come and are "
                                    f"kept, run the same command again to go on, or download it by hand") from None
                pause = min(LONGEST_WAIT, problem.after if problem.after is not None else 2 ** (failures - 1))
                print(f"{path.name}: {problem}; trying again in {pause:g} s", file=sys.stderr)
                sleep(pause)
        found = check(part, size, sha256, md5, url, (part, note))
        os.replace(part, path)
        note.unlink(missing_ok=True)
        return found
    return check(path, size, sha256, md5, url, (path,))


def check(path, size=None, sha256=None, md5=None, what=None, remove=()):
    """SHA-256 of `path` in hex, after comparing size and hashes with those given.

    Raises UserError with both values if one differs, and removes the files in `remove` first.
    """
    path = Path(path)
    found = {"size": str(path.stat().st_size), **hashes(path, ("sha256", "md5") if md5 else ("sha256",))}
    for name, wanted in (("size", size), ("sha256", sha256), ("md5", md5)):
        if wanted is not None and found[name] != str(wanted):
            for item in remove:
                Path(item).unlink(missing_ok=True)
            kept = "nothing was kept; fetch it again, and if" if remove else "fetch it again; if"
            label = "bytes" if name == "size" else name.upper().replace("SHA", "SHA-")
            raise UserError(f"{what or path} is not the file that the registry knows: {label} {found[name]}, expected "
                            f"{wanted}; {kept} it stays so, the publisher has changed it")
    return found["sha256"]


def hashes(path, names=("sha256",)):
    """{name: hex digest} of a file, read once, in constant memory."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with open(path, "rb") as stream, _bar(f"checking {Path(path).name}", Path(path).stat().st_size) as bar:
        while block := stream.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
            bar.update(len(block))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _bar(name, total):
    return tqdm(desc=name, total=total, unit="B", unit_scale=True, file=sys.stderr, disable=None, delay=1)


def _length(path):
    return path.stat().st_size if path.is_file() else 0


def _resumable(url, part, note):
    """(bytes that are there, validator that the server gave for them), or (0, None) if they cannot be trusted."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["url"] == url and known["validator"] and part.is_file():
            return part.stat().st_size, known["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, None


def _validator(headers):
    """A strong ETag, else the date of the last change, else None: only these may stand in If-Range."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _is_whole(url, part, note):
    """Whether `part` has all bytes of one version of `url`: an earlier call was stopped between the last one and the check."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        return known["url"] == url and 0 < known["total"] == _length(part)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _answer(url, headers):
    """The answer to a GET request for `url`, every redirect on the way checked before it is followed.

    Raises UserError for a redirect from https to http, from a public address to a private one, or the last of too many.
    """
    address, cookies = url, RequestsCookieJar()
    for _ in range(HOPS + 1):
        answer = requests.get(address, headers=headers, cookies=cookies, stream=True, timeout=TIMEOUT, allow_redirects=False)
        with answer:
            if answer.next is None:
                yield answer
                return
            following = answer.next.url
            if address.startswith("https://") and not following.startswith("https://"):
                raise UserError(f"{url} leads to {following}, which is not encrypted; download it by hand")
            if _is_private(following) and not _is_private(url):
                raise UserError(f"{url} leads to {following}, an address inside a private network; download it by hand if you "
                                "trust it")
            cookies.update(answer.cookies)
            address = following
    raise UserError(f"{url} leads through more than {HOPS} redirects; download it by hand")


def _is_private(url):
    """Whether the host of `url` is written as an address that is not public, or is this machine by name."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        place = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            place = ipaddress.ip_address(socket.inet_aton(host))  # 2130706433 and 0x7f.1 are 127.0.0.1
        except OSError:
            return False  # a name
    return not (getattr(place, "ipv4_mapped", None) or place).is_global


def _attempt(url, part, note, size):
    """One request: append what is missing to `part`, or write it anew. Raises _Again if the file is not whole after it."""
    start, validator = _resumable(url, part, note)
    # without identity a server may compress on the way, and neither lengths nor ranges would be those of the file
    headers = {"Accept-Encoding": "identity", "User-Agent": "anl"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with _answer(url, headers) as answer:
            _check_answer(url, answer)
            total, start = _plan(url, answer, start, part, note, size)
            if answer.status_code == 416:
                return
            if start == 0:
                part.unlink(missing_ok=True)
                write_text(note, json.dumps({"url": url, "validator": _validator(answer.headers), "total": total}))
            _check_room(part, total, start)
            with open(part, "ab") as target, _bar(part.name.removesuffix(".part"), total) as bar:
                bar.update(start)
                for block in answer.iter_content(BLOCK):
                    target.write(block)
                    bar.update(len(block))
                    if size is not None and target.tell() > size:
                        break
    except requests.exceptions.SSLError as problem:
        raise UserError(f"{url}: the server's certificate is not trusted ({_short(problem)}); download it by hand") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise UserError(f"{url} is no address that can be downloaded") from None
    except requests.exceptions.RequestException as problem:
        raise _Again(_short(problem)) from None
    if total is not None and _length(part) < total:
        raise _Again(f"the connection ended after {_length(part):,} of {total:,} bytes")


def _check_answer(url, answer):
    """Raise for an answer that brings no bytes."""
    code = answer.status_code
    if code in PASSING:
        after = answer.headers.get("Retry-After", "")
        raise _Again(f"the server answers {code} {answer.reason}", float(after) if after.isdigit() else None)
    if code in (401, 403):
        raise UserError(f"{url} may not be downloaded ({code} {answer.reason}); open the data set's page, it may ask for a "
                        "login or an agreement, then give what you downloaded with `--from PATH`")
    if code in (404, 410):
        raise UserError(f"{url} is gone ({code} {answer.reason}); look for it on the data set's page, then give what you "
                        "downloaded with `--from PATH`")
    if code not in (200, 206, 416):
        raise UserError(f"{url}: the server answers {code} {answer.reason}; download it by hand and give it with "
                        "`--from PATH`")


def _plan(url, answer, start, part, note, size):
    """(total bytes or None, first byte that this answer brings). Raises _Again, after removing a part that is of no use."""
    total = int(answer.headers["Content-Length"]) if answer.headers.get("Content-Length", "").isdigit() else None
    if answer.status_code == 200:  # the whole file: nothing was there, ranges are ignored, or the file has changed
        start = 0
    else:
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        span, _, whole = rest.partition("/")
        total = int(whole) if whole.isdigit() else None
        complete = answer.status_code == 416 and total == start > 0
        follows = answer.status_code == 206 and unit == "bytes" and span.startswith(f"{start}-")
        known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        changed = known.get("total") not in (None, total) or (
            "ETag" in answer.headers and known.get("validator", "").startswith('"')
            and answer.headers["ETag"] != known["validator"])
        if changed or not (complete or follows):
            part.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            raise _Again("the file has changed, or the server gave another part than asked for; starting anew")
    if size is not None and total is not None and total != size:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise UserError(f"{url} has {total:,} bytes, and the registry knows {size:,}; the publisher has changed the file, "
                        "nothing was downloaded")
    return total, start


def _check_room(part, total, start):
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free - SPARE:
        raise UserError(f"{total - start:,} bytes are to come, and {part.parent} has {free:,} free; make room or choose "
                        "another disk with `--to`")


def _short(problem):
    """An exception's innermost reason, in one line."""
    while problem.args and isinstance(problem.args[0], Exception):
        problem = problem.args[0]
    reason = getattr(problem, "reason", None) or (problem.args[0] if problem.args else problem)
    return f"{type(problem).__name__}: {reason}".splitlines()[0][:160]
