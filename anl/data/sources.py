"""Where the photographs come from: rebuilds data/photos from the Debian packages named in the data card."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from anl.data.photos import read_card
from anl.data.rcc import read_rcc
from anl.errors import UserError
from anl.files import sha256_of, whole_file

RESOURCE = "rcc:"  # path_in_package of a file inside one of a package's Qt resource files: rcc:<activity>/<file>


def rebuild(card, folder, source=None):
    """Fill `folder` with the photographs of the data card, byte for byte; returns their number.

    card: path of the CSV. source: a folder with .deb files or unpacked packages (their roots, or one folder per
    package); None downloads the packages with apt, unpacks them in a temporary folder and installs nothing.
    Photographs that are right already are left alone. Raises UserError naming what could not be found or differs.
    """
    photos, folder = read_card(card), Path(folder)
    wanted = [photo for photo in photos if not _is_right(folder / photo.file, photo.sha256)]
    packages = sorted({photo.package for photo in wanted})
    if source is None and packages:
        _need_program("apt-get", "`dvc pull data.dvc` fetches the same files anywhere")
    failures = []
    for package in tqdm(packages, desc="packages", file=sys.stderr, disable=None):
        mine = [photo for photo in wanted if photo.package == package]
        with tempfile.TemporaryDirectory(prefix="anl-photos-") as temporary:
            roots = _unpacked(package, source, Path(temporary))
            for photo in mine:
                content = find_content(photo, roots)
                if content is None:
                    failures.append(photo)
                    continue
                with whole_file(folder / photo.file) as path:
                    path.write_bytes(content)
    if failures:
        first = failures[0]
        raise UserError(f"{len(failures)} of {len(photos)} photographs are not as the data card has them, the first "
                        f"{first.file} ({first.path_in_package} of {first.package}); another release of the package? "
                        "Debian 12 has the right ones, and `dvc pull data.dvc` fetches them anywhere")
    return len(photos)


def _is_right(path, digest):
    return path.is_file() and sha256_of(path) == digest


def _need_program(name, mend):
    if shutil.which(name) is None:
        raise UserError(f"`{name}` is not on this machine, which is no Debian or Ubuntu then; {mend}")


def _unpacked(package, source, temporary):
    """Folders in which the package's files may lie; whatever has to be unpacked goes to `temporary`."""
    if source is None:
        done = subprocess.run(["apt-get", "download", "-q", package], cwd=temporary, check=False, capture_output=True,
                              text=True)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise UserError(f"apt-get cannot download {package} ({reason}); run `apt-get update` as root, or give a "
                            "folder with the package: `anl photos --from FOLDER`")
        source = temporary
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give one that holds .deb files or unpacked packages")
    archives = sorted(source.glob(f"{package}_*.deb"))
    if not archives:
        return [source, source / package]
    _need_program("dpkg-deb", "unpack the .deb files with `ar x` and `tar xf`, and give the folder with their contents")
    roots = []
    for archive in archives:
        root = temporary / f"root{len(roots)}"
        done = subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=False, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{archive} cannot be unpacked ({done.stderr.strip().splitlines()[-1]}); download it again")
        roots.append(root)
    return roots


def find_content(photo, roots):
    """The photograph's bytes, found under one of the unpacked `roots` by path and hash; None if it is not there."""
    for root in roots:
        for content in _candidates(photo.path_in_package, root):
            if hashlib.sha256(content).hexdigest() == photo.sha256:
                return content
    return None


def _candidates(path_in_package, root):
    if not path_in_package.startswith(RESOURCE):
        path = root / path_in_package.lstrip("/")
        if path.is_file():
            yield path.read_bytes()
        return
    activity, rest = path_in_package.removeprefix(RESOURCE).split("/", 1)
    for resource in sorted(root.rglob(f"{activity}.rcc")) or sorted(root.rglob("*.rcc")):
        for path, content in read_rcc(resource.read_bytes(), str(resource)).items():
            parts = PurePosixPath(path)
            if activity in parts.parts and path.endswith(f"/{rest}"):
                yield content()
