"""Get a data set: downloaded or taken from local files, checked, unpacked and recorded.

The folder of a data set appears complete, with a source.json that states what it is, where it comes from, and under which
licence it was accepted. Until then `.NAME.parts` holds downloads (kept after a failure), `.NAME.new` what is being unpacked,
and `.NAME.done.json` notes that a download from the hub is complete.
"""

import datetime
import json
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from anl.data import parquet, registry, unpack
from anl.data.download import check, download
from anl.io import UserError, read_json, reason, write_json

ROOT = Path("data/sources")
RECORD = "source.json"
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"}


@dataclass(frozen=True)
class Fetched:
    """Result of `fetch`: the folder to index, its source.json, numbers of images and bytes, whether it was there already,
    and a note on what has to be done by hand ("" if nothing)."""

    folder: Path
    record: Path
    images: int
    bytes: int
    already: bool = False
    note: str = ""


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
    parts, new, done = (folder.with_name(f".{folder.name}.{word}") for word in ("parts", "new", "done.json"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        if local is None and source.access == "hub":
            return _from_hub(source, revision, folder, parts, new, done)
        archives = _download(source, parts) if local is None else _local_archives(source, Path(local))
        if archives is None:
            place = Path(local).resolve()
            return _fetched(_record(source, folder, [], place), place, folder / RECORD)
        record = _record(source, new, _unpack_all(source, archives, new), None)
        _move(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)
    return _fetched(record, folder, folder / RECORD)


def count(folder, but=()):
    """Images and bytes below `folder`, without the files `but`; images in Parquet files are counted by rows."""
    images = size = 0
    for root, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if os.path.relpath(path, folder) in but or name == RECORD:
                continue
            suffix = os.path.splitext(name)[1].lower()
            images += parquet.rows(path) if suffix == ".parquet" else suffix in IMAGES
            size += os.path.getsize(path)
    return images, size


def _fetched(record, folder, path, already=False):
    kept = record.get("kept", ())
    note = ""
    if kept:
        kind, program = unpack.unreadable(kept[0]) or ("an archive", "7z x")
        note = (f"{len(kept)} archive(s) cannot be unpacked by Python, the first {kept[0]} ({kind}): run `{program} "
                f"{Path(kept[0]).name}` in {(folder / kept[0]).parent}, then index the folder")
    return Fetched(folder, path, record["images"], record["bytes"], already, note)


def _existing(source, folder, local):
    """The result of an earlier call, or None. Raises UserError if `folder` holds something else."""
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        if record.get("id") != source.id:
            raise UserError(f"{folder} holds {record.get('id')}; choose another folder with `--to`")
        return _fetched(record, Path(record["folder"] or folder), folder / RECORD, already=True)
    placed_by_hand = local is not None and Path(local).resolve() == folder.resolve()
    if not placed_by_hand and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and was not made by `anl data fetch`; give it with `--from {folder}`, remove it, or choose "
                        "another folder with `--to`")
    return None


def _move(new, folder):
    if folder.is_dir():
        folder.rmdir()  # empty, see `_existing`
    os.replace(new, folder)


def _download(source, parts):
    """Download the archives: [(File, path)]."""
    if source.access != "direct":
        raise UserError(f"{source.id} can only be downloaded by hand; follow the steps above, then run `anl data fetch {source.id} "
                        "--from PATH --accept-licence`")
    for file in source.files:  # before anything is downloaded
        if known := unpack.unreadable(file.name):
            raise UserError(f"{file.name} is {known[0]}, which Python cannot unpack, so nothing was downloaded; download {file.url}, "
                            f"run `{known[1]} {file.name}`, then `anl data fetch {source.id} --from FOLDER --accept-licence`")
    for file in source.files:
        download(file.url, parts / file.name, file.bytes, file.sha256, file.md5)
    return [(file, parts / file.name) for file in source.files]


def _local_archives(source, local):
    """[(File, path)] of the archives that `local` is or contains; None if it is a folder of the data itself."""
    if not local.exists():
        raise UserError(f"{local} does not exist; give the archive or the folder that you downloaded")
    named = {file.name: file for file in source.files}
    if not local.is_dir():
        if len(named) > 1:
            raise UserError(f"{source.id} consists of {', '.join(named)}; put them into one folder and give the folder")
        return [(next(iter(named.values()), registry.File(local.name)), local)]
    found = [name for name in named if (local / name).is_file()]
    if missing := sorted(set(named) - set(found)) if found else ():
        raise UserError(f"{local} contains {found[0]} but not {missing[0]}; download that too")
    return [(file, local / name) for name, file in named.items()] if found else None


def _unpack_all(source, archives, new):
    """Check the archives and unpack them into `new`; returns their entries in source.json."""
    files = []
    limits = unpack.Limits(files=2 * source.images + 1000 if source.images else unpack.Limits.files,
                           bytes=2 * source.unpacked_bytes if source.unpacked_bytes else None)
    for file, path in archives:
        sha256 = check(path, file.bytes, file.sha256, file.md5)
        with tqdm(desc=f"unpacking {path.name}", unit="B", unit_scale=True, file=sys.stderr, disable=None, delay=1) as bar:
            unpack.unpack(path, new / file.into, limits, bar.update)
        files.append({"name": path.name, "url": file.url, "bytes": path.stat().st_size, "sha256": sha256,
                      "checked": bool(file.sha256 or file.md5)})
    return files


def _record(source, folder, files, local, but=(), kept=()):
    """Write source.json into `folder`, and return it. Files in `but` are not counted; `kept` archives stay packed."""
    if (folder / RECORD).exists():
        raise UserError(f"the data set itself has a file {RECORD}, which `anl data fetch` would overwrite; unpack it by hand and give "
                        "the folder with `--from FOLDER`")
    images, size = count(local or folder, but)
    if not images and not kept:
        raise UserError(f"{local or 'the archive'} contains no images; check that it is {source.title}")
    record = {"id": source.id, "title": source.title, "licence": source.licence, "terms": source.terms,
              "home": source.home, "hub": asdict(source.hub) if source.hub and local is None else None,
              "accepted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "files": files,
              "folder": None if local is None else str(local), "images": images, "bytes": size,
              **({"kept": list(kept)} if kept else {})}
    write_json(folder / RECORD, record)
    return record


# ---- the hub -------------------------------------------------------------------------------------------------------------
def _from_hub(source, revision, folder, parts, new, done):
    """Download one commit and unpack its archives. Whatever fails, the download stays in `parts`."""
    files = _download_from_hub(source, revision, parts, done)
    names = [file["name"] for file in files]
    if RECORD not in names:
        (parts / RECORD).unlink(missing_ok=True)  # of an earlier attempt
    unpacked, kept = [], []
    for path in map(parts.joinpath, names):
        name = path.relative_to(parts).as_posix()
        if path.suffix == ".parquet" or not unpack.is_archive(path):
            continue
        with open(path, "rb") as stream:
            if unpack.unreadable(path.name, stream.read(8)):
                kept.append(name)
                continue
        unpack.unpack(path, new)
        for item in filter(Path.is_file, sorted(new.rglob("*"))):
            target = path.parent / item.relative_to(new)
            if target.relative_to(parts).as_posix() in names:
                raise UserError(f"{path} contains {item.relative_to(new)}, which {source.id} also has as a separate file; unpack it "
                                "by hand and give the folder with `--from FOLDER`")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(item, target)
        shutil.rmtree(new)
        unpacked.append(name)
    record = _record(source, parts, files, None, unpacked, kept)
    _move(parts, folder)
    for name in unpacked:
        (folder / name).unlink()
    done.unlink(missing_ok=True)
    return _fetched(record, folder, folder / RECORD)


def _download_from_hub(source, revision, parts, done):
    """Download the files of one commit into `parts`, unless they are there; returns their entries in source.json."""
    from huggingface_hub import constants, errors, snapshot_download  # slow to import, and needed here only

    hub = source.hub
    revision = revision or hub.revision
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"{hub.repo} needs `--revision` with a full commit of 40 hex digits, because a branch may change; take the "
                        f"newest one from {source.home}, Files and versions, History")
    if files := _complete(parts, done, f"{hub.repo}@{revision}", hub.patterns):
        return files
    parts.mkdir(parents=True, exist_ok=True)
    if source.bytes and source.bytes > (free := shutil.disk_usage(parts).free) + count(parts)[1]:
        raise UserError(f"{source.id} has {source.size}, and {parts.parent} has {free:,} bytes free; free some space or choose another "
                        "disk with `--to`")
    place = f"{hub.repo} at {revision[:12]}"
    try:
        snapshot_download(hub.repo, repo_type="dataset", revision=revision, local_dir=parts, allow_patterns=list(hub.patterns))
    except errors.RevisionNotFoundError:
        raise UserError(f"{hub.repo} has no commit {revision}; look it up on its page and give `--revision`") from None
    except errors.GatedRepoError:
        raise UserError(f"{hub.repo} requires a login; accept its terms on its page, then run `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{constants.ENDPOINT} has no data set {hub.repo}; it may have moved, or require a login") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        fix = "HF_HUB_OFFLINE is set, run the command with HF_HUB_OFFLINE=0" if constants.HF_HUB_OFFLINE else \
            "check the network, or download it elsewhere and give the folder with `--from`"
        raise UserError(f"{place} is not on this machine and {constants.ENDPOINT} cannot be reached; {fix}") from None
    except Exception as problem:  # whatever else the network or the hub reports
        raise UserError(f"{place} cannot be downloaded ({type(problem).__name__}: {reason(problem)}); what was downloaded is kept, "
                        "run the same command again") from None
    shutil.rmtree(parts / ".cache", ignore_errors=True)  # the client's bookkeeping
    files = [{"name": path.relative_to(parts).as_posix(), "url": f"{hub.repo}@{revision}", "bytes": path.stat().st_size}
             for path in sorted(parts.rglob("*")) if path.is_file()]
    write_json(done, {"of": f"{hub.repo}@{revision}", "patterns": list(hub.patterns), "files": files})
    return files


def _complete(parts, done, of, patterns):
    """The files of an earlier complete download of the same commit, or None."""
    try:
        known = json.loads(done.read_text(encoding="utf-8"))
        whole = known["of"] == of and known["patterns"] == list(patterns) and all(
            (parts / file["name"]).stat().st_size == file["bytes"] for file in known["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known["files"] if whole else None
