"""Where a prior's files lie: a folder on this machine, or a model of the hub at one commit, downloaded once."""

import re
from pathlib import Path

from anl.errors import UserError
from anl.prior_presets import PRESETS

HUB = "hf://"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
ELSEWHERE = "download it where the hub can be reached and pass the folder"


def locate(source, revision=None):
    """The folder that holds `source`, and the name its messages carry: (Path, str).

    source: a diffusers folder (str or Path; a folder that is there wins over any other meaning), a name of
    anl.prior_presets, or a model of the hub, `hf://owner/name`. revision: full 40-hex commit, for the hub only.
    Raises UserError if there is no such folder, a commit is missing, or the hub does not give the files.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder and has no revision; leave `revision` out, or rename the folder")
        return Path(source), str(source)
    if isinstance(source, str) and source in PRESETS:
        preset = PRESETS[source]
        return _from_hub(preset.repo, _commit(f"prior {source} ({preset.repo}):", revision or preset.revision,
                                              "pass revision=<40-hex commit>; we could not look it up offline"))
    if (repo := hub_id(source)) is not None:
        return _from_hub(repo, commit(source, revision))
    raise UserError(f"{source} holds no diffusion prior: it is not a folder; get the default one with `dvc pull prior` or "
                    f"make it with `anl prior`, or name a diffusers folder{hint(source)} or one of {', '.join(PRESETS)}")


def hub_id(source):
    """`owner/name` of `hf://owner/name`; None for what does not begin so. Raises UserError for any other address."""
    if not isinstance(source, str) or not source.startswith(HUB):
        return None
    if not HUB_ID.fullmatch(repo := source.removeprefix(HUB)):
        raise UserError(f"{source} is no address of the hub; write {HUB}OWNER/NAME, and the commit as the revision")
    return repo


def commit(name, revision):
    """`revision`, a full commit. Raises UserError for a branch, a tag, a short commit or None."""
    return _commit(name, revision, "needs revision=<40-hex commit>: a branch may hold other weights tomorrow, and what was "
                                   "computed with these would not be theirs")


def hint(source):
    """How to write a bare `owner/name`, which is a path, if a model of the hub is meant."""
    name = source if isinstance(source, str) and HUB_ID.fullmatch(source) else "OWNER/NAME"
    return f" (for a model of the hub write {HUB}{name} with revision=<40-hex commit>)"


def patterns():
    """The files of a hub repository that a prior is loaded from: JSON, text and safetensors, no pickles, no variants."""
    kept = ["model_index.json", "config.json", "scheduler_config.json", "empty_prompt.safetensors", *WEIGHTS,
            "diffusion_pytorch_model.safetensors.index.json", "scheduler/*.json"]
    kept += [f"{part}/{name}" for part in ("unet", "vae") for name in ("*.json", *WEIGHTS)]
    kept += [f"text_encoder/{name}" for name in ("*.json", "model.safetensors", "model-*-of-*.safetensors")]
    return kept + ["tokenizer/*.json", "tokenizer/*.txt"]


def _commit(name, revision, why):
    if revision is None or not COMMIT.fullmatch(str(revision)):
        found = "" if revision is None else f"; revision '{revision}' is no full commit"
        raise UserError(f"{name} {why}{found}")
    return revision


def _from_hub(repo, revision):
    """Download `repo` at `revision` into the hub's own cache (HF_HUB_CACHE), or find it there."""
    from huggingface_hub import constants, errors, snapshot_download  # not above: a folder needs no hub

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=patterns())
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no commit {revision} on {constants.ENDPOINT}; look it up on the model's page") from None
    except errors.RepositoryNotFoundError:  # also a gated one
        raise UserError(f"{constants.ENDPOINT} shows no model {repo}; check its name and whether you may read it, or "
                        f"{ELSEWHERE}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as problem:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(problem.__cause__ or problem)
        raise UserError(f"{repo} at {revision[:12]} is not on this machine and {constants.ENDPOINT} cannot be reached "
                        f"({reason}); {ELSEWHERE}") from None
    except Exception as problem:  # whatever else the network, the hub or the disk says
        raise UserError(f"{repo} at {revision[:12]} cannot be downloaded from {constants.ENDPOINT} "
                        f"({_first_line(problem)}); try again, or {ELSEWHERE}") from None
    return Path(folder), f"{repo}@{revision[:12]}"


def _first_line(problem):
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0][:160]}" if text else type(problem).__name__
