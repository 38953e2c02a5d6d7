import numpy as np
import pandas as pd
from PIL import Image

from anl.data import duplicates, processing
from tests.conftest import photograph


def resized(pixels, factor):
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((int(width * factor), int(height * factor)), Image.BICUBIC))


def test_compressed_and_resized_copies_keep_their_hash_nearly():
    photos = [resized(photograph(seed, 20, 24), 8) for seed in range(20)]  # with detail at all frequencies that count
    hashes = [duplicates.perceptual_hash(photo) for photo in photos]
    for change in (lambda pixels: processing.jpeg(pixels, 75), lambda pixels: resized(pixels, 0.5)):
        kept = [(own ^ duplicates.perceptual_hash(change(photo))).bit_count() for own, photo in zip(hashes, photos)]
        assert np.mean(np.array(kept) <= duplicates.NEAR) > 0.9
    assert min((hashes[i] ^ hashes[j]).bit_count() for i in range(20) for j in range(i)) > duplicates.NEAR + 5
    assert 0 <= duplicates.perceptual_hash(np.full((5, 9, 3), 128, np.uint8)) < 2**64


def test_near_pairs_equal_a_full_comparison():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 60, np.uint64)
    close = [own ^ np.uint64(sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)))
             for own in base for count in (1, 3, 4)]
    hashes = np.unique(np.concatenate([base, np.array(close, np.uint64)]))
    first, second, bits, left_out = duplicates.near_pairs(hashes)
    wanted = {(i, j): (int(hashes[i]) ^ int(hashes[j])).bit_count() for j in range(len(hashes)) for i in range(j)}
    wanted = {pair: distance for pair, distance in wanted.items() if distance <= 3}
    assert dict(zip(zip(first.tolist(), second.tolist()), bits.tolist())) == wanted and left_out == 0 and len(wanted) >= 120


def test_limits_of_the_search(monkeypatch):
    monkeypatch.setattr(duplicates, "CROWD", 10)
    *_, left_out = duplicates.near_pairs(np.arange(100, dtype=np.uint64) << np.uint64(48))  # equal in three bands
    assert left_out == 3 * sum(range(1, 90))
    first, second, _, left_out = duplicates.near_pairs(np.zeros(0, np.uint64))
    assert len(first) == len(second) == left_out == 0


def test_near_groups_join_chains_and_leave_others_alone():
    hashes = pd.Series([0b0, 2**60 - 1, 0b111, 0b111111, 2**60 - 1, 0xAAAA << 40], dtype="uint64")  # 0 - 2 - 3 is a chain
    assert duplicates.near_groups(hashes).tolist() == [0, 1, 0, 0, 1, 5]
    assert duplicates.near_groups(pd.Series([None, None], dtype="UInt64")).tolist() == [0, 1]
