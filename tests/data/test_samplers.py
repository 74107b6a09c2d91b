"""Samplers: which images meet in a batch, whatever the classes, seeds and processes."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml import build
from dml.config.compose import compose_all
from dml.data.hierarchical import Hierarchical
from dml.data.index import ImageSet
from dml.data.samplers import PK, ClassBalanced, Random, WithReplacement
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


def stacked(sampler, epoch: int, *ranks: int) -> np.ndarray:
    return np.stack(list(sampler.batches(epoch, *ranks)))


def assert_one_batch_whatever_the_processes(make, epoch: int, world_size: int) -> np.ndarray:
    """The parts of all ranks together are the batch of one process, asked in any order; returns it."""
    whole = stacked(make(), epoch)
    assert whole.dtype == np.int64
    used = make()
    list(used.batches(epoch + 3))
    parts = [stacked(used, epoch, rank, world_size) for rank in reversed(range(world_size))]
    np.testing.assert_array_equal(np.concatenate(parts[::-1], axis=1), whole)
    return whole


seeds, worlds, epochs = st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 50)


@given(sizes=sizes, per_rank=st.integers(1, 9), world=worlds, seed=seeds, epoch=epochs)
@settings(max_examples=60, deadline=None)
def test_class_balanced_promises(sizes, per_rank, world, seed, epoch):
    labels, size = labels_of(sizes), per_rank * world

    def make():
        return ClassBalanced(labels, batch_size=size, seed=seed)

    batches = assert_one_batch_whatever_the_processes(make, epoch, world)
    assert batches.shape == (len(make()), size) == (max(1, len(labels) // size), size)
    if size <= len(sizes):
        assert all(len(set(labels[batch])) == size for batch in batches), (
            "no class twice in a batch"
        )
    if batches.size >= len(sizes):
        assert counts_within_one(labels[batches].ravel().tolist(), range(len(sizes)))
    for label in set(labels[batches].ravel().tolist()):
        images = batches[labels[batches] == label].tolist()
        assert counts_within_one(images, np.flatnonzero(labels == label).tolist())


def test_class_balanced_reaches_every_class_over_short_epochs():
    labels = labels_of([1, 50, 2, 3, 1, 9, 4])
    sampler = ClassBalanced(labels, batch_size=3, seed=0, batches_per_epoch=1)
    seen = [label for epoch in range(3) for label in labels[stacked(sampler, epoch)].ravel()]
    assert counts_within_one(seen, range(7))


@given(
    sizes=sizes,
    per_rank=st.integers(1, 4),
    k=st.integers(1, 4),
    world=worlds,
    seed=seeds,
    epoch=epochs,
)
@settings(max_examples=60, deadline=None)
def test_with_replacement_promises(sizes, per_rank, k, world, seed, epoch):
    labels, p = labels_of(sizes), per_rank * world

    def make():
        return WithReplacement(labels, classes_per_batch=p, images_per_class=k, seed=seed)

    batches = assert_one_batch_whatever_the_processes(make, epoch, world)
    assert batches.shape == (max(1, len(labels) // (p * k)), p * k)
    of_class = labels[batches].reshape(-1, k)
    assert (of_class == of_class[:, :1]).all(), "K images of one class follow one another"


def test_with_replacement_draws_classes_and_images_uniformly():
    """As its code does: a class of one image as often as one of nine, and both more than once a batch."""
    sizes = [1, 3, 9]
    labels = labels_of(sizes)
    sampler = WithReplacement(
        labels, classes_per_batch=4, images_per_class=2, seed=0, batches_per_epoch=6000
    )
    batches = stacked(sampler, 0)
    for label, size in enumerate(sizes):
        counts = np.array([(batches == i).sum() for i in np.flatnonzero(labels == label)])
        expected = batches.size / 3 / size
        assert len(counts) == size
        np.testing.assert_allclose(counts, expected, rtol=0.1)
    twice = [len(set(labels[batch])) < 4 for batch in batches]
    assert all(twice), "four draws from three classes"
    pairs = batches[labels[batches] == 1].reshape(-1, 2)
    np.testing.assert_allclose((pairs[:, 0] == pairs[:, 1]).mean(), 1 / 3, atol=0.05)


@st.composite
def hierarchies(draw):
    """Labels, super-classes and options that fit them."""
    world, groups, k = draw(worlds), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    per_group = draw(st.integers(1, 3))
    p = math.lcm(world, groups) * per_group
    above = draw(st.lists(st.integers(p // groups, p // groups + 4), min_size=groups, max_size=5))
    class_sizes = draw(st.lists(st.integers(1, 7), min_size=sum(above), max_size=sum(above)))
    labels = labels_of(class_sizes)
    superclasses = np.repeat(np.arange(len(above)) + 10, above)[labels]
    return {
        "labels": labels,
        "superclasses": superclasses,
        "classes_per_batch": p,
        "images_per_class": k,
        "superclasses_per_batch": groups,
        "batches_per_combination": draw(st.integers(1, 4)),
        "seed": draw(seeds),
        "small_classes": "repeat",
    }, world


@given(case=hierarchies(), epoch=epochs)
@settings(max_examples=60, deadline=None)
def test_hierarchical_promises(case, epoch):
    options, world = case
    labels, superclasses = options["labels"], options["superclasses"]
    p, k, groups = (
        options[name]
        for name in ("classes_per_batch", "images_per_class", "superclasses_per_batch")
    )
    batches = assert_one_batch_whatever_the_processes(lambda: Hierarchical(**options), epoch, world)
    names = sorted(set(superclasses.tolist()))
    chosen = Counter()
    for batch in batches:
        of_group = superclasses[batch].reshape(groups, -1)
        assert (of_group == of_group[:, :1]).all()
        chosen[tuple(sorted(of_group[:, 0].tolist()))] += 1
        of_class = labels[batch].reshape(p, k)
        assert (of_class == of_class[:, :1]).all()
        assert len(set(of_class[:, 0])) == p, "no class twice in a batch"
        for images in batch.reshape(p, k):
            size = int((labels == labels[images[0]]).sum())
            assert len(set(images)) == min(size, k), "no image twice while they last"
    expected = itertools.combinations(names, groups)
    assert chosen == dict.fromkeys(expected, options["batches_per_combination"])
    for name in names:  # all classes of a super-class before any again
        seen = labels[batches[superclasses[batches] == name]].reshape(-1, k)[:, 0].tolist()
        counts = Counter(seen)
        own = set(labels[superclasses == name].tolist())
        times = [counts[label] for label in own]
        assert max(times) - min(times) <= 1 or len(seen) < len(own)


def test_hierarchical_reaches_every_class_over_short_epochs():
    labels = labels_of([4] * 30)
    options = {
        "classes_per_batch": 4,
        "images_per_class": 2,
        "superclasses_per_batch": 2,
        "seed": 0,
    }
    sampler = Hierarchical(labels, labels % 3, batches_per_combination=1, **options)
    assert len(sampler) == 3
    seen = [c for e in range(3) for c in labels[stacked(sampler, e)].reshape(-1, 2)[:, 0]]
    assert counts_within_one(seen, range(30)), "12 of 10 classes in three epochs"


def hierarchical(**changed) -> Hierarchical:
    labels = labels_of([4] * 12)
    options = {"classes_per_batch": 4, "images_per_class": 2, "superclasses_per_batch": 2}
    options |= {
        "labels": labels,
        "superclasses": labels % 3,
        "batches_per_combination": 10,
        "seed": 0,
    }
    return Hierarchical(**options | changed)


@pytest.mark.parametrize(
    ("changed", "where", "what"),
    [
        (
            {"superclasses": None},
            "sampler=hierarchical",
            "this data names none.\nChoose data with super-classes (data=sop), or sampler=pk.",
        ),
        (
            {"superclasses": np.arange(48) % 5},
            "sampler=hierarchical",
            "12 training classes are in several super-classes: 0, 1, 2, 3, 4 and 7 more.",
        ),
        (
            {"superclasses_per_batch": 4},
            "sampler.superclasses_per_batch=4",
            "the training split has 3 super-classes.\nChoose at most 3.",
        ),
        (
            {"classes_per_batch": 5},
            "sampler.classes_per_batch=5",
            "is no multiple of sampler.superclasses_per_batch=2.\nChoose 6.",
        ),
        (
            {"classes_per_batch": 10},
            "sampler.classes_per_batch=10",
            "have fewer. Super-class (classes): 0 (4), 1 (4), 2 (4).\n"
            "Choose at most sampler.classes_per_batch=8, or sampler=pk.",
        ),
        (
            {"images_per_class": 5},
            "sampler.images_per_class=5",
            "12 training classes have fewer images.",
        ),
    ],
)
def test_hierarchical_says_what_does_not_fit(changed, where, what):
    with pytest.raises(ConfigurationError) as caught:
        hierarchical(**changed)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert what in problem.what


@pytest.mark.parametrize(
    "make",
    [
        hierarchical,
        lambda: WithReplacement(
            labels_of([4] * 8), classes_per_batch=4, images_per_class=2, seed=0
        ),
        lambda: ClassBalanced(labels_of([4] * 8), batch_size=4, seed=0),
    ],
)
def test_uneven_world_size(make):
    with pytest.raises(
        ConfigurationError, match=r"shared evenly by 3 processes(.|\n)*multiple of 3"
    ):
        next(make().batches(0, 0, 3))


def test_superclasses_reach_the_sampler_from_the_configuration():
    """The one place that builds samplers, and the message where the data has no super-classes."""
    labels = labels_of([4] * 40)
    images = ImageSet(Path(), labels.astype(str), labels, ("c",) * 40, np.arange(160))
    composed, problems = compose_all(["sampler=hierarchical", "sampler.classes_per_batch=8"])
    assert problems == []
    composed.config.data.num_train_classes = 40
    with pytest.raises(ConfigurationError, match="names none"):
        build.sampler(composed.config, images)
    sampler = build.sampler(composed.config, replace(images, superclasses=labels % 4))
    assert len(sampler) == 6 * 10
    assert sampler.batch_size == 32
