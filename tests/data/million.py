"""Made-up manifests of any size; as a program: a million rows written, queried and sampled, with time and memory.

    python -m tests.data.million [ROWS]
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from anl.data import duplicates, manifest

GENERATORS = np.array(["real", "adm", "glide", "sd14", "biggan", "midjourney"])
FAMILIES = np.array(["real", "pixel diffusion", "pixel diffusion", "latent diffusion", "gan", "undisclosed"])
SPLITS = np.array(["train", "test"])


def rows(start, count, seed=0):
    """A table of `count` made-up rows; half of them real."""
    rng = np.random.default_rng([seed, start])
    label = rng.integers(0, 2, count)
    which = np.where(label == 1, rng.integers(1, len(GENERATORS), count), 0)
    digests = rng.bytes(32 * count).hex()
    side = rng.choice([128, 256, 512], count)
    split = SPLITS[(rng.random(count) < 0.3).astype(int)]
    return pa.table({
        "path": [f"{GENERATORS[w]}/{s}/{start + i:07d}.png" for i, (w, s) in enumerate(zip(which, split))],
        "sha256": [digests[64 * i:64 * i + 64] for i in range(count)], "label": label, "generator": GENERATORS[which],
        "family": FAMILIES[which], "dataset": ["made up"] * count, "split": split, "source_real": ["imagenet"] * count,
        "width": side, "height": side, "format": np.where(label == 1, "PNG", "JPEG"),
        "jpeg_quality": pa.array(rng.integers(60, 100, count), mask=label == 1),
        "bytes": rng.integers(1000, 900_000, count), "phash": rng.integers(0, 2**64, count, np.uint64)}).cast(manifest.SCHEMA)


def peak_memory():
    """Bytes at most held by this process. Not getrusage's: that counts what the process it was forked from held."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(count=1_000_000):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.parquet"
        mark = time.monotonic()

        def lap(what):
            nonlocal mark
            now = time.monotonic()
            print(f"{what:42} {now - mark:6.2f} s, peak {peak_memory() / 2**30:.2f} GiB", flush=True)
            mark = time.monotonic()

        with manifest.writer(path, folder) as append:
            for start in range(0, count, manifest.ROW_GROUP):
                append(rows(start, min(manifest.ROW_GROUP, count - start)))
        lap(f"write {count} rows (made up as they go)")
        print(manifest.counts(path).to_string(index=False))
        lap("counts by split, generator, label")
        print(len(manifest.read(path, split="test", generator=["adm", "real"])), "rows")
        lap("read split test, generators adm and real")
        each = min(1000, count // 100)
        print(len(manifest.sample(path, each, 0, split="train")), "rows")
        lap(f"balanced sample, {each} a generator")
        looks = manifest.read(path, ["phash"])["phash"].to_numpy()
        first, *_ = duplicates.near_pairs(np.unique(looks))
        print(len(first), "pairs")
        lap("near-duplicates among all hashes")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"peak_memory_bytes": peak_memory(), "processor_seconds": used.ru_utime + used.ru_stime}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
