"""What every part of `anl bench` writes: its tables, and the machine that they were measured on."""

import os
import platform
import resource
from pathlib import Path

import torch

from anl.files import write_csv, write_json
from anl.machine import peak_memory_mb


def write(folder, tables, repeats, device="cpu", **about):
    """Print each table and write it to `folder`/NAME.csv, and folder/machine.json; returns the folder.

    tables: {name: DataFrame}, or pairs of them as they are measured, so that a run that is cut short keeps what it has. about:
    more to say of the machine.
    """
    folder = Path(folder)
    for name, table in tables.items() if isinstance(tables, dict) else tables:
        write_csv(folder / f"{name}.csv", table.to_dict("records"))
        print(f"\n{name}\n{table.round(3).to_string(index=False)}", flush=True)
    write_json(folder / "machine.json", {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(), "cores": os.cpu_count(),
        "torch": torch.__version__, "python": platform.python_version(), "repeats": repeats,
        "load": os.getloadavg()[0] / os.cpu_count(),  # of the last minute, for each core: above 1, others wanted them too
        "peak_memory_mb": peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF)), **about})
    return folder
