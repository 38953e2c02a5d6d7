"""From files to batches: decoded, cropped, processed and re-encoded in worker processes, so that a GPU need not wait."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anl import seeds
from anl.data import augment, views
from anl.data.formats import encoded
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.paper.protocol import pair_batch
from anl.paper.store import Files


def crop(pixels, side, place=(0.5, 0.5)):
    """uint8 (side, side, 3) cut from (H, W, 3): never resized, mirrored at the edges where the image is smaller.

    place: where it is cut, vertically and horizontally, from 0 (first pixel) to 1 (last).
    """
    height, width = pixels.shape[:2]
    lack = [max(0, side - length) for length in (height, width)]
    if any(lack):
        # `symmetric` repeats itself as often as needed, `reflect` likewise but not for one pixel
        pixels = np.pad(pixels, (*((missing // 2, missing - missing // 2) for missing in lack), (0, 0)), mode="symmetric")
        height, width = pixels.shape[:2]
    top, left = (round(share * (length - side)) for share, length in zip(place, (height, width)))
    return np.ascontiguousarray(pixels[top:top + side, left:left + side])


class TrainingBatches(Dataset):
    """Item k is this process's share of batch k: {"x": uint8 (2 P, side, side, 3), reals first, "label": (2 P,), "untouched":
    bool (2 P,), images whose noise is asked for, "files", "whole": numbers of images and of untouched ones of the whole batch}.

    rows: as training_rows gives them, P reals and P fakes. config: the profile's training. A crop, a flip and a processing
    are drawn by the seed, the batch and the place in it. rank, world: this process among those that share a batch, of which
    the first ones have a pair more where it cannot be shared evenly. pictures: their pixels (anl.paper.store), by default the
    files'.
    """

    def __init__(self, rows, side, config, seed, rank=0, world=1, pictures=None):
        self.files, self.side, self.config, self.seed = rows["file"].tolist(), side, config, seed
        self.pictures = Files(self.files) if pictures is None else pictures
        self.rank, self.world = rank, world

    def __len__(self):
        return self.config.steps

    def __getitem__(self, step):
        pairs, size = len(self.files) // 2, self.config.batch_size // 2
        real, fake = pair_batch(pairs, size, self.seed, step)
        plan = augment.plan(np.arange(size), self.config, self.seed, step)  # both images of a pair alike
        mine = range(self.rank, size, self.world)
        images, files = [], []
        for label, chosen in ((0, real), (1, pairs + fake)):
            for place in mine:
                rng = seeds.generator(self.seed, "crop", step, place, label)
                image = crop(self.pictures[chosen[place]], self.side, rng.random(2))
                image = image[:, ::-1] if rng.random() < 0.5 else image
                images.append(image if plan[place] is None else augment.process(np.ascontiguousarray(image), *plan[place]))
                files.append(self.files[chosen[place]])
        untouched = [plan[place] is None for place in mine] * 2
        return {"x": np.stack(images), "label": np.repeat([0.0, 1.0], len(mine)).astype(np.float32),
                "untouched": np.array(untouched), "files": files,
                "whole": (2 * size, 2 * sum(what is None for what in plan.values()))}


class TestImages(Dataset):
    """Item i: the centre crop of picture i in one view, uint8 (side, side, 3). pictures: pixels by row (anl.paper.store). drawn: how view `matched` encodes each row
    (anl.data.formats.drawn_from_reals), needed for that view alone."""

    __test__ = False  # pytest: this tests nothing

    def __init__(self, pictures, side, view="raw", drawn=None):
        self.pictures, self.side, self.view, self.drawn = pictures, side, view, drawn

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, place):
        return self.treated(self.pictures[place], place)

    def treated(self, pixels, place):
        """Pixels (H, W, 3) of row `place` as the view has them."""
        image = crop(pixels, self.side)
        if self.view == "matched":
            return encoded(image[None], [self.drawn[place]])[0]
        return views.apply(self.view, image)


def training_loader(batches, wanted, workers):
    """The batches `wanted` (a range) of TrainingBatches, in order, decoded ahead by `workers` processes."""
    return _raising(DataLoader(_Handed(batches), batch_size=None, sampler=wanted, num_workers=workers, collate_fn=_as_tensors,
                               pin_memory=torch.cuda.is_available()))


def test_loader(images, starts, batch_size, workers):
    """Tensors (B, 3, side, side) in [-1, 1] of TestImages: the batches that begin at `starts`, in order, the last one of the
    images as small as it comes."""
    chosen = [range(start, min(start + batch_size, len(images))) for start in starts]
    return _raising(DataLoader(_Handed(images), batch_sampler=chosen, num_workers=workers, collate_fn=_stacked,
                               pin_memory=torch.cuda.is_available()))


class _Handed(Dataset):
    """A data set whose refusals are handed on as items: raised in a worker, they would arrive with its traceback as words."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        try:
            return self.items[place]
        except UserError as refusal:
            return refusal


def _raising(loader):
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _as_tensors(item):
    return item if isinstance(item, UserError) else {**item, "x": to_tensor(item["x"]), "label": torch.from_numpy(item["label"]),
            "untouched": torch.from_numpy(item["untouched"])}


def _stacked(items):
    refused = [item for item in items if isinstance(item, UserError)]
    return refused[0] if refused else to_tensor(np.stack(items))
