"""Download of one file over HTTP: resumed, never mixed from two versions, and checked before it gets its name.

An incomplete file is NAME.part; NAME.part.json states its address and version. A later attempt requests the rest with
`Range`, on the condition (`If-Range`, RFC 9110 section 13.1.5) that the file has not changed.
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

from anl.io import UserError, reason, write_text

BLOCK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # statuses after which another attempt may succeed
LONGEST_WAIT = 60  # seconds
REDIRECTS = 10  # in a row
SPARE = 100 << 20  # bytes that stay free on the disk
BY_HAND = "download it by hand and give it with `--from PATH`"


class _Retry(Exception):
    """An attempt failed in a way that another may not. `after`: seconds that the server asks to wait, or None."""

    def __init__(self, why, after=None):
        super().__init__(why)
        self.after = after


def download(url, path, size=None, sha256=None, md5=None, tries=6, sleep=time.sleep):
    """Download a file, or continue an interrupted download. An existing file is only checked.

    Parameters
    ----------
    url, path : str, path-like
        From where, and to where.
    size, sha256, md5 : int, str, str
        Expected values; None if unknown.
    tries : int
        Attempts in a row without progress before giving up; the pause between them doubles from 1 s.
    sleep : callable
        Waits some seconds.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    UserError
        If the file is not available, has another size or hash (it is removed), does not fit on the disk, or the connection
        fails (what has been downloaded is kept).
    """
    path = Path(path)
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    if path.is_file():
        return check(path, size, sha256, md5, url, (path,))
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while not (0 < (_note(url, note).get("total") or 0) == _length(part)):  # stopped between the last byte and the check
        before = _length(part)
        try:
            _attempt(url, part, note, size)
            break
        except _Retry as problem:
            failures = 1 if _length(part) > before else failures + 1
            if failures >= tries:
                raise UserError(f"{url} cannot be downloaded ({problem}); {_length(part):,} bytes are kept, run the same command "
                                f"again to continue, or {BY_HAND}") from None
            pause = min(LONGEST_WAIT, problem.after if problem.after is not None else 2 ** (failures - 1))
            print(f"{path.name}: {problem}; trying again in {pause:g} s", file=sys.stderr)
            sleep(pause)
    found = check(part, size, sha256, md5, url, (part, note))
    os.replace(part, path)
    note.unlink(missing_ok=True)
    return found


def check(path, size=None, sha256=None, md5=None, what=None, remove=()):
    """SHA-256 of a file, after comparing its size and hashes with those given.

    Raises UserError if one differs; the files in `remove` are then deleted.
    """
    path = Path(path)
    found = {"size": str(path.stat().st_size), **hashes(path, ("sha256", "md5") if md5 else ("sha256",))}
    for name, wanted in (("size", size), ("sha256", sha256), ("md5", md5)):
        if wanted is not None and found[name] != str(wanted):
            for item in remove:
                Path(item).unlink(missing_ok=True)
            label = "bytes" if name == "size" else name.upper().replace("SHA", "SHA-")
            raise UserError(f"{what or path} is not the registry's file: {label} {found[name]}, expected {wanted}; "
                            f"{'nothing was kept; ' if remove else ''}fetch it again; if it still differs, the publisher has changed it")
    return found["sha256"]


def hashes(path, names=("sha256",)):
    """{name: hex digest} of a file, in constant memory."""
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


def _note(url, note):
    """What is known of an incomplete download of `url` (validator, total); empty if unknown."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        return known if known["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _validator(headers):
    """A strong ETag or else the date of the last change: only these are allowed in If-Range. None without both."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


@contextlib.contextmanager
def _response(url, headers):
    """The response to a GET request; every redirect is checked before it is followed.

    Raises UserError for a redirect from https to http, from a public address to a private one, or too many redirects.
    """
    address, cookies = url, RequestsCookieJar()
    for _ in range(REDIRECTS + 1):
        response = requests.get(address, headers=headers, cookies=cookies, stream=True, timeout=TIMEOUT, allow_redirects=False)
        with response:
            if response.next is None:
                yield response
                return
            following = response.next.url
            if address.startswith("https://") and not following.startswith("https://"):
                raise UserError(f"{url} redirects to {following}, which is not encrypted; {BY_HAND}")
            if _is_private(following) and not _is_private(url):
                raise UserError(f"{url} redirects to {following}, an address inside a private network; if you trust it, {BY_HAND}")
            cookies.update(response.cookies)
            address = following
    raise UserError(f"{url} redirects more than {REDIRECTS} times; {BY_HAND}")


def _is_private(url):
    """Whether the host of `url` is an address that is not public, or this machine by name."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # 2130706433 and 0x7f.1 are 127.0.0.1
        except OSError:
            return False  # a name
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


