"""Omniglot: every alphabet has a character01; background trains, evaluation is tested."""

import numpy as np
import pytest
from further_archives import SMALL
from PIL import Image

from dml.data.sets import omniglot


@pytest.fixture
def made(further):
    _, root = further("omniglot")
    return root


def test_a_character_belongs_to_its_alphabet(made):
    index = omniglot.load(root=str(made), protocol="standard_full")
    for split, folder in (
        ("train", "images_background"),
        ("test", "images_evaluation"),
    ):
        images = index.part(split)
        assert (len(images), images.num_classes) == SMALL["omniglot"][split]
        for path, label, alphabet in zip(
            images.relative_paths, images.labels, images.superclasses, strict=True
        ):
            part, alphabet_name, character, _ = path.split("/")
            assert part == folder
            assert images.class_names[label] == f"{alphabet_name}/{character}"
            assert (
                sorted({name.split("/")[0] for name in index.class_names})[alphabet]
                == alphabet_name
            )
    assert index.class_disjoint


def test_images_of_one_bit_are_read_in_black_and_white(made):
    index = omniglot.load(root=str(made))
    with Image.open(index.part("train").path(0)) as image:
        assert image.mode == "1"
        assert np.unique(np.asarray(image.convert("RGB"))).tolist() == [0, 255]


def test_half_of_it_is_refused(made, problems_of):
    (made / "omniglot-py" / "images_evaluation").rename(made.parent / "elsewhere")
    ((_, what),) = problems_of(omniglot.load, root=str(made))
    assert "lacks images_evaluation" in what


def test_a_drawing_that_is_missing_is_noticed(made, problems_of):
    next((made / "omniglot-py" / "images_evaluation").rglob("*.png")).unlink()
    ((_, what),) = problems_of(omniglot.load, root=str(made))
    assert "test 23 images of 6 classes" in what


def test_a_small_background_set_is_recognised(tmp_path, problems_of):
    (tmp_path / "images_background_small1").mkdir()
    ((_, what),) = problems_of(omniglot.load, root=str(tmp_path))
    assert "small background set" in what
