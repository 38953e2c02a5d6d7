"""A data set onto this machine: downloaded, or taken from what a person downloaded; checked, unpacked, and recorded.

The folder of a data set appears whole, with a source.json in it that says what it is, whence, and under which licence it
was taken. Until then everything lies next to it: `.NAME.parts` holds downloads and survives a failure, `.NAME.new` does not.
`.NAME.done.json` says that the download of a set of the hub is finished: a later try does not ask the hub again.
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
from anl.errors import UserError
from anl.files import read_json, write_json

ROOT = Path("data/sources")
RECORD = "source.json"
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"}


@dataclass(frozen=True)
class Fetched:
    """folder: what to index; record: path of source.json; images, bytes: found; already: nothing had to be done; note: a line
    on what is left for a person to do, or ""."""

    folder: Path
    record: Path
    images: int
    bytes: int
    already: bool = False
    note: str = ""


def fetch(source, folder=None, local=None, revision=None):
    """Put `source` into `folder` (default: data/sources/ID); returns Fetched. The caller has shown the licence.

    local: an archive, or a folder that holds the archives, instead of a download; they are left where they are. A folder
    that holds the data itself is indexed where it is: only source.json is written to `folder`.
    revision: commit of a data set of the hub, where the registry has none or another one is wanted.
    Raises UserError on anything that is missing, differs from the registry, is unsafe or does not fit on the disk.
    """
    folder = Path(folder or ROOT / source.id)
    here = local is not None and Path(local).resolve() == folder.resolve()  # put there by hand
    if done := _already(source, folder, here):
        return done
    if revision is not None and (source.hub is None or local is not None):
        raise UserError("--revision is for downloads from the hub")
    parts, new, done = (folder.with_name(f".{folder.name}.{word}") for word in ("parts", "new", "done.json"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        if local is not None:
            archives = _local_archives(source, Path(local))
            if archives is None:
                return _in_place(source, Path(local).resolve(), folder)
            files = _unpack_all(source, archives, new)
        elif source.access == "direct":
            _refuse_unreadable(source)
            archives = [(file, parts / file.name) for file in source.files]
            for file, path in archives:
                download(file.url, path, file.bytes, file.sha256, file.md5)
            files = _unpack_all(source, archives, new)
        elif source.access == "hub":
            return _from_hub(source, revision, folder, parts, new, done)
        else:
            raise UserError(f"{source.id} can only be had by hand: follow the steps above, then run `anl fetch {source.id} "
                            "--from PATH --accept-licence`")
        result = _record(source, new, files, None)
        if folder.is_dir():
            folder.rmdir()  # empty, or _already had refused it
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)
    return Fetched(folder, folder / RECORD, result["images"], result["bytes"])


def count(folder, but=()):
    """(images, bytes of all files) under `folder`, without the files `but`; images in Parquet files count by their rows."""
    images = size = 0
    for root, _folders, names in os.walk(folder):
        for name in names:
            if os.path.relpath(os.path.join(root, name), folder) in but:
                continue
            suffix = os.path.splitext(name)[1].lower()
            images += suffix in IMAGES
            if suffix == ".parquet":
                images += parquet.rows(os.path.join(root, name))
            size += 0 if name == RECORD else os.path.getsize(os.path.join(root, name))
    return images, size


def _already(source, folder, expected):
    """What an earlier call left in `folder`, or None. Raises UserError if something else is there that was not expected."""
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        if record.get("id") != source.id:
            raise UserError(f"{folder} holds {record.get('id')}; choose another folder with `--to`")
        return Fetched(Path(record["folder"] or folder), folder / RECORD, record["images"], record["bytes"], already=True,
                       note=_note(folder, record.get("kept", ())))
    if not expected and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and was not made by `anl fetch`; give it with `--from {folder}`, remove it, or "
                        "choose another folder with `--to`")
    return None


def _local_archives(source, local):
    """[(File, path)] of the archives that `local` is or holds; None if it is a folder of the data themselves."""
    if not local.exists():
        raise UserError(f"{local} is not there; give the archive or the folder that you downloaded")
    named = {file.name: file for file in source.files}
    if local.is_dir():
        found = [name for name in named if (local / name).is_file()]
        if not found:
            return None
        if missing := sorted(set(named) - set(found)):
            raise UserError(f"{local} holds {found[0]} and lacks {missing[0]}; {source.id} needs both")
        return [(file, local / name) for name, file in named.items()]
    if len(named) > 1:
        raise UserError(f"{source.id} consists of {', '.join(named)}; put them into one folder and give the folder")
    return [(next(iter(named.values()), registry.File(local.name)), local)]


def _unpack_all(source, archives, new):
    """Check the archives and unpack them into `new`; returns what the record says of them."""
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


def _in_place(source, local, folder):
    result = _record(source, folder, [], local)
    return Fetched(local, folder / RECORD, result["images"], result["bytes"])


def _record(source, folder, files, local, but=(), kept=()):
    """Write source.json into `folder`; local: where the data are, if not there. Returns what it wrote.

    but: files that do not count. kept: archives among `files` that a person has to unpack.
    """
    if (folder / RECORD).exists():
        raise UserError(f"the data set has a file {RECORD} of its own, which `anl fetch` needs; unpack it by hand and give "
                        "the folder with `--from FOLDER`")
    images, size = count(local or folder, but)
    if not images and not kept:
        raise UserError(f"{local or 'the archive'} holds no images; is it {source.title}?")
    result = {"id": source.id, "title": source.title, "licence": source.licence, "terms": source.terms,
              "home": source.home, "hub": asdict(source.hub) if source.hub and local is None else None,
              "accepted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "files": files,
              "folder": None if local is None else str(local), "images": images, "bytes": size,
              **({"kept": list(kept)} if kept else {})}
    write_json(folder / RECORD, result)
    return result


def _refuse_unreadable(source):
    """Raise UserError, before anything is downloaded, for an archive that cannot be unpacked here."""
    for file in source.files:
        if known := unpack.unreadable(file.name):
            kind, program = known
            raise UserError(f"{file.name} is {kind}, which Python cannot read by itself, so nothing was downloaded: download "
                            f"{file.url}, unpack it with `{program} {file.name}`, then `anl fetch {source.id} --from FOLDER "
                            "--accept-licence`")


def _note(folder, kept):
    if not kept:
        return ""
    program = (unpack.unreadable(kept[0]) or ("", "7z x"))[1]
    return (f"{len(kept)} archive(s) cannot be unpacked by Python and are kept as they are, the first {kept[0]}: unpack with "
            f"`{program} {Path(kept[0]).name}` in {(folder / kept[0]).parent}, then index the folder")


def _from_hub(source, revision, folder, parts, new, done):
    """Download one commit of a hub's data set and put it into `folder`. Whatever fails, the download stays in `parts`."""
    files = _download_from_hub(source, revision, parts, done)
    names = [file["name"] for file in files]
    if RECORD not in names:
        (parts / RECORD).unlink(missing_ok=True)  # of an earlier try that was stopped after it
    unpacked, kept = [], []
    for name in names:
        path = parts / name
        if path.suffix == ".parquet" or not unpack.is_archive(path):
            continue
        with open(path, "rb") as stream:
            known = unpack.unreadable(path.name, stream.read(8))
        if known:
            kept.append(name)
            continue
        unpack.unpack(path, new)
        for item in sorted(new.rglob("*")):
            target = path.parent / item.relative_to(new)
            if target.relative_to(parts).as_posix() in names:
                raise UserError(f"{path} holds {item.relative_to(new)}, which {source.id} has as a file of its own; unpack it "
                                "by hand and give the folder with `--from FOLDER`")
            if item.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(item, target)
        shutil.rmtree(new)
        unpacked.append(name)
    result = _record(source, parts, files, None, unpacked, kept)
    if folder.is_dir():
        folder.rmdir()  # empty, or _already had refused it
    os.replace(parts, folder)
    for name in unpacked:
        (folder / name).unlink()
    done.unlink(missing_ok=True)
    return Fetched(folder, folder / RECORD, result["images"], result["bytes"], note=_note(folder, kept))


