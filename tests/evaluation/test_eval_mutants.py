"""Known mistakes of published evaluators, made in a copy of ours: the check named for each must fail.

A check that passes on a mutant would let the mistake into the real thing.
"""

import importlib
import itertools
import shutil
import sys
from pathlib import Path

import eval_checks
import pytest

import dml.evaluation

SOURCE = Path(dml.evaluation.__file__).parent
NUMBER = itertools.count()

# mistake: (file, text, replacement, check that must fail)
MUTANTS = {
    # the query's own image
    "first result dropped instead of the query": (
        "inputs.py",
        "return Inputs(values, labels, None, None, ids, np.arange(len(values)))",
        "return Inputs(values, labels, None, None, ids, np.roll(np.arange(len(values)), 1))",
        "self_is_excluded_by_id",
    ),
    "query left among its positives": (
        "neighbours.py",
        "scores[has_self, (self.layout.self_column[at:stop] - offset)[has_self]] = -np.inf",
        "pass",
        "self_is_excluded_by_id",
    ),
    "ids taken for positions": (
        "inputs.py",
        "self_column = _positions(ids, other_ids)",
        "self_column = np.arange(len(values))",
        "self_is_excluded_wherever_it_sits",
    ),
    "query under another label left in": (
        "neighbours.py",
        "inside[row, own[row]] = -torch.inf",
        "pass",
        "self_under_another_label_is_excluded",
    ),
    "absent id excludes the last item": (
        "inputs.py",
        "np.where(among[candidate] == wanted, candidate, -1)",
        "candidate",
        "ids_absent_from_the_gallery_exclude_nothing",
    ),
    # ties
    "optimistic ties": (
        "neighbours.py",
        "tied=levels.tied + levels.hits,",
        "tied=levels.hits,",
        "collapse_scores_chance",
    ),
    "pessimistic ties": (
        "neighbours.py",
        "above=levels.above + levels.before,",
        "above=levels.above + levels.before + levels.tied,",
        "collapse_scores_chance",
    ),
    "pairs in doubt forgotten": (
        "neighbours.py",
        "if not doubts:",
        "if True:",
        "near_ties_are_told_apart",
    ),
    "float32 products believed": (
        "scores.py",
        "low, high = (centre - width).astype(np.float32), (centre + width).astype(np.float32)",
        "low = high = centre.astype(np.float32)",
        "near_ties_are_told_apart",
    ),
    "ties drawn with replacement": (
        "metrics.py",
        "missed[todo] *= np.maximum(tied[todo] - many[todo] - step, 0) / (tied[todo] - step)",
        "missed[todo] *= 1 - many[todo] / tied[todo]",
        "collapse_scores_chance",
    ),
    "positives of a tie group taken for independent": (
        "metrics.py",
        "slope = (ranks.hits - 1) / np.maximum(ranks.tied - 1, 1)",
        "slope = ranks.hits / ranks.tied",
        "ties_are_averaged_over_their_orders",
    ),
    "vectors not on a grid": (
        "scores.py",
        ".round_()",
        "",
        "sums_are_exact",
    ),
    # definitions
    "MAP@R divided by the class size": (
        "metrics.py",
        "return precision_sum(ranks, ranks.relevant) / ranks.relevant",
        "return precision_sum(ranks, ranks.relevant) / (ranks.relevant + 1)",
        "perfect_is_one_for_every_class_size",
    ),
    "MAP@R divided by the hits": (
        "metrics.py",
        "return precision_sum(ranks, ranks.relevant) / ranks.relevant",
        "return precision_sum(ranks, ranks.relevant) / np.maximum(hits_at_k(ranks, ranks.relevant), 1e-9)",
        "hand_table",
    ),
    "precision divided by the items there are": (
        "metrics.py",
        "return hits_at_k(ranks, k) / k",
        "return hits_at_k(ranks, k) / np.minimum(k, ranks.gallery)",
        "hand_table",
    ),
    "results from the second on": (
        "metrics.py",
        "return np.clip(per_level - ranks.above, 0, ranks.tied)",
        "return np.clip(per_level - ranks.above - 1, 0, ranks.tied)",
        "hand_table",
    ),
    "ranks not known down to R": (
        "neighbours.py",
        "limit = np.maximum(limit, relevant[query])",
        "limit = limit + 1",
        "each_metric_alone_equals_all_together",
    ),
    "lone queries count as misses": (
        "retrieval.py",
        "np.full(len(order), metric.lone)",
        "np.zeros(len(order))",
        "lone_queries_are_left_out_and_counted",
    ),
    "lone queries not counted": (
        "retrieval.py",
        "lone = int((relevant == 0).sum())",
        "lone = 0",
        "lone_queries_are_left_out_and_counted",
    ),
    "mean over classes": (
        "retrieval.py",
        'if average == "macro":',
        "if True:",
        "mean_is_over_queries",
    ),
    "labels as float32": (
        "inputs.py",
        "return array.astype(np.int64)",
        "return array.astype(np.float32).astype(np.int64)",
        "whole_range_of_int64_labels",
    ),
    "labels as float64": (
        "inputs.py",
        "return array.astype(np.int64)",
        "return array.astype(np.float64)",
        "whole_range_of_int64_labels",
    ),
    "macro taken for micro": (
        "retrieval.py",
        'if average == "macro":',
        "if False:",
        "macro_is_the_mean_over_classes",
    ),
    "mINP from the first positive": (
        "metrics.py",
        "last = np.append(ranks.start[1:], len(ranks.above)) - 1",
        "last = ranks.start",
        "hand_table",
    ),
    "mINP from the front of a tie group": (
        "metrics.py",
        "relevant / (above + tied + 1 - place)",
        "relevant / (above + place)",
        "ties_are_averaged_over_their_orders",
    ),
    "MAP@K divided by R": (
        "metrics.py",
        "return precision_sum(ranks, k) / np.minimum(k, ranks.relevant)",
        "return precision_sum(ranks, k) / ranks.relevant",
        "hand_table",
    ),
    "mean of quotients for a quotient of means": (
        "legacy.py",
        "for level in cut.tolist():",
        "for level in []:",
        "ties_are_averaged_over_their_orders",
    ),
    # pairs, clusters, the space
    "tied pairs lost": (
        "verification.py",
        "pairs.tied / 2",
        "pairs.tied",
        "collapse_shows_in_the_whole_set",
    ),
    "tied pairs accepted": (
        "verification.py",
        "pairs.above + pairs.tied > allowed",
        "pairs.above > allowed",
        "collapse_shows_in_the_whole_set",
    ),
    "a pair more accepted than allowed": (
        "verification.py",
        "math.floor(",
        "math.ceil(",
        "threshold_accepts_at_most_its_share",
    ),
    "an item paired with itself": (
        "pairs.py",
        "scores[row, own[row]] = -torch.inf",
        "pass",
        "drawn_sets_equal_the_reference",
    ),
    "pairs of one class among the different ones": (
        "pairs.py",
        "scores.masked_fill(same, -torch.inf)",
        "scores",
        "drawn_sets_equal_the_reference",
    ),
    "only the nearest pairs counted": (
        "pairs.py",
        "while done < same:",
        "while not parts:",
        "drawn_sets_equal_the_reference",
    ),
    "inner products of queries on scales of their own": (
        "scores.py",
        "if not self.dot:",
        "if True:",
        "drawn_sets_equal_the_reference",
    ),
    "clusters by the order of the data": (
        "clusters.py",
        "rows = rows[order]",
        "order = np.arange(len(rows))",
        "order_of_the_data_changes_nothing",
    ),
    "spectrum not of the unit sphere": (
        "retrieval.py",
        'if similarity != "cosine":',
        "if False:",
        "drawn_sets_equal_the_reference",
    ),
    "alignment over pairs": (
        "diagnostics.py",
        "means += (distance.sum(1)[count > 0] / count[count > 0]).tolist()",
        "means += distance[kept].tolist()",
        "drawn_sets_equal_the_reference",
    ),
    "components of uncentred data": (
        "diagnostics.py",
        "rows - centre",
        "rows",
        "drawn_sets_equal_the_reference",
    ),
    # numbers
    "embeddings cut to half precision": (
        "scores.py",
        "self.values[self.order[part]].float()",
        "self.values[self.order[part]].half().float()",
        "drawn_cases_equal_the_reference",
    ),
    "normalised in half precision": (
        "scores.py",
        "values[part] = (row if scale is None else row.mul_(scale[part, None])).float()",
        "values[part] = row.bfloat16().float()",
        "half_precision_becomes_float32_first",
    ),
    "distances from the origin": (
        "scores.py",
        "centre = _centre(sets[-1])",
        "centre = torch.zeros(sets[0].values.shape[1])",
        "common_offset_changes_no_distance",
    ),
    "always cosine": (
        "scores.py",
        'if similarity == "cosine":',
        "if True:",
        "similarity_is_the_one_asked_for",
    ),
    "inner products for distances": (
        "scores.py",
        'self.euclidean, self.dot = similarity == "euclidean", similarity == "dot"',
        'self.euclidean, self.dot = False, similarity == "dot"',
        "similarity_is_the_one_asked_for",
    ),
    "lengths after rounding not made good": (
        "scores.py",
        "lengths / _safe(squares).sqrt()",
        "torch.ones_like(squares)",
        "alike_vectors_tie",
    ),
    # depth
    "lists believed beyond their end": (
        "neighbours.py",
        "known = (low > end[row])",
        "known = (low > -np.inf)",
        "deep_positives_are_counted",
    ),
    "counting stops one early": (
        "neighbours.py",
        "self.above[part] + self.before[part] < self.limit[part]",
        "self.above[part] + self.before[part] < self.limit[part] - 1",
        "each_metric_alone_equals_all_together",
    ),
}


