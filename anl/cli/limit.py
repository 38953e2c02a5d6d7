"""The configuration of `anl --limit N`: a handful of images, to see whether a stage works."""

from pathlib import Path

__all__ = ["limited"]


def limited(config, count, making=()):
    """A configuration for at most `count` images per class, generator and split, and about as many training steps.

    Parameters
    ----------
    config : anl.config.Config
    count : int
        At least 2.
    making : sequence of str
        Which of the folders `benchmark.folder` and `run.models` the command writes: their names get the suffix `-limitN`.
        The others are read from a folder with that suffix if it exists.

    Returns
    -------
    Config
        Its profile is NAME-limit`count`, so that its results are separate. Every experiment has one seed.
    """
    steps, batch = max(2, count), 2 * count
    benchmark, training = config.benchmark, config.training

    def folder(key, path):
        other = f"{path.rstrip('/')}-limit{count}"
        return other if key in making or Path(other).exists() else path

    def fitting(sections):
        return {name: {"steps": min(section.steps, count), "batch_size": min(section.batch_size, batch)}
                for name, section in sections.items()}

    return config.override(
        profile=f"{config.profile}-limit{count}", seeds=config.seeds[:1],
        prior=fitting({"": config.prior})[""], other_priors=fitting(config.other_priors), models=fitting(config.models),
        benchmark={"folder": folder("benchmark.folder", benchmark.folder), "limit": count,
                   "samples": min(benchmark.samples, count), "val_most": min(benchmark.val_most, count),
                   "patches": {"train": 1, "val": 1, "test": 1},
                   "use": {split: min(most, count) for split, most in benchmark.use.model_dump().items()}},
        method={"scale_images": min(config.method.scale_images, count)},
        training={"steps": min(training.steps, steps), "batch_size": min(training.batch_size, batch), "pairs": 0,
                  "warmup_steps": min(training.warmup_steps, steps // 4),
                  "accumulate": min(training.accumulate, count)},
        experiments={name: _experiment(experiment, count, steps, batch, folder)
                     for name, experiment in config.experiments.items()},
        evaluation={"bootstrap": 20}, run={"models": folder("run.models", config.run.models)})


def _experiment(experiment, count, steps, batch, folder):
    """One experiment with the settings of its variants limited.

    Values of one setting stay different, because a configuration refuses two names for the same detector.
    """
    caps = {"training.steps": steps, "training.batch_size": batch, "training.pairs": max(1, count // 4),
            "training.warmup_steps": 0, "benchmark.use.train": count}
    changes = [*({key: item} for key, items in experiment.vary.items() for item in items),
               *experiment.variants.values()]
    given = {key: sorted({change[key] for change in changes if key in change}) for key in caps}

    def cap(key, value):
        if key == "benchmark.folder":
            return folder(key, value)
        return min(value, caps[key] + given[key].index(value)) if key in caps else value

    return {"vary": {key: [cap(key, item) for item in items] for key, items in experiment.vary.items()},
            "variants": {name: {key: cap(key, item) for key, item in change.items()}
                         for name, change in experiment.variants.items()}}
