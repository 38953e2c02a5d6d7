"""Every random draw in the project is a pure function of the base seed and a name."""

import zlib

import numpy as np


def generator(seed, *names):
    """A numpy generator for the draw called `names` (strings or integers) under the base `seed`.

    Different names give independent streams (spawn keys of `SeedSequence`), so a stage can be rerun, resumed or reordered
    without changing the draws of another one.
    """
    keys = [zlib.crc32(str(name).encode()) for name in names]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(keys)))


def torch_generator(seed, *names):
    """A torch generator on the CPU for the draw called `names` under the base `seed`; see `generator`."""
    import torch  # not at the top: many modules that draw random numbers do not need torch

    return torch.Generator().manual_seed(int(generator(seed, *names).integers(2**62)))


def fix(seed, *names):
    """Seed torch's global generator, from which initial weights are drawn."""
    import torch

    torch.manual_seed(int(generator(seed, *names).integers(2**62)))
