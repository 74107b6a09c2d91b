"""YAML, schema and code of data sets and samplers name the same options."""

import dataclasses
import importlib
import inspect

import pytest
from omegaconf import OmegaConf

from dml.config import data
from dml.config.compose import compose_all, config_dir
from dml.errors import ConfigurationError

# Options that are read by others than `load`.
NOT_FOR_LOAD = {"num_train_classes", "on_bad_image", "recall_k", "small_classes"}
NOT_FOR_LOAD |= {"cache", "cache_dir"}
FILES = {
    "data": {"glyphs": data.DataSchema, "digits": data.DataSchema, "folder": data.OwnData}
    | {"csv": data.CsvData, "cub200": data.SplitData, "cars196": data.SplitData}
    | {"sop": data.Sop, "inshop": data.InShop, "vehicleid": data.VehicleId}
    | dict.fromkeys(data.FURTHER, data.SplitData),
    "sampler": {"pk": data.PKSampler, "pairs": data.PKSampler, "random": data.RandomSampler}
    | {"hierarchical": data.HierarchicalSampler, "class_balanced": data.ClassBalancedSampler}
    | {"with_replacement": data.WithReplacementSampler},
}
CASES = [(group, name, schema) for group, names in FILES.items() for name, schema in names.items()]


@pytest.mark.parametrize(("group", "name", "schema"), CASES)
def test_yaml_schema_and_code_agree(group, name, schema):
    node = OmegaConf.load(config_dir() / group / f"{name}.yaml")
    keys = {str(key) for key in node} - {"defaults"}
    assert keys == {field.name for field in dataclasses.fields(schema)}
    module, _, attribute = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    given_by_builder = {"labels", "superclasses", "seed"} if group == "sampler" else set()
    parameters = set(inspect.signature(target).parameters) - given_by_builder
    read_by_others = NOT_FOR_LOAD if group == "data" else set()
    assert keys - {"_target_"} - read_by_others == parameters


@pytest.mark.parametrize(("group", "name", "schema"), CASES)
def test_files_compose_into_their_schema(group, name, schema):
    composed, problems = compose_all([f"{group}={name}"])
    assert problems == []
    assert OmegaConf.get_type(composed.config, group) is schema


@pytest.mark.parametrize(
    ("schema", "options", "where", "message"),
    [
        (data.PKSampler, {"classes_per_batch": 1}, "classes_per_batch=1", "must be at least 2."),
        (data.PKSampler, {"images_per_class": 1}, "images_per_class=1", "has no positive"),
        (data.PKSampler, {"small_classes": "drop"}, "small_classes=drop", "error, skip, repeat"),
        (data.PKSampler, {"batches_per_epoch": 0}, "batches_per_epoch=0", "must be at least 1."),
        (data.RandomSampler, {"batch_size": 1}, "batch_size=1", "must be at least 2."),
        (data.OwnData, {"test_fraction": -0.5}, "test_fraction=-0.5", "must lie in (0, 1)."),
        (data.OwnData, {"test_fraction": 1.5}, "test_fraction=1.5", "must lie in (0, 1)."),
        (data.OwnData, {"val_fraction": 1.5}, "val_fraction=1.5", "0 makes no validation split"),
        (data.OwnData, {"on_bad_image": "ignore"}, "on_bad_image=ignore", "error, skip"),
        (data.OwnData, {"recall_k": []}, "recall_k=[]", "different whole numbers from 1 on"),
        (data.OwnData, {"recall_k": [0, 1]}, "recall_k=[0, 1]", "different whole numbers"),
        (data.OwnData, {"recall_k": [1, 1]}, "recall_k=[1, 1]", "different whole numbers"),
    ],
)
def test_out_of_range(schema, options, where, message):
    legal = {
        data.PKSampler: {"classes_per_batch": 16, "images_per_class": 4, "batches_per_epoch": None}
        | {"small_classes": "error"},
        data.RandomSampler: {"batch_size": 64},
        data.OwnData: {"test_fraction": 0.5, "val_fraction": 0.0, "seed": 0, "recall_k": [1]}
        | {"on_bad_image": "error"},
    }[schema]
    schema(**legal)
    with pytest.raises(ConfigurationError) as caught:
        schema(**legal | options)
    (problem,) = caught.value.problems
    assert problem.where == f"{schema.__name__}.{where}"
    assert message in problem.what


def test_only_pk_promises_positives():
    assert data.PKSampler.promises_positives
    assert not data.RandomSampler.promises_positives


def test_batch_size_follows_from_the_sampler():
    pk = data.PKSampler("", 16, 4, None, "error")
    assert pk.images_per_batch == 64
    assert data.RandomSampler("", 32).images_per_batch == 32
