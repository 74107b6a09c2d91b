"""Samplers: which images meet in a batch, whatever the classes, seeds and processes."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data.samplers import PK, Random
from dml.errors import ConfigurationError

sizes = st.lists(st.integers(1, 9), min_size=2, max_size=25)


def labels_of(class_sizes: list[int], seed: int = 0) -> np.ndarray:
    """Labels in a shuffled order: nothing may depend on classes lying together."""
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    return np.random.default_rng(seed).permutation(labels)


@st.composite
def pk_cases(draw, small_classes: str):
    class_sizes = draw(sizes)
    k = draw(st.integers(1, 6))
    if small_classes == "error":
        class_sizes = [max(size, k) for size in class_sizes]
    usable = [s for s in class_sizes if s >= k] if small_classes == "skip" else class_sizes
    if len(usable) < 2:
        class_sizes += [k, k]
        usable += [k, k]
    return {
        "labels": labels_of(class_sizes, draw(st.integers(0, 99))),
        "classes_per_batch": draw(st.integers(1, len(usable))),
        "images_per_class": k,
        "seed": draw(st.integers(0, 2**32 - 1)),
        "batches_per_epoch": draw(st.none() | st.integers(1, 30)),
        "small_classes": small_classes,
    }


def counts_within_one(items, of) -> bool:
    """Whether all of `of` appear in `items` equally often, give or take one."""
    counts = Counter(items)
    seen = [counts[x] for x in of]
    return max(seen) - min(seen) <= 1


@pytest.mark.parametrize("small_classes", ["error", "skip", "repeat"])
@given(data=st.data(), epoch=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_pk_promises(small_classes, data, epoch):
    case = data.draw(pk_cases(small_classes))
    labels, p, k = case["labels"], case["classes_per_batch"], case["images_per_class"]
    sampler = PK(**case)
    batches = list(sampler.batches(epoch))
    assert len(batches) == len(sampler)
    assert all(len(batch) == sampler.batch_size == p * k for batch in batches)
    assert all(batch.dtype == np.int64 for batch in batches)

    sizes = np.bincount(labels)
    usable = np.flatnonzero(sizes >= k) if small_classes == "skip" else np.arange(len(sizes))
    drawn = {label: [] for label in usable}
    for batch in batches:
        of_batch = labels[batch].reshape(p, k)
        assert (of_batch == of_batch[:, :1]).all(), "K images of one class follow one another"
        assert len(set(of_batch[:, 0])) == p, "no class twice in a batch"
        for label, images in zip(of_batch[:, 0], batch.reshape(p, k), strict=True):
            counts = Counter(images.tolist())
            if sizes[label] >= k:
                assert len(counts) == k, "no image twice in a batch"
            else:
                assert len(counts) == sizes[label], "a repeated class shows all its images"
                assert max(counts.values()) - min(counts.values()) <= 1
            drawn[label] += images.tolist()
    for label, images in drawn.items():
        if sizes[label] >= k:
            of_class = np.flatnonzero(labels == label).tolist()
            assert counts_within_one(images, of_class), "all images before any comes again"
    if len(batches) * p >= len(usable):
        times = {label: len(images) // k for label, images in drawn.items()}
        assert max(times.values()) - min(times.values()) <= 1, "all classes before any comes again"
        assert min(times.values()) >= 1, "every class is reached"


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_pk_reaches_every_class_over_short_epochs(data):
    case = data.draw(pk_cases("repeat")) | {"batches_per_epoch": 1}
    sampler, labels = PK(**case), case["labels"]
    p, num_classes = case["classes_per_batch"], len(set(labels.tolist()))
    cycle = -(-num_classes // p)
    for start in (0, 3 * cycle):
        seen = [
            label
            for epoch in range(start, start + cycle)
            for batch in sampler.batches(epoch)
            for label in labels[batch].reshape(p, -1)[:, 0]
        ]
        assert counts_within_one(seen, range(num_classes))
        assert len(set(seen)) == num_classes


@given(data=st.data(), world_size=st.integers(1, 4), per_rank=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_pk_ranks_share_the_batch_of_one_process(data, world_size, per_rank):
    k = data.draw(st.integers(1, 4))
    p = world_size * per_rank
    class_sizes = data.draw(st.lists(st.integers(k, 9), min_size=p, max_size=p + 10))
    labels = labels_of(class_sizes)
    sampler = PK(labels, classes_per_batch=p, images_per_class=k, seed=data.draw(st.integers(0, 9)))
    whole = list(sampler.batches(2))
    parts = [list(sampler.batches(2, rank, world_size)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        of_ranks = [part[number] for part in parts]
        np.testing.assert_array_equal(np.concatenate(of_ranks), batch)
        classes = [set(labels[part].tolist()) for part in of_ranks]
        assert all(len(c) == per_rank for c in classes)
        assert sum(len(c) for c in classes) == len(set().union(*classes)), "classes are not split"


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_pk_is_a_function_of_seed_and_epoch(data):
    case = data.draw(pk_cases("repeat"))
    first, second = PK(**case), PK(**case)
    list(second.batches(7))  # what was asked before does not matter
    for epoch in (0, 1, 5):
        np.testing.assert_array_equal(
            np.stack(list(first.batches(epoch))), np.stack(list(second.batches(epoch)))
        )


def test_pk_epochs_and_seeds_differ():
    labels = np.repeat(np.arange(30), 10)
    options = {"classes_per_batch": 5, "images_per_class": 4}

    def first(seed, epoch):
        return next(PK(labels, seed=seed, **options).batches(epoch)).tolist()

    assert len({tuple(first(s, e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize(
    ("class_sizes", "p", "k", "length"),
    [
        ([20] * 100, 16, 4, 31),  # 2,000 images: n // (P K)
        ([2] * 100, 16, 2, 7),  # ceil(100 / 16) classes outweigh 200 // 32 images
        ([4] * 4, 4, 4, 1),
    ],
)
def test_pk_default_length(class_sizes, p, k, length):
    sampler = PK(labels_of(class_sizes), classes_per_batch=p, images_per_class=k, seed=0)
    assert len(sampler) == length


def test_pk_pairs_of_images_are_equally_likely():
    """Hands that straddle two shuffles of a class must not favour some pairs of its images."""
    labels = np.repeat(np.arange(2), 5)
    sampler = PK(labels, classes_per_batch=2, images_per_class=2, seed=0, batches_per_epoch=20_000)
    batches = np.stack(list(sampler.batches(0))).reshape(-1, 2)
    pairs = Counter(tuple(sorted(pair)) for pair in batches.tolist())
    counts = np.array(list(pairs.values()))
    assert len(counts) == 2 * 10
    assert counts.min() > 0.9 * counts.mean()
    assert counts.max() < 1.1 * counts.mean()


def test_pk_skip_counts_what_it_leaves_out():
    labels = labels_of([1, 3, 4, 5, 6])
    sampler = PK(labels, classes_per_batch=2, images_per_class=4, seed=0, small_classes="skip")
    assert (sampler.num_classes, sampler.skipped_classes, sampler.skipped_images) == (3, 2, 4)


def message(sampler, labels, **options) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        sampler(labels, seed=0, **options)
    return [(problem.where, problem.what) for problem in caught.value.problems]


def test_pk_names_small_classes():
    assert message(PK, labels_of([4, 3, 9, 1]), classes_per_batch=2, images_per_class=4) == [
        (
            "sampler.images_per_class=4",
            "2 training classes have fewer images. Class (images): 1 (3), 3 (1).\n"
            "Choose sampler.small_classes=skip or repeat, or a smaller number.",
        )
    ]


def test_pk_too_few_classes():
    assert message(PK, labels_of([20] * 5), classes_per_batch=16, images_per_class=4) == [
        (
            "sampler.classes_per_batch=16",
            "the training split has 5 classes.\n"
            "Choose at most sampler.classes_per_batch=5; for batches of the same size add "
            "sampler.images_per_class=13.",
        )
    ]
    options = {"classes_per_batch": 3, "images_per_class": 4, "small_classes": "skip"}
    assert message(PK, labels_of([2, 4, 4]), **options) == [
        (
            "sampler.classes_per_batch=3",
            "the training split has 2 classes once 1 small ones are skipped.\n"
            "Choose at most sampler.classes_per_batch=2; for batches of the same size add "
            "sampler.images_per_class=6.",
        )
    ]


def test_pk_reports_both_problems():
    found = message(PK, labels_of([1, 1, 5]), classes_per_batch=16, images_per_class=4)
    assert [where for where, _ in found] == [
        "sampler.images_per_class=4",
        "sampler.classes_per_batch=16",
    ]


def test_pk_uneven_world_size():
    sampler = PK(labels_of([4] * 8), classes_per_batch=6, images_per_class=4, seed=0)
    with pytest.raises(
        ConfigurationError, match=r"shared evenly by 4 processes(.|\n)*multiple of 4"
    ):
        next(sampler.batches(0, 0, 4))


def test_pk_is_fast_over_the_classes_of_stanford_online_products():
    """100,000 batches take about 3 s on one core; the bound leaves room for a busy machine."""
    class_sizes = np.random.default_rng(0).integers(2, 13, 11_318)
    sampler = PK(
        np.repeat(np.arange(11_318), class_sizes),
        classes_per_batch=32,
        images_per_class=4,
        seed=0,
        batches_per_epoch=10_000,
        small_classes="repeat",
    )
    start = time.process_time()
    assert sum(1 for _ in sampler.batches(0)) == 10_000
    assert time.process_time() - start < 2.0


@given(
    n=st.integers(2, 200),
    per_rank=st.integers(1, 8),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_random_promises(n, per_rank, world_size, seed):
    size = per_rank * world_size
    if n < size:
        n = size
    sampler = Random(np.zeros(n, np.int64), batch_size=size, seed=seed)
    batches = list(sampler.batches(3))
    assert len(batches) == len(sampler) == n // size
    flat = np.concatenate(batches)
    assert len(set(flat.tolist())) == len(flat), "no image twice in an epoch"
    assert 0 <= flat.min() <= flat.max() < n
    parts = [list(sampler.batches(3, rank, world_size)) for rank in range(world_size)]
    for number, batch in enumerate(batches):
        np.testing.assert_array_equal(np.concatenate([part[number] for part in parts]), batch)
    np.testing.assert_array_equal(np.stack(batches), np.stack(list(sampler.batches(3))))


def test_random_too_few_images():
    assert message(Random, np.zeros(10, np.int64), batch_size=64) == [
        (
            "sampler.batch_size=64",
            "the training split has 10 images.\nChoose at most sampler.batch_size=10.",
        )
    ]
    with pytest.raises(ConfigurationError, match="multiple of 3"):
        next(Random(np.zeros(10, np.int64), batch_size=4, seed=0).batches(0, 0, 3))
