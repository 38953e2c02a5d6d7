import numpy as np
import pytest
from PIL import Image

from anl.data import duplicates, views
from tests.conftest import photograph


def distance(one, other):
    return (one ^ other).bit_count()


def resized(pixels, factor):
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((int(width * factor), int(height * factor)), Image.BICUBIC))


def test_compressed_and_resized_copies_keep_their_hash_nearly():
    photos = [resized(photograph(seed, 20, 24), 8) for seed in range(20)]  # something at all frequencies that count
    hashes = [duplicates.perceptual_hash(photo) for photo in photos]
    for change in (lambda p: views.jpeg(p, 75), lambda p: resized(p, 0.5)):
        kept = [distance(h, duplicates.perceptual_hash(change(photo))) for h, photo in zip(hashes, photos)]
        assert np.mean(np.array(kept) <= duplicates.NEAR) > 0.9
    apart = [distance(hashes[i], hashes[j]) for i in range(20) for j in range(i)]
    assert min(apart) > duplicates.NEAR + 5


def test_hash_is_64_bits_and_flat_images_have_one():
    assert 0 <= duplicates.perceptual_hash(photograph(0, 40, 40)) < 2**64
    assert duplicates.perceptual_hash(np.full((5, 9, 3), 128, np.uint8)) >= 0


@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_all_those_of_a_full_comparison(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 60, np.uint64)
    close = [h ^ np.uint64(sum(1 << int(b) for b in rng.choice(64, bits, replace=False))) for h in base for bits in (1, 3, 4)]
    hashes = np.unique(np.concatenate([base, np.array(close, np.uint64)]))
    first, second, bits, left_out = duplicates.near_pairs(hashes)
    wanted = {(i, j): distance(int(hashes[i]), int(hashes[j])) for i in range(len(hashes)) for j in range(i + 1, len(hashes))}
    wanted = {pair: d for pair, d in wanted.items() if d <= 3}
    assert dict(zip(zip(first.tolist(), second.tolist()), bits.tolist())) == wanted and left_out == 0 and len(wanted) >= 120


def test_a_crowd_is_cut_and_told(monkeypatch):
    monkeypatch.setattr(duplicates, "CROWD", 10)
    hashes = np.arange(100, dtype=np.uint64) << np.uint64(48)  # alike in three bands
    *_, left_out = duplicates.near_pairs(hashes)
    assert left_out == 3 * sum(range(1, 90))


def test_no_hashes_no_pairs_and_more_bits_than_bands_are_refused():
    first, second, _, left_out = duplicates.near_pairs(np.zeros(0, np.uint64))
    assert len(first) == len(second) == left_out == 0
    with pytest.raises(ValueError, match="at most 3 bits"):
        duplicates.near_pairs([1, 2], 4)


def test_groups_number_what_is_repeated():
    assert duplicates.groups(np.array([5, 9, 5, 7, 9, 1])).tolist() == [0, 1, 0, -1, 1, -1]
