"""Where `anl verify` runs stages: clones of what is committed, each with an empty DVC cache and settings of its own."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from anl import params
from anl.errors import UserError

STATE = "verify.json"
OURS = (STATE, "logs", "committed", *(f"{name}{end}" for name in ("first", "second") for end in ("", ".ready", ".pulled")))


class Workplace:
    """A folder to work in: `keep`, which stays, or a temporary one, which is removed."""

    def __init__(self, keep):
        self.keep = keep

    def __enter__(self):
        if self.keep:
            self.path = Path(self.keep).absolute()
            if self.path.exists() and (not self.path.is_dir() or {item.name for item in self.path.iterdir()} - set(OURS)):
                raise UserError(f"{self.keep} holds something else than an earlier `anl verify`; choose another folder")
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        else:
            self.path = Path(tempfile.mkdtemp(prefix="anl-verify-"))
            (self.path / "logs").mkdir()
        return self.path

    def __exit__(self, *_):
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)


def commit_of(root, dirty):
    """(commit, its tree's hash) to verify. Raises UserError outside of git, without a commit, or on uncommitted changes."""
    if _git(root, "rev-parse", "--show-toplevel") is None:
        raise UserError(f"{root.resolve()} is no git repository; only what is committed can be verified")
    head = _git(root, "rev-parse", "--verify", "HEAD")
    if head is None:
        raise UserError("nothing is committed yet; commit first")
    for name in ("dvc.yaml", "dvc.lock"):
        if not _git(root, "ls-files", "--", name):
            raise UserError(f"{name} is not in git here, so there is nothing to verify; run this in the repository's root")
    changes = (_git(root, "status", "--porcelain", "--untracked-files=no") or "").splitlines()
    if changes and not dirty:
        raise UserError(f"{len(changes)} file(s) have uncommitted changes ({changes[0].split(maxsplit=1)[1]}, ...); commit "
                        "them, or take them along with --dirty")
    commit = (_git(root, "stash", "create") or head) if changes else head
    return commit, _git(root, "rev-parse", f"{commit}^{{tree}}")


def make(root, folder, commit, profile):
    """A clone of `root` at `commit` with its own, empty DVC cache; one that is there is taken as it is."""
    ready = folder.with_name(f"{folder.name}.ready")
    if not ready.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _git_or_stop("clone", "--quiet", "--shared", "--no-checkout", str(root.resolve()), str(folder))
        _git_or_stop("-C", str(folder), "checkout", "--quiet", "--detach", commit)
        if not (folder / ".dvc").is_dir():
            raise UserError("there is no folder .dvc in git here, so no pipeline; run `dvc init` and commit it")
        if profile:
            params.activate(profile, folder / "profiles", folder / "params.yaml")
        ready.touch()
    return folder


def _git_or_stop(*words):
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]} failed: {' '.join(done.stderr.split())[:200]}")


def profile_of(clone):
    """The name of the profile that is active in a clone; `none` in a project without profiles."""
    path = clone / "params.yaml"
    return params.load(path).profile if (clone / "profiles").is_dir() else "none"


def pull(clone, stages, log, say):
    """Fetch the outputs of `stages` from the DVC remote of the clone. Raises UserError if they are not all there."""
    marker = clone.with_name(f"{clone.name}.pulled")
    wanted = [stage.address for stage in stages]
    if not wanted or (marker.is_file() and set(wanted) <= set(marker.read_text().split("\n"))):
        return
    say(f"pulling {len(wanted)} outputs that were made once ...")
    if call_dvc(clone, log, "pull", *wanted):
        raise UserError(f"`dvc pull {' '.join(wanted)}` failed: {' '.join(log.read_text(errors='replace').split())[-300:]}")
    marker.write_text("\n".join(wanted))


def call_dvc(clone, log, *words):
    """Run DVC in the clone, its output into `log`; returns its status. It dies with us, and so does what it has started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=clone, env=environment(clone), stdout=stream,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def environment(clone):
    """The variables under which a clone's stages run: its own code, its own caches, none of the user's DVC settings."""
    cache = Path(clone) / ".cache"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "XDG_CACHE_HOME": str(cache / "xdg"),
            **{f"DVC_{name}": str(cache / "dvc" / name.lower())
               for name in ("GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR", "SITE_CACHE_DIR")}, "DVC_NO_ANALYTICS": "1"}


def _git(folder, *words):
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def committed(root, place, out):
    """Path of a copy of `out` as HEAD holds it."""
    folder = place / "committed"
    if not (folder / out).exists():
        folder.mkdir(exist_ok=True)
        archive = subprocess.run(["git", "-C", str(root), "archive", "--format=tar", "HEAD", "--", out], check=True,
                                 capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as stream:
            stream.extractall(folder, filter="data")
    return folder / out


def is_tracked(clone, outs):
    """Whether git keeps any of these outputs."""
    return bool(outs) and bool(_git(clone, "ls-files", "--", *outs))