def _attempt(url, part, note, size):
    """One request: append the missing bytes to `part`, or write it anew. Raises _Retry if it is incomplete afterwards."""
    validator = _note(url, note).get("validator")
    start = _length(part) if validator else 0
    # a server that compressed the file would change lengths and ranges
    headers = {"Accept-Encoding": "identity", "User-Agent": "anl"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with _response(url, headers) as response:
            _check_status(url, response)
            total, start = _plan(url, response, start, part, note, size)
            if response.status_code == 416:
                return
            if start == 0:
                part.unlink(missing_ok=True)
                write_text(note, json.dumps({"url": url, "validator": _validator(response.headers), "total": total}))
            free = shutil.disk_usage(part.parent).free
            if total is not None and total - start > free - SPARE:
                raise UserError(f"{url}: {total - start:,} bytes remain, and {part.parent} has {free:,} free; free some space or "
                                "choose another disk with `--to`")
            with open(part, "ab") as target, _bar(part.name.removesuffix(".part"), total) as bar:
                bar.update(start)
                for block in response.iter_content(BLOCK):
                    target.write(block)
                    bar.update(len(block))
                    if size is not None and target.tell() > size:
                        break
    except requests.exceptions.SSLError as problem:
        raise UserError(f"{url}: the server's certificate is not trusted ({_innermost(problem)}); {BY_HAND}") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise UserError(f"{url} is not a valid address; correct it") from None
    except requests.exceptions.RequestException as problem:
        raise _Retry(_innermost(problem)) from None
    if total is not None and _length(part) < total:
        raise _Retry(f"the connection ended after {_length(part):,} of {total:,} bytes")


def _check_status(url, response):
    """Raise if the response carries no content."""
    code, status = response.status_code, f"{response.status_code} {response.reason}"
    if code in TEMPORARY:
        after = response.headers.get("Retry-After", "")
        raise _Retry(f"the server responds {status}", float(after) if after.isdigit() else None)
    if code not in (200, 206, 416):
        hint = "; the data set's page may require a login or an agreement" if code in (401, 403) else \
            "; look for it on the data set's page" if code in (404, 410) else ""
        raise UserError(f"{url} is not available ({status}){hint}; {BY_HAND}")


def _plan(url, response, start, part, note, size):
    """(total bytes or None, first byte that the response holds). Raises _Retry after removing an unusable part."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if response.status_code == 200:  # the whole file: a first request, no support for ranges, or a changed file
        start = 0
    else:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, whole = rest.partition("/")
        total = int(whole) if whole.isdigit() else None
        complete = response.status_code == 416 and total == start > 0
        follows = response.status_code == 206 and unit == "bytes" and span.startswith(f"{start}-")
        known, tag = _note(url, note), response.headers.get("ETag")
        changed = known.get("total") not in (None, total) or (
            tag is not None and str(known.get("validator")).startswith('"') and tag != known["validator"])
        if changed or not (complete or follows):
            part.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            raise _Retry("the file has changed, or the server sent another range than requested; starting again")
    if size is not None and total is not None and total != size:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise UserError(f"{url} has {total:,} bytes, and the registry states {size:,}; the publisher has changed the file, "
                        f"nothing was kept; {BY_HAND}")
    return total, start


def _innermost(problem):
    """An exception's innermost reason, in one line."""
    while problem.args and isinstance(problem.args[0], Exception):
        problem = problem.args[0]
    return f"{type(problem).__name__}: {reason(getattr(problem, 'reason', None) or (problem.args[0] if problem.args else problem))}"
