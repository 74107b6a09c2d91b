"""How far each loss is from its float64 reference, and pytorch-metric-learning's (PML) figure beside ours."""

import math
from pathlib import Path

import loss_cases
import pytorch_metric_learning
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from dml.losses.circle import circle_rows
from dml.losses.pairs import cosine_similarity

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
EQUAL_GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])  # PML's Smooth-AP refuses others
CLASSES, DIM = 4, 16
# loss -> [(options of ours that differ from the shipped ones, PML's call as shown and run, its reducer)]
PML = {
    "angular": [({}, "losses.AngularLoss(45)", "MeanReducer")],
    "arcface": [({}, "losses.ArcFaceLoss(4, 16, margin=math.degrees(0.5))", "MeanReducer")],
    "circle": [
        ({}, "losses.CircleLoss()", "AvgNonZeroReducer"),
        ({}, "losses.CircleLoss(reducer=reducers.MeanReducer())", "MeanReducer"),
    ],
    "contrastive": [({}, "losses.ContrastiveLoss()", "AvgNonZeroReducer")],
    "cosface": [({}, "losses.CosFaceLoss(4, 16)", "MeanReducer")],
    "fast_ap": [({}, "losses.FastAPLoss(10)", "MeanReducer")],
    "lifted_structure": [
        (
            {},
            "losses.LiftedStructureLoss(distance=distances.LpDistance(normalize_embeddings=False))",
            "MeanReducer",
        ),
        ({}, "losses.LiftedStructureLoss()", "MeanReducer"),
        (
            {"variant": "generalized"},
            "losses.GeneralizedLiftedStructureLoss("
            "distance=distances.LpDistance(normalize_embeddings=False))",
            "MeanReducer",
        ),
    ],
    "margin": [({}, "losses.MarginLoss(beta=1.2)", "DivisorReducer")],
    "multi_similarity": [
        ({}, "losses.MultiSimilarityLoss()", "MeanReducer"),
        ({"epsilon": 3.0}, "losses.MultiSimilarityLoss()", "MeanReducer"),
    ],
    "n_pair": [
        ({"l2_weight": 0.0}, "losses.NPairsLoss()", "MeanReducer"),
        (
            {"l2_weight": 0.0},
            "losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))",
            "MeanReducer",
        ),
    ],
    "norm_softmax": [({}, "losses.NormalizedSoftmaxLoss(4, 16)", "MeanReducer")],
    "nt_xent": [({}, "losses.NTXentLoss(0.1)", "MeanReducer")],
    "proxy_anchor": [({}, "losses.ProxyAnchorLoss(4, 16)", "DivisorReducer")],
    "proxy_nca": [
        ({}, "losses.ProxyNCALoss(4, 16, softmax_scale=9)", "MeanReducer"),
        (
            {"positive_in_denominator": True},
            "losses.ProxyNCALoss(4, 16, softmax_scale=9)",
            "MeanReducer",
        ),
    ],
    "ranked_list": [({}, "losses.RankedListLoss(margin=0.4, Tn=10, alpha=1.2)", "MeanReducer")],
    "smooth_ap": [({}, "losses.SmoothAPLoss()", "MeanReducer")],
    "snr_contrastive": [
        (
            {"mean_weight": 0.0},
            "losses.SignalToNoiseRatioContrastiveLoss("
            "distance=distances.SNRDistance(normalize_embeddings=False))",
            "AvgNonZeroReducer",
        )
    ],
    "soft_triple": [
        (
            {},
            "losses.SoftTripleLoss(4, 16, weight_reg_weight=0.2, "
            "weight_regularizer=regularizers.SparseCentersRegularizer(4, 10))",
            "MeanReducer",
        )
    ],
    "sphereface": [({"blend": 0.0}, "losses.SphereFaceLoss(4, 16)", "MeanReducer")],
    "sub_center_arcface": [
        (
            {},
            "losses.SubCenterArcFaceLoss(num_classes=4, embedding_size=16, "
            "margin=math.degrees(0.5), sub_centers=3)",
            "MeanReducer",
        )
    ],
    "sup_con": [({}, "losses.SupConLoss(0.1)", "AvgNonZeroReducer")],
    "triplet": [
        (
            {},
            "losses.TripletMarginLoss(0.2, distance=distances.LpDistance(power=2))",
            "AvgNonZeroReducer",
        ),
        (
            {"variant": "soft", "squared_distances": False},
            "losses.TripletMarginLoss(0, smooth_loss=True)",
            "AvgNonZeroReducer",
        ),
    ],
    "tuplet_margin": [({}, "losses.TupletMarginLoss(margin=math.degrees(0.1))", "MeanReducer")],
}
NAMES = {
    "math": math,
    "losses": losses,
    "distances": distances,
    "reducers": reducers,
    "regularizers": regularizers,
    "miners": miners,
}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal numbers that every machine draws alike."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bound(error: float) -> str:
    """A power of ten well above the error; coarse, so that it is the same on every machine."""
    return next(f"1e{k}" for k in (-12, -9, -6, -3, 0, 9) if 3 * error <= 10.0**k)


