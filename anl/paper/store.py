"""Where pixels come from: the published files, or copies of their bytes in Arrow files, which `datasets` maps or streams.

A million small files are slow to open on a disk that machines share; a few thousand large ones are not. Arrow files hold
the published bytes, so that nothing downstream can tell the difference. A training, which draws images anew in every epoch,
maps them into memory; scoring, which goes through them once, streams them, each process and each worker its own files.
"""

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, IterableDataset

from anl import processes
from anl.data.decode import Refused, decode, decode_bytes, read_bytes
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import identity, read_json, whole_file, write_json

STORAGES = ("files", "arrow")
SHARD_BATCHES = 16  # batches of scoring in a file: no batch goes over the edge of one, whoever reads it
SCHEMA = pa.schema([("row", pa.int64()), ("path", pa.string()), ("image", pa.binary())])
GROUP = 8  # images of a record batch: what a reader holds at once


class Files:
    """Item i: the pixels of file i, uint8 (H, W, 3)."""

    def __init__(self, files):
        self.files = list(files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, place):
        return decode(self.files[place])


class Mapped:
    """Item i: the pixels of row `rows[i]` of Arrow files that are mapped into memory, uint8 (H, W, 3)."""

    def __init__(self, shards, rows):
        self.shards, self.rows, self.data = shards, list(rows), None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        if self.data is None:  # in the worker that reads: a map is not handed from process to process
            self.data = _mapped(self.shards)
        row = self.data[self.rows[place]]
        return _decoded(row["image"], row["path"])


class Streamed(IterableDataset):
    """(row, what `treat` makes of its pixels and row) of every row of `shards`, in order; of several workers each takes every
    n-th file, which `datasets` sees to."""

    def __init__(self, shards, treat):
        self.shards, self.treat = shards, treat

    def __iter__(self):
        for row in _streamed(self.shards) if self.shards else ():
            try:
                yield row["row"], self.treat(_decoded(row["image"], row["path"]), row["row"])
            except UserError as refusal:
                yield row["row"], refusal


def pictures(settings, name, rows):
    """The pixels of a set's rows (anl.paper.protocol.rows_of), item by item, from where the profile keeps them."""
    if settings.storage == "files":
        return Files(rows["file"])
    return Mapped(shards(settings, name, "train"), rows["number"])


def stream(settings, name, treat):
    """Yield (rows, tensor (B, 3, side, side)) of a set's test images: this process's share, decoded ahead by workers.

    treat: (pixels, row) -> uint8 (side, side, 3).
    """
    import torch

    me = processes.here()
    mine = shards(settings, name, "test")[me.index::me.count]
    for batch in DataLoader(Streamed(mine, treat), batch_size=settings.evaluation.batch_size, collate_fn=_rows_and_images,
                            num_workers=min(settings.training.workers, len(mine)), pin_memory=torch.cuda.is_available()):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _rows_and_images(items):
    refused = [image for _, image in items if isinstance(image, UserError)]
    return refused[0] if refused else ([row for row, _ in items], to_tensor(np.stack([image for _, image in items])))


def shards(settings, name, split):
    """Paths of the Arrow files of a set's images, `train` (with its validation images) or `test`, written if they are not there
    yet. Raises UserError naming an image that cannot be read."""
    return processes.agreed(lambda: _packed(settings, name, split))


def _packed(settings, name, split):
    from anl.paper.protocol import rows_of

    rows = rows_of(settings, name, "test") if split == "test" else rows_of(settings, name).query("split != 'test'")
    size = SHARD_BATCHES * settings.evaluation.batch_size
    key = identity({"images": rows["sha256"].tolist(), "size": size})
    folder = settings.manifest(name).with_suffix(".arrow")
    paths = [folder / f"{split}-{start // size:05d}.arrow" for start in range(0, len(rows), size)]
    about = folder / f"{split}.json"
    if about.is_file() and read_json(about)["key"] == key and all(path.is_file() for path in paths):
        return [str(path) for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    for path, start in zip(paths, range(0, len(rows), size)):
        _write(path, rows.iloc[start:start + size])
    write_json(about, {"key": key, "images": len(rows)})
    return [str(path) for path in paths]


def _write(path, rows):
    with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
        for start in range(0, len(rows), GROUP):
            part = rows.iloc[start:start + GROUP]
            images = []
            for file in part["file"]:
                try:
                    images.append(read_bytes(file))
                except Refused as problem:
                    raise UserError(f"{file} is refused: {problem}; replace or remove it, then index the set again") from None
            stream.write_batch(pa.record_batch([part["number"].tolist(), part["path"].tolist(), images], schema=SCHEMA))


def _mapped(paths):
    import datasets  # takes a second to import

    return datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])


def _streamed(paths):
    import datasets

    return datasets.load_dataset("arrow", data_files=paths, split="train", streaming=True)


def _decoded(data, path):
    try:
        return decode_bytes(data)
    except Refused as problem:
        raise UserError(f"{path} is refused: {problem}; replace or remove it, then index the set again") from None


def once(shares, count):
    """Logits (count,) of [(rows, logits)] of all processes. Raises UserError if a row was lost or stands twice."""
    rows = np.concatenate([np.asarray(part) for share in shares for part, _ in share]) if any(shares) else np.zeros(0, int)
    if len(rows) != count or len(np.unique(rows)) != count:
        raise UserError(f"{len(shares)} processes made {len(rows)} scores of {count} images; run the command again")
    found = np.empty(count)
    found[rows] = np.concatenate([logits for share in shares for _, logits in share])
    return found
