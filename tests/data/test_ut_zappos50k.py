"""UT-Zappos50K: classes are types within categories, whatever the brand."""

import pytest
from further_archives import TYPES

from dml.data.sets import ut_zappos50k


def test_classes_are_types_within_categories(further):
    _, root = further("ut_zappos50k")
    index = ut_zappos50k.load(root=str(root), protocol="standard_full")
    assert index.class_names == tuple(TYPES[::3])
    for path, label, category in zip(index.paths, index.labels, index.superclasses, strict=True):
        assert path.startswith(index.class_names[label] + "/")
        assert ("Boots", "Sandals", "Shoes", "Slippers")[category] == path.split("/")[0]
    assert len(index.paths) == 59  # not what macOS leaves
    assert index.classes_of("train").tolist() == [0, 1, 2, 3]
    assert index.classes_of("test").tolist() == [4, 5, 6]


def test_square_images_will_do(further):
    _, root = further("ut_zappos50k", folder="ut-zap50k-images-square")
    index = ut_zappos50k.load(root=str(root))
    assert index.root == root / "ut-zap50k-images-square"


def test_a_type_that_is_missing_is_refused(further, problems_of):
    """A zip unpacked in part lacks whole folders."""
    _, root = further("ut_zappos50k")
    (root / "ut-zap50k-images" / "Slippers").rename(root.parent / "elsewhere")
    ((_, what),) = problems_of(ut_zappos50k.load, root=str(root))
    assert "should have all 59 images of 7 classes" in what


@pytest.mark.parametrize("table", ["ut-zap50k-data/meta-data.csv", "meta-data.csv"])
def test_the_tables_alone_are_recognised(tmp_path, problems_of, table):
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).touch()
    ((_, what),) = problems_of(ut_zappos50k.load, root=str(tmp_path))
    assert "not its images" in what
