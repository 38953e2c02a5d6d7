"""Get a data set: downloaded or taken from local files, checked, unpacked and recorded.

The folder of a data set appears complete, with a source.json that states what it is, where it comes from, and under which
licence it was accepted. Until then `.NAME.parts` holds downloads (kept after a failure) and `.NAME.new` what is unpacked.
"""

import datetime
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from anl.data import parquet, registry, unpack
from anl.data.decode import SUFFIXES
from anl.data.download import check, download
from anl.io import UserError, read_json, reason, write_json

ROOT = Path("data/sources")
RECORD = "source.json"


@dataclass(frozen=True)
class Fetched:
    """Result of `fetch`: the folder to index, its source.json, numbers of images and bytes, whether it existed already,
    and a note on what the user has to do by hand ("" if nothing)."""

    folder: Path
    record: Path
    images: int
    bytes: int
    already: bool = False
    note: str = ""


class _Piece(NamedTuple):
    """A file of a data set: where it is, the subfolder where it belongs, and its entry in source.json."""

    path: Path
    into: Path | str
    entry: dict


def fetch(source, folder=None, local=None, revision=None):
    """Get a data set of the registry.

    Parameters
    ----------
    source : anl.data.registry.Source
        The data set. The caller has shown its licence.
    folder : path-like, optional
        Default: data/sources/ID.
    local : path-like, optional
        An archive, or a folder of the archives, instead of a download. A folder of the data itself stays where it is, and
        only source.json is written to `folder`.
    revision : str, optional
        Commit of a data set of the hub, instead of the registry's.

    Returns
    -------
    Fetched

    Raises
    ------
    UserError
        If anything is missing, differs from the registry, is unsafe, or does not fit on the disk.
    """
    folder = Path(folder or ROOT / source.id)
    if found := _existing(source, folder, local):
        return found
    if revision is not None and (source.hub is None or local is not None):
        raise UserError("--revision applies to downloads from the hub only; leave it out")
    parts, new = folder.with_name(f".{folder.name}.parts"), folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    kept = []
    try:
        if local is not None:
            pieces = _local_archives(source, Path(local))
            if pieces is None:
                place = Path(local).resolve()
                return _fetched(_record(source, folder, [], place), place, folder)
            _unpack(source, pieces, new)
        elif source.access == "hub":
            pieces = _download_from_hub(source, revision or source.hub.revision, parts)
            kept = _unpack_from_hub(pieces, new)
        else:
            pieces = _download(source, parts)
            _unpack(source, pieces, new)
        record = _record(source, new, [piece.entry for piece in pieces], kept=kept, revision=revision)
        if folder.is_dir():
            folder.rmdir()  # empty, see `_existing`
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)
    return _fetched(record, folder, folder)


def _existing(source, folder, local):
    """The result of an earlier call, or None. Raises UserError if `folder` holds something else."""
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD, "fetch the data set again")
        if record.get("id") != source.id:
            raise UserError(f"{folder} holds {record.get('id')}; choose another folder with `--to`")
        return _fetched(record, Path(record["folder"] or folder), folder, already=True)
    placed_by_hand = local is not None and Path(local).resolve() == folder.resolve()
    if not placed_by_hand and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and was not made by `anl data fetch`; give it with `--from {folder}`, remove it, or "
                        "choose another folder with `--to`")
    return None


def _record(source, folder, files, local=None, kept=(), revision=None):
    """Write source.json into `folder`, and return it; `kept` archives stay packed."""
    if (folder / RECORD).exists():
        raise UserError(f"the data set itself has a file {RECORD}, which `anl data fetch` would overwrite; unpack it by "
                        "hand and give the folder with `--from FOLDER`")
    images, size = _count(local or folder)
    if not images and not kept:
        raise UserError(f"{local or 'the archive'} contains no images; check that it is {source.title}")
    hub = asdict(source.hub) | ({"revision": revision} if revision else {}) if source.hub and local is None else None
    record = {"id": source.id, "title": source.title, "licence": source.licence, "terms": source.terms,
              "home": source.home, "hub": hub,
              "accepted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "files": files,
              "folder": None if local is None else str(local), "images": images, "bytes": size,
              **({"kept": list(kept)} if kept else {})}
    write_json(folder / RECORD, record)
    return record


def _count(folder):
    """(images, bytes) below `folder`; images in Parquet files are counted by rows."""
    images = size = 0
    for path in filter(Path.is_file, folder.rglob("*")):
        suffix = path.suffix.lower()
        images += parquet.rows(path) if suffix == ".parquet" else suffix in SUFFIXES
        size += path.stat().st_size
    return images, size


