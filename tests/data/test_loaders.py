"""Batches do not depend on how they are read: workers, resuming, or an unreadable file."""

import numpy as np
import pytest
import torch
from PIL import Image

from dml.data.augment import Augmentation
from dml.data.decode import open_rgb
from dml.data.images import BadImages
from dml.data.index import ImageIndex, ImageSet
from dml.data.loaders import EpochBatches, eval_loader, train_loader
from dml.data.preprocess import Preprocess
from dml.data.samplers import PK
from dml.errors import RunError

PREPROCESS = Preprocess(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def images(tmp_path) -> ImageSet:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        paths.append(f"{number}.png")
    labels = np.repeat(np.arange(6), 4)
    index = ImageIndex(
        "made", tmp_path, np.array(paths), labels, tuple("abcdef"), {"train": np.arange(24)}
    )
    return index.part("train")


def loader(images, workers, seed=0):
    sampler = PK(images.labels, classes_per_batch=3, images_per_class=2, seed=seed)
    plain = dict.fromkeys(("degrees", "translate", "shear"), 0)
    transform = Augmentation(
        PREPROCESS,
        resize=None,
        scale=(0.2, 1.0),
        ratio=(0.75, 1.33),
        flip=0.5,
        color_jitter=0.4,
        rand_augment=9,
        erase=0.5,
        **plain,
    )
    return train_loader(images, sampler, transform, seed, workers)


def epoch(batches, number):
    batches.batch_sampler.set_epoch(number)
    return [(batch.images, batch.ids) for batch in batches]


def assert_same(one, other):
    assert len(one) == len(other)
    for (images, ids), (others, other_ids) in zip(one, other, strict=True):
        assert torch.equal(ids, other_ids)
        assert torch.equal(images, others)


def test_workers_change_nothing(images):
    """Augmentation is seeded by (seed, epoch, batch, slot), so its order of drawing does not matter."""
    assert_same(epoch(loader(images, 0), 3), epoch(loader(images, 2), 3))


def test_epochs_and_seeds_differ(images):
    first = epoch(loader(images, 0), 0)
    assert not torch.equal(first[0][0], epoch(loader(images, 0), 1)[0][0])
    assert not torch.equal(first[0][0], epoch(loader(images, 0, seed=1), 0)[0][0])


def test_resuming_goes_on_where_it_stopped_and_only_once(images):
    whole = epoch(loader(images, 0), 2)
    resumed = loader(images, 0)
    assert isinstance(resumed.batch_sampler, EpochBatches)
    resumed.batch_sampler.resume_at(2 * len(whole) + 1)
    assert_same([(b.images, b.ids) for b in resumed], whole[1:])
    assert_same(epoch(resumed, 2), whole)


def test_augmenting_leaves_the_random_state_alone(images):
    """Else dropout in the main process would depend on whether workers read the images."""
    before = torch.get_rng_state()
    loader(images, 0).dataset[(0, 123)]
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_pixels_and_the_encoders_are_those_of_the_preprocessing(images):
    """Loaders send bytes, the encoder normalises: together the published preprocessing, no more."""
    (batch,) = eval_loader(images, PREPROCESS, 24, 0)
    assert batch.images.dtype == torch.uint8
    for position in (0, 23):
        expected = PREPROCESS(open_rgb(images.path(position)))
        assert torch.equal(PREPROCESS.normalize(batch.images)[position], expected)


def test_an_unreadable_image_is_named(images):
    path = images.path(5)
    path.write_bytes(path.read_bytes()[:60])
    batches = list(eval_loader(images, PREPROCESS, 8, 0))
    with pytest.raises(RunError, match=r"5\.png.*\n.*on_bad_image=skip"):
        BadImages("error").check(batches[0])


def test_unreadable_images_are_skipped_and_counted_when_asked(images):
    images.path(5).write_bytes(b"not an image")
    images.path(6).unlink()
    bad = BadImages("skip")
    ids = []
    for batch in eval_loader(images, PREPROCESS, 8, 2):
        bad.check(batch)
        assert len(batch.images) == len(batch.labels) == len(batch.ids)
        ids += batch.ids.tolist()
    assert ids == [i for i in range(24) if i not in (5, 6)]
    assert sorted(bad.skipped) == [str(images.path(5)), str(images.path(6))]


def test_a_batch_of_unreadable_images_is_empty(images):
    for position in range(4):
        images.path(position).write_bytes(b"")
    first = next(iter(eval_loader(images, PREPROCESS, 4, 0)))
    assert len(first.labels) == 0
    assert len(first.unreadable) == 4
