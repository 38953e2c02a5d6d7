"""Save and load trained networks as safetensors files that hold the settings to rebuild them."""

import json

from safetensors import safe_open
from safetensors.torch import save_file

from anl.io import UserError, atomic_file, printable, reason

__all__ = ["load", "round_to_half", "save"]

ENTRY = "network"
_FIX = "delete it and train the run again"


def save(network, path, half=False):
    """Write a network's weights, with its kind and settings in the file's metadata.

    Parameters
    ----------
    network : nn.Module
        Has `kind` (str, a key of the builders that `load` is given) and `settings` (JSON-able keyword arguments that
        rebuild it). A detector or a baseline.
    path : path-like
        The `.safetensors` file; it appears whole or not at all.
    half : bool
        Whether the weights of convolutions are stored in half precision; see `round_to_half`.
    """
    small = _convolutions(network) if half else {}
    weights = {key: (value.half() if key in small else value).detach().cpu().contiguous()
               for key, value in network.state_dict().items()}
    about = json.dumps({"kind": network.kind, "settings": network.settings}, sort_keys=True)
    with atomic_file(path) as temporary:
        # a single entry: safetensors writes several in no fixed order, so the files of equal runs would differ
        save_file(weights, temporary, metadata={ENTRY: about})


def round_to_half(network):
    """Round the weights of convolutions to half precision, in place; they stay in fp32. Returns the network."""
    for weights in _convolutions(network).values():
        weights.data.copy_(weights.data.half())
    return network


def _convolutions(network):
    """Name -> learned weights of convolutions; not fixed filters (buffers), which must sum to zero exactly."""
    return {name: weights for name, weights in network.named_parameters() if weights.ndim == 4}


def load(path, builders, device):
    """Rebuild a saved network in eval mode.

    Parameters
    ----------
    path : path-like
        A file that `save` wrote.
    builders : mapping of str to callable
        For each kind of network a function of the saved settings that returns an untrained one.
    device : torch.device or str
        Where the network is put.

    Raises
    ------
    UserError
        If the file is missing, truncated, not written by `save`, or holds a network of another kind or architecture.
        Pickles are never opened.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ENTRY])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
        kind, settings = about["kind"], about["settings"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; train the run with `anl train`") from None
    except KeyError as problem:
        raise UserError(f"{path} is not a saved network (no {problem} in its metadata); {_FIX}") from None
    except Exception as problem:
        raise UserError(f"{path} is not a saved network ({reason(problem)}); {_FIX}") from None
    if kind not in builders:
        raise UserError(f"{path} holds a network of kind '{printable(kind)[:40]}', not one of "
                        f"{', '.join(sorted(builders))}; {_FIX}")
    try:
        network = builders[kind](**settings)
        network.load_state_dict(weights)
    except UserError as problem:
        raise UserError(f"{path} cannot be rebuilt: {problem}") from None
    except Exception as problem:
        raise UserError(f"{path} does not hold the network that its settings describe ({reason(problem)}); "
                        f"{_FIX}") from None
    return network.to(device).eval()