def _fetched(record, folder, recorded, already=False):
    note, kept = "", record.get("kept", ())
    if kept:
        first = folder / kept[0]
        kind, program = unpack.unreadable(first.name)
        note = (f"{len(kept)} archive(s) cannot be unpacked by Python, the first {kept[0]} ({kind}): run `{program} "
                f"{first.name}` in {first.parent}, then index the folder")
    return Fetched(folder, recorded / RECORD, record["images"], record["bytes"], already, note)


# ---- archives: downloaded from a URL, or local -------------------------------------------------------------------------
def _download(source, parts):
    if source.access != "direct":
        raise UserError(f"{source.id} can only be downloaded by hand; follow the steps above, then run `anl data fetch "
                        f"{source.id} --from PATH --accept-licence`")
    return [_archive(file, parts / file.name, download(file, parts / file.name)) for file in source.files]


def _local_archives(source, local):
    """The archives that `local` is or contains, checked; None if it is a folder of the data itself."""
    if not local.exists():
        raise UserError(f"{local} does not exist; give the archive or the folder that you downloaded")
    if local.is_dir():
        found = {local / file.name: file for file in source.files}
        missing = [path for path in found if not path.is_file()]
        if len(missing) == len(found):
            return None
        if missing:
            raise UserError(f"{local} does not contain {missing[0].name}; download that too")
    elif len(source.files) > 1:
        raise UserError(f"{source.id} consists of {', '.join(file.name for file in source.files)}; put them into one folder "
                        "and give the folder")
    else:
        found = {local: source.files[0] if source.files else registry.File("archive")}
    return [_archive(file, path, check(file, path)) for path, file in found.items()]


def _archive(file, path, sha256):
    return _Piece(path, file.into, {"name": path.name, "url": file.url, "bytes": path.stat().st_size, "sha256": sha256,
                                    "checked": bool(file.sha256 or file.md5)})


def _unpack(source, pieces, new):
    files = 2 * source.images + 1000 if source.images else unpack.MOST_FILES
    size = 2 * source.unpacked_bytes if source.unpacked_bytes else None
    for piece in pieces:
        unpack.unpack(piece.path, new / piece.into, files, size)


# ---- the hub -------------------------------------------------------------------------------------------------------------
def _download_from_hub(source, revision, parts):
    """The files of one commit, downloaded into `parts` unless they are there."""
    from huggingface_hub import constants, errors, snapshot_download  # slow to import, and needed here only

    repo = source.hub.repo
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"{repo} needs `--revision` with a full commit of 40 hex digits, because a branch may change; take "
                        f"the newest one from {source.home}, Files and versions, History")
    parts.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parts).free
    if (source.bytes or 0) > free + sum(path.stat().st_size for path in parts.rglob("*") if path.is_file()):
        raise UserError(f"{source.id} has {source.size}, and {parts.parent} has {free:,} bytes free; free some space or "
                        "choose another disk with `--to`")
    try:
        snapshot_download(repo, repo_type="dataset", revision=revision, local_dir=parts,
                          allow_patterns=list(source.hub.patterns))
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no commit {revision}; look it up on its page and give `--revision`") from None
    except errors.GatedRepoError:
        raise UserError(f"{repo} requires a login; accept its terms on its page, then run `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{constants.ENDPOINT} has no data set {repo}; it may have moved, or require a login") from None
    except Exception as problem:  # whatever else the network or the hub reports
        fix = "HF_HUB_OFFLINE is set, run the command with HF_HUB_OFFLINE=0" if constants.HF_HUB_OFFLINE else \
            "run the same command again, or download it elsewhere and give the folder with `--from`"
        raise UserError(f"{repo} at {revision[:12]} cannot be downloaded ({type(problem).__name__}: {reason(problem)}); "
                        f"what was downloaded is kept; {fix}") from None
    files = {path: path.relative_to(parts) for path in sorted(parts.rglob("*")) if path.is_file()}
    return [_Piece(path, place.parent, {"name": place.as_posix(), "url": f"{repo}@{revision}", "bytes": path.stat().st_size})
            for path, place in files.items() if place.parts[0] != ".cache"]  # the client's bookkeeping


def _unpack_from_hub(pieces, new):
    """Unpack archives and, after that, move the other files to `new`; returns the archives that stay packed."""
    others = []
    for piece in pieces:
        if unpack.is_archive(piece.path.name):
            unpack.unpack(piece.path, new / piece.into)
        else:
            others.append(piece)
    for piece in others:
        if (new / piece.entry["name"]).exists():
            raise UserError(f"an archive contains {piece.entry['name']}, which is also a separate file of the data set; "
                            "unpack it by hand and give the folder with `--from FOLDER`")
    for piece in others:
        (new / piece.into).mkdir(parents=True, exist_ok=True)
        os.replace(piece.path, new / piece.entry["name"])
    return [piece.entry["name"] for piece in others if unpack.unreadable(piece.path.name)]
