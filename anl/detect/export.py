"""Export a detector: as a packaged folder, as an ONNX file for runtimes without PyTorch, or as the scripts of the book's demo."""

import tempfile
from pathlib import Path

from anl.detect.card import CARD, pack
from anl.io import UserError

TARGETS = ("folder", "onnx", "demo")


def export(source=None, out=None, *, to="folder", config=None, licence=None, replace=False, revision=None,
           int8=False):
    """Write a detector as a folder, an ONNX file or the demo's scripts: `anl export`.

    Parameters
    ----------
    source : path-like, optional
        A run's folder, a packaged detector's folder, or `hf://owner/name`; or the name of an experiment, whose best run
        on validation images is exported. Default: `models/detector`.
    out : path-like, optional
        `folder`: the folder. `onnx`: a file `NAME.onnx`, or a folder that gets `detector.onnx`. `demo`: the folder,
        by default `book/_static/demo`.
    to : str
        One of TARGETS.
    config : Config, optional
        Needed for a run and for the demo.
    licence, replace
        See `anl.detect.card.pack`.
    revision : str, optional
        Full commit of a hub id.
    int8 : bool
        Whether an ONNX file stores its weights in int8; see `anl.detect.onnx_file.export_onnx`. The demo always does.

    Returns
    -------
    list of str
        Lines that say what was written.

    Raises
    ------
    UserError
        If something is missing, or `out` is occupied.
    """
    if to not in TARGETS:
        raise UserError(f"--to {to} is unknown; choose one of {', '.join(TARGETS)}")
    if out is None and to != "demo":
        raise UserError("no place to write is given; add --out")
    if config is not None and source in config.experiments and not Path(source).exists():
        from anl.evaluation.runs import best_run

        source = best_run(config, source)
    run = source is not None and (Path(source) / "run.json").is_file()
    if (run or to == "demo") and config is None:
        raise UserError("exporting a run or the demo needs its profile; write params.yaml with `anl profile NAME`")
    if to == "folder":
        if not run:
            if source is not None and (Path(source) / CARD).is_file():
                raise UserError(f"{source} is a packaged detector already; copy the folder")
            what = "no run is named" if source is None else f"{source} is neither a run's folder (it has no run.json) nor an experiment"
            raise UserError(f"{what}; name a folder below runs/ or an experiment, or train one with `anl train`")
        card = pack(source, out, config=config, licence=licence, replace=replace)
        chosen = card.calibration
        text = f"{chosen.n_real} real and {chosen.n_generated} generated validation images"
        return [f"{out}: threshold {card.threshold:.3f}, from {text}"]
    if to == "onnx" and Path(out).suffix != ".onnx" and Path(out).is_file():
        raise UserError(f"--out {out} is a file that does not end in .onnx; name another one, or a folder")
    from anl.detect.detector import load_detector

    with tempfile.TemporaryDirectory() as temporary:
        if run:
            pack(source, Path(temporary) / "detector", config=config, licence=licence)
            source = Path(temporary) / "detector"
        detector = load_detector(source, revision=revision)
        if to == "demo":
            from anl.detect.demo import write_demo

            return write_demo(out or "book/_static/demo", config=config, detector=detector)
        from anl.detect.onnx_file import export_onnx

        path = Path(out) if Path(out).suffix == ".onnx" else Path(out) / "detector.onnx"
        difference = export_onnx(detector, path, int8)
        return [f"{path}: {path.stat().st_size:,} bytes; its scores are within {difference:.1e} of PyTorch's" +
                (" before its weights were stored in int8" if int8 else "")]