def mutant_of(folder, file, text, replacement):
    """A copy of the package, under a name of its own, with one text replaced."""
    name = f"mutant_evaluation_{next(NUMBER)}"
    copy = folder / name
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob("*.py"):
        source = path.read_text().replace("dml.evaluation", name)
        if path.name == file:
            assert text in source, f"{file} no longer says {text!r}: bring this mutant up to date"
            source = source.replace(text, replacement)
        path.write_text(source)
    return importlib.import_module(name)


@pytest.mark.parametrize("mistake", MUTANTS)
def test_mutant_is_noticed(mistake, tmp_path, monkeypatch):
    file, text, replacement, check = MUTANTS[mistake]
    monkeypatch.syspath_prepend(tmp_path)
    loaded = set(sys.modules)
    package = mutant_of(tmp_path, file, text, replacement)
    try:
        with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
            getattr(eval_checks, check)(package)
    finally:
        for name in set(sys.modules) - loaded:
            if name.startswith("mutant_evaluation"):
                del sys.modules[name]


def test_an_unchanged_copy_passes(tmp_path, monkeypatch):
    """The mutants fail for their mistake, not for being copies."""
    monkeypatch.syspath_prepend(tmp_path)
    package = mutant_of(tmp_path, "metrics.py", "", "")
    for check in {check for *_, check in MUTANTS.values()}:
        getattr(eval_checks, check)(package)
