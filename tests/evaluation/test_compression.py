"""Compressed codes: what is compared is what Faiss stores, and quality is that of an exact search."""

import numpy as np
import pytest

from dml.compression_report import compressed
from dml.embedding_files import Embedded
from dml.evaluation import evaluate
from dml.evaluation.compression import CODE_SIZES, codecs, compress, decoded, signs, unit


@pytest.fixture(scope="module")
def clusters():
    """(vectors [60, 16], labels): ten classes of six, separable but not trivially."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(10, 16))
    labels = np.repeat(np.arange(10), 6)
    return (centres[labels] + 0.6 * random.normal(size=(60, 16))).astype(np.float32), labels


@pytest.fixture(scope="module")
def train():
    return np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def rows(clusters, train):
    return {row.method: row for row in compress(*clusters, None, None, train)}


def test_sizes_are_those_of_the_codes(rows):
    assert {name: row.bytes for name, row in rows.items()} == {
        "float32": 64,
        "fp16": 32,
        "int8": 16,
        "PQ16": 16,
        "OPQ16": 16,
        "PQ8": 8,
        "OPQ8": 8,
        "binary": 2,
    }


def test_uncompressed_row_is_the_plain_evaluation(rows, clusters):
    plain = evaluate(*clusters, metrics=("recall@1", "map@r"))
    assert rows["float32"].recall_at_1 == pytest.approx(plain["recall@1"], abs=1e-12)
    assert rows["float32"].map_at_r == pytest.approx(plain["map@r"], abs=1e-12)
    assert all(row.queries_per_second > 0 for row in rows.values())


def test_binary_codes_are_compared_by_hamming_distance(rows, clusters, train):
    """With a literal count of different signs, ties averaged; 16 bits tie often."""
    vectors, labels = clusters
    bits = unit(vectors) >= np.median(unit(train), axis=0)
    expected = []
    for i in range(len(bits)):
        distance = [(bits[i] != bits[j]).sum() for j in range(len(bits)) if j != i]
        same = [labels[i] == labels[j] for j in range(len(bits)) if j != i]
        nearest = [hit for hit, d in zip(same, distance, strict=True) if d == min(distance)]
        expected.append(np.mean(nearest))
    assert rows["binary"].recall_at_1 == pytest.approx(np.mean(expected), abs=1e-12)


def test_int8_decodes_to_the_nearest_of_256_steps(clusters, train):
    """Steps between the least and the largest training value of each dimension."""
    vectors, _ = clusters
    codec = next(codec for codec in codecs(16, len(train)) if codec.method == "int8")
    codec.index.train(unit(train))
    inside = np.clip(unit(vectors), unit(train).min(0), unit(train).max(0))
    _, stored = decoded(codec, inside, inside)
    step = (unit(train).max(0) - unit(train).min(0)) / 255
    assert (np.abs(stored - inside) <= step).all()


def test_signs_are_in_the_order_of_the_bits():
    codes = np.array([[0b00000001, 0b10000000]], dtype=np.uint8)
    assert signs(codes)[0].tolist() == [1] + [-1] * 14 + [1]


def test_few_training_embeddings_leave_product_quantisers_out():
    names = [codec.method for codec in codecs(128, 100)]
    assert not [name for name in names if "PQ" in name]
    assert "ITQ8" in names
    assert CODE_SIZES[0] == 64  # of 512 bits, more than 99 principal components
    assert "ITQ64" not in names


def test_table_and_plot_are_written(clusters, train, tmp_path):
    """Queries and gallery apart: the halves of each class."""
    vectors, labels = clusters
    embedded = Embedded(vectors, labels, np.arange(60), np.arange(60) % 2 == 0)
    rows = compressed(embedded, Embedded(train, np.zeros(300), np.arange(300)), "codes", tmp_path)
    assert (tmp_path / "codes.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "codes.csv").read_text().splitlines()
    assert lines[0] == "method,bytes,recall_at_1,map_at_r,queries_per_second"
    assert len(lines) == len(rows) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.csv", "codes.png"]