def _download_from_hub(source, revision, parts, done):
    """What the record says of the files of one commit, after downloading them into `parts`, or finding them there."""
    from huggingface_hub import constants, errors, snapshot_download  # not above: nothing else here needs it

    hub = source.hub
    revision = revision or hub.revision
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"{hub.repo} needs `--revision` with a full commit of 40 hex digits, because a branch may hold other "
                        f"data tomorrow; take the newest one from {source.home}, Files and versions, History")
    if files := _finished(parts, done, f"{hub.repo}@{revision}", hub.patterns):
        return files
    parts.mkdir(parents=True, exist_ok=True)
    if source.bytes and source.bytes > (free := shutil.disk_usage(parts).free) + count(parts)[1]:
        raise UserError(f"{source.size} are to come, and {parts.parent} has {free:,} bytes free; make room or choose another "
                        "disk with `--to`")
    place = f"{hub.repo} at {revision[:12]}"
    try:
        snapshot_download(hub.repo, repo_type="dataset", revision=revision, local_dir=parts,
                          allow_patterns=list(hub.patterns))
    except errors.RevisionNotFoundError:
        raise UserError(f"{hub.repo} has no commit {revision}; look it up on its page and give `--revision`") from None
    except errors.GatedRepoError:
        raise UserError(f"{hub.repo} asks for a login: accept its terms on its page, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{constants.ENDPOINT} shows no data set {hub.repo}; it may have moved or ask for a login") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        mend = "HF_HUB_OFFLINE is set: run the command with HF_HUB_OFFLINE=0" if constants.HF_HUB_OFFLINE else \
            "is there a network? or download it elsewhere and give the folder with `--from`"
        raise UserError(f"{place} is not on this machine and {constants.ENDPOINT} cannot be reached; {mend}") from None
    except Exception as problem:  # whatever else the network or the hub says
        reason = (str(problem).strip().splitlines() or [""])[0][:160]
        raise UserError(f"{place} cannot be downloaded ({type(problem).__name__}: {reason}); what has come is kept, run the "
                        "same command again") from None
    shutil.rmtree(parts / ".cache", ignore_errors=True)  # the client's own notes
    files = [{"name": path.relative_to(parts).as_posix(), "url": f"{hub.repo}@{revision}", "bytes": path.stat().st_size}
             for path in sorted(parts.rglob("*")) if path.is_file()]
    write_json(done, {"of": f"{hub.repo}@{revision}", "patterns": list(hub.patterns), "files": files})
    return files


def _finished(parts, done, of, patterns):
    """The files that an earlier try has downloaded completely, as the record lists them, or None."""
    try:
        known = json.loads(done.read_text(encoding="utf-8"))
        whole = known["of"] == of and known["patterns"] == list(patterns) and all(
            (parts / file["name"]).stat().st_size == file["bytes"] for file in known["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known["files"] if whole else None
