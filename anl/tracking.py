"""Training curves, written through Accelerate's tracker for DVCLive: one file a quantity, which `dvc plots` reads, while
the training runs and afterwards."""

from pathlib import Path

import pandas as pd

from anl.errors import UserError

TRACKER = "dvclive"
CURVE = ("loss", "classification_loss", "noise_loss", "val_AP")


def start(accelerator, folder, curve=()):
    """Begin the curves in `folder`, which is emptied; `curve`: points of a run that goes on, written again.

    accelerator: one made with log_with=TRACKER. folder: None for no files.
    """
    if folder is None:
        return
    if accelerator.is_main_process:
        accelerator.init_trackers("anl", init_kwargs={TRACKER: {"live": _files_alone(str(folder))}})
    for point in curve:
        log(accelerator, point)


def _files_alone(folder):
    """DVCLive's writer, which makes neither experiment nor dvc.yaml: the pipeline's own describes the runs.

    Nor does it look at the repository, which would fail in one that has no commit yet.
    """
    from dvclive import Live  # not above: it takes a second, and who only reads needs it not

    class Files(Live):
        def _init_dvc(self):
            self._dvc_file = self._init_dvc_file()

    return Files(dir=folder, save_dvc_exp=False, dvcyaml=None)


def log(accelerator, point):
    """Add one point: dict with `step` (from 1) and the quantities of CURVE, None where there is none."""
    accelerator.log({name: point[name] for name in CURVE if point[name] is not None}, step=point["step"])


def read(folder):
    """The curves in `folder` as a DataFrame: step and the quantities of CURVE, NaN where one was not measured.

    Raises UserError if a file cannot be read or there is none.
    """
    columns = []
    for name in CURVE:
        path = Path(folder) / "plots" / "metrics" / f"{name}.tsv"
        if path.is_file():
            try:
                columns.append(pd.read_csv(path, sep="\t").set_index("step")[name])
            except (ValueError, KeyError) as problem:
                raise UserError(f"{path} cannot be read ({problem}); train the run again") from None
    if not columns:
        raise UserError(f"{folder} holds no training curves; train the run again")
    return pd.concat(columns, axis=1).reindex(columns=list(CURVE)).reset_index()