def deviations(file) -> tuple[float, float]:
    """Largest deviation of value and gradients from the reference, at the shipped values.

    Relative to the reference's own size where that is above 1, over `loss_cases.drawn_batches()`.
    """
    shipped = file.shipped()
    options = next(v for v in file.reference.VARIANTS if all(v[k] == shipped[k] for k in v))
    of_value = of_gradient = 0.0
    for _, x, labels in loss_cases.drawn_batches():
        loss = file.make(**options).double()
        ours = dict(loss.named_parameters())
        copies = {name: p.detach().clone().requires_grad_() for name, p in ours.items()}
        value, gradients = loss_cases.value_and_gradients(
            lambda x, loss=loss, labels=labels: loss(x, labels), x, ours.values()
        )
        expected, references = loss_cases.value_and_gradients(
            lambda x, labels=labels, copies=copies: file.reference.loss(
                x, labels.tolist(), **options, **copies
            ),
            x,
            copies.values(),
        )
        of_value = max(of_value, relative(value, expected))
        pairs = zip(gradients, references, strict=True)
        of_gradient = max(of_gradient, *(relative(a, b) for a, b in pairs))
    return of_value, of_gradient


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, over the largest expected number or 1."""
    return ((ours - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def beside(file, options: dict, call: str) -> tuple[float, float]:
    """(ours, PML's) on the batch of `LABELS`, with the same class centres where there are any."""
    x = drawn(len(LABELS), DIM, seed=0)
    loss = file.make(dim=DIM, num_classes=CLASSES, **options).double()
    theirs = eval(call, NAMES).double()  # the text of the table is what is run
    with torch.no_grad():
        for name in ("proxies", "W", "fc"):
            if hasattr(loss, "proxies") and isinstance(getattr(theirs, name, None), torch.Tensor):
                centres = drawn(*loss.proxies.shape, seed=1) / DIM**0.5
                loss.proxies.copy_(centres)
                getattr(theirs, name).copy_(centres if name == "proxies" else centres.T)
        labels = EQUAL_GROUPS if file.name == "smooth_ap" else LABELS
        return loss(x, labels).item(), theirs(x, labels).item()


def four_circles() -> dict[str, float]:
    """Circle loss as read by four public codes, on the batch of `LABELS`, margin 0.4 and scale 80."""
    margin, scale = 0.4, 80.0
    x = drawn(len(LABELS), DIM, seed=0)
    s = cosine_similarity(x, x)
    positives = (LABELS[:, None] == LABELS) & ~torch.eye(len(LABELS), dtype=torch.bool)
    negatives = LABELS[:, None] != LABELS
    rows = circle_rows(s, positives, negatives, margin, scale)
    has_positive = positives.any(dim=1)

    def soft_maximum(values, mask):
        return values.where(mask, -math.inf).logsumexp(1)

    weight_p, weight_n = (1 + margin - s).clamp(min=0), (s + margin).clamp(min=0)
    of_positives = soft_maximum(-scale * weight_p * (s - (1 - margin)), positives)
    of_negatives = soft_maximum(scale * weight_n * (s - margin), negatives)
    apart = (F.softplus(of_positives) + F.softplus(of_negatives))[has_positive]
    once = torch.ones_like(positives).triu(1)
    s_p, s_n = s[positives & once], s[negatives & once]
    wrong_p, wrong_n = (1 + margin + s_p).clamp(min=0), (s_n - margin).clamp(min=0)
    pooled = (-scale * wrong_p * (s_p - (1 - margin))).logsumexp(0) + (
        scale * wrong_n * (s_n - margin)
    ).logsumexp(0)
    return {
        "paper": rows[has_positive].mean().item(),
        "all_rows": rows.mean().item(),
        "apart": apart.mean().item(),
        "wrong_signs": F.softplus(pooled).item(),
    }


def differences() -> DictConfig:
    """Loss -> {text, test}."""
    return OmegaConf.load(Path(__file__).parent / "differences.yaml")


def link_to(test: str) -> str:
    """`file::name` as a Markdown link from docs/."""
    path, name = test.split("::")
    return f"[`{name}`](../{path})"


def page(files, paper_of) -> str:
    """docs/conformance.md. `paper_of(file)` is the Markdown of a loss's reference."""
    version = ".".join(pytorch_metric_learning.__version__.split(".")[:2])
    circles = four_circles()
    notes = differences()
    batches = len(loss_cases.drawn_batches())
    lines = [
        "# Conformance",
        "",
        "Generated by `python docs/build.py`; do not edit.",
        "",
        "Every loss here is compared with a second implementation, written from the paper's formula as",
        "plain loops over float64 numbers, gradients by autograd: [tests/reference](../tests/reference).",
        "",
        "## Against the formula",
        "",
        f"Value, and gradients for the embeddings and for the loss's own parameters, over {batches} drawn",
        "batches (unequal classes, singletons, duplicates, one class only, no pair ...) at the shipped",
        "values. A deviation is the largest difference, over the largest number of the reference where",
        "that is above 1; shown is a bound in coarse powers of ten (1e-12, 1e-9, 1e-6), so that it is the",
        "same on every machine.",
        "Other values of the options are compared in",
        "[test_references.py](../tests/losses/test_references.py).",
        "",
        "| loss | paper | value off by less than | gradient off by less than |",
        "|---|---|---|---|",
    ]
    for file in files:
        value, gradient = (bound(error) for error in deviations(file))
        lines.append(
            f"| [{file.name}](losses/{file.name}.md) | {paper_of(file)} | {value} | {gradient} |"
        )
    lines += [
        "",
        "## Beside pytorch-metric-learning",
        "",
        f"One batch: {len(LABELS)} standard normal vectors of {DIM} dimensions in float64 (seed 0), labels",
        f"`{' '.join(str(v) for v in LABELS.tolist())}`, and where a loss has class centres, the same for",
        f"both. (For smooth_ap they are `{' '.join(str(v) for v in EQUAL_GROUPS.tolist())}`: PML's refuses",
        f"groups of unequal size.) The call is what was run, with PML {version}; where the figures differ,",
        "the section below says why.",
        "",
        "| loss | our options, where not the shipped | PML's call | its reducer | ours | PML | |",
        "|---|---|---|---|---|---|---|",
    ]
    by_name = {file.name: file for file in files}
    for name, rows in sorted(PML.items()):
        for options, call, reducer in rows if name in by_name else []:
            ours, theirs = beside(by_name[name], options, call)
            given = ", ".join(f"`{key}={str(v).lower()}`" for key, v in options.items())
            same = "equal" if abs(ours - theirs) <= 1e-4 * abs(ours) + 1e-9 else "**differs**"
            lines.append(
                f"| [{name}](losses/{name}.md) | {given} | `{call}` | {reducer} "
                f"| {ours:.4g} | {theirs:.4g} | {same} |"
            )
    lines += ["", "## Where public implementations differ", ""]
    for name, note in sorted(notes.items()):
        lines.append(f"- **{name}**: {note['text']} ({link_to(note['test'])})")
    lines += [
        "",
        "### Four circle losses",
        "",
        "The batch above, margin 0.4, scale 80, and the formula as read by public code. The figures are of",
        "short formulas in [docs/conformance.py](conformance.py), not of the other projects' code itself.",
        "",
        "| reading | value |",
        "|---|---|",
        f"| the paper, mean over the anchors that have a positive (ours, PML) | {circles['paper']:.2f} |",
        "| the same, mean over all rows, also those without a positive (PML with MeanReducer) "
        f"| {circles['all_rows']:.2f} |",
        "| softplus of positives and negatives each for itself, then added (TensorFlow Similarity) "
        f"| {circles['apart']:.2f} |",
        "| weights `1 + m + s_p` and `s_n - m` for `1 + m - s_p` and `s_n + m`, all pairs in one sum "
        f"(Quaterion) | {circles['wrong_signs']:.2f} |",
        "",
        "A learning rate or a margin found with one of these does not carry over to another.",
    ]
    return "\n".join(lines) + "\n"
