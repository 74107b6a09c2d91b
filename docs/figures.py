"""The figure of a loss: its value and slope against one similarity, everything else held still.

One anchor has one positive and one negative; for losses with proxies these are its own class's proxy
and another class's. Each is turned about the anchor on its own axis, so that one cosine changes and the
other stays. The points drawn are written into the SVG (as CSV, in its description), because they, and
not the bytes of the drawing, are what can be compared between two versions of a library.
"""

import html
import io
import re
from dataclasses import dataclass

import matplotlib
import matplotlib.figure
import torch
from torch import Tensor, nn

HELD_POSITIVE, HELD_NEGATIVE = 0.6, 0.3
# A little off round numbers, where hinges have their kinks; closer where the two cosines meet.
SIMILARITIES = torch.cat(
    [
        torch.linspace(-0.9773, 0.9741, 49, dtype=torch.float64),
        HELD_POSITIVE + torch.linspace(-0.0353, 0.0367, 13, dtype=torch.float64),
        HELD_NEGATIVE + torch.linspace(-0.0353, 0.0367, 13, dtype=torch.float64),
    ]
).sort()[0]
# Options of which a figure may show several values, the most telling first.
VARIED = (
    "margin",
    "negative_margin",
    "degrees",
    "base",
    "rank_temperature",
    "temperature",
    "scale",
    "gamma",
    "bins",
    "label_smoothing",
    "center_weight",
)
# Three orthogonal directions of mean 0: the signal-to-noise distance is about variances.
AXES = torch.tensor(
    [[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1], [1, 1, 1, 1]], dtype=torch.float64
).div(2)
COLOURS = ("#7fb3d5", "#1b4f72", "#e08214")


@dataclass(frozen=True)
class Figure:
    """What is drawn: `columns` of equal length by heading, as text of four significant digits."""

    columns: dict[str, list[str]]

    def csv(self) -> str:
        """One line per point."""
        rows = zip(*self.columns.values(), strict=True)
        return "\n".join(",".join(row) for row in [tuple(self.columns), *rows])


def varied_values(file) -> tuple[str, list]:
    """(option, values): its lower bound or half the shipped value, the shipped one, and twice that."""
    shipped = file.shipped()
    name = next((name for name in VARIED if name in shipped), "")
    if not name:
        return "", []
    value, meta = shipped[name], file.schema.__dataclass_fields__[name].metadata
    low, high = meta["low"], meta["high"]
    from_bound = low >= 0 and not meta["open"][0] and "margin" in name
    values = [low if from_bound else value / 2, value, 2 * value]
    if "temperature" in name and value <= 0.02:  # half of that looks the same
        values = [value, 5 * value, 20 * value]
    if isinstance(value, int):
        values = [int(v) for v in values]
    return name, [v for v in values if v < high or (v == high and not meta["open"][1])]


def embedding_length(file) -> float:
    """1, or for losses that see the length a usual one: 4 between embeddings, 10 for classifiers."""
    if file.schema.keeps_length:
        return 10.0
    return 1.0 if file.schema.geometry == "cosine" else 4.0


def value_at(file, loss: nn.Module, s_positive: Tensor, s_negative: Tensor) -> Tensor:
    """The loss of the anchor, as a function of its two cosines."""
    length = embedding_length(file)
    anchor = length * AXES[:1]
    around = [
        s * AXES[0] + (1 - s * s).sqrt() * axis
        for s, axis in ((s_positive, AXES[1]), (s_negative, AXES[2]))
    ]
    label = torch.zeros(1, dtype=torch.int64)
    proxies = {name: p for name, p in loss.named_parameters() if name.endswith("proxies")}
    if proxies:
        moved = {}
        for name, parameter in proxies.items():
            per_class = len(parameter) // 2
            moved[name] = torch.stack([v for v in around for _ in range(per_class)])
        for name, parameter in loss.named_parameters():
            if name.endswith("centers"):  # at the proxy's direction, as long as the embedding
                moved[name] = length * torch.stack(around)
            elif name not in proxies:
                moved[name] = parameter.detach()
        return torch.func.functional_call(loss, moved, (anchor, label))
    others = length * torch.stack(around)
    return loss(anchor, label, reference=others, reference_labels=torch.arange(2))


def curve(file, loss: nn.Module, which: str) -> tuple[list[str], list[str]]:
    """(values, slopes) over SIMILARITIES of the positive or the negative."""
    values, slopes = [], []
    for s in SIMILARITIES:
        s = s.clone().requires_grad_()
        pair = (s, torch.tensor(HELD_NEGATIVE).double())
        if which == "negative":
            pair = (torch.tensor(HELD_POSITIVE).double(), s)
        value = value_at(file, loss, *pair)
        (slope,) = torch.autograd.grad(value, s)
        values.append(f"{value.item():.4g}")
        slopes.append(f"{abs(slope.item()):.4g}")
    return values, slopes


def figure_of(file) -> Figure:
    """The points of a loss's figure. `file` is a LossFile of tests/losses/loss_cases.py."""
    columns = {"cosine": [f"{s:.4f}" for s in SIMILARITIES.tolist()]}
    name, options = varied_values(file)
    for option in options or [None]:
        given = {} if option is None else {name: option}
        loss = file.make(dim=4, num_classes=2, **given).double()
        label = f"{name}={option:g}" if given else "shipped values"
        for which in ("positive", "negative"):
            values, slopes = curve(file, loss, which)
            columns[f"{label} value {which}"] = values
            columns[f"{label} slope {which}"] = slopes
    return Figure(columns)


def draw(file, figure: Figure) -> str:
    """The SVG: value above, slope below; left against the positive's cosine, right the negative's."""
    name, options = varied_values(file)
    shipped = file.shipped().get(name)
    labels = list(
        dict.fromkeys(key.split(" value ")[0] for key in figure.columns if " value " in key)
    )
    own, other = ("positive", "negative")
    if file.schema.compares == "proxies":
        own, other = "own proxy", "other proxy"
    style = {
        "svg.hashsalt": "dml",
        "svg.fonttype": "none",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e5e5",
    }
    with matplotlib.rc_context(style):
        canvas = matplotlib.figure.Figure(figsize=(7, 4.6))
        axes = canvas.subplots(2, 2, sharex=True, sharey="row")
        x = [float(s) for s in figure.columns["cosine"]]
        for column, which in enumerate(("positive", "negative")):
            for row, quantity in enumerate(("value", "slope")):
                others = iter(((COLOURS[0], "--"), (COLOURS[2], "-.")))
                for label in labels:
                    points = [float(v) for v in figure.columns[f"{label} {quantity} {which}"]]
                    is_shipped = not options or label == f"{name}={shipped:g}"
                    colour, line = (COLOURS[1], "-") if is_shipped else next(others)
                    axes[row, column].plot(
                        x,
                        points,
                        color=colour,
                        linewidth=2 if is_shipped else 1.3,
                        linestyle=line,
                        label=f"{label} (shipped)" if options and is_shipped else label,
                    )
        axes[0, 0].set_title(f"to the {own} ({other} held at {HELD_NEGATIVE:g})", fontsize=9)
        axes[0, 1].set_title(f"to the {other} ({own} held at {HELD_POSITIVE:g})", fontsize=9)
        axes[0, 0].set_ylabel("loss")
        axes[1, 0].set_ylabel("|d loss / d cosine|")
        for column, which in enumerate((own, other)):
            axes[1, column].set_xlabel(f"cosine to the {which}")
        handles, texts = axes[0, 0].get_legend_handles_labels()
        canvas.legend(handles, texts, loc="upper center", ncols=len(texts), frameon=False)
        canvas.tight_layout(rect=(0, 0, 1, 0.94))
        text = io.StringIO()
        about = {"Date": None, "Creator": None, "Title": f"loss={file.name}"}
        canvas.savefig(text, format="svg", metadata={**about, "Description": figure.csv()})
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(lines) + "\n"


def csv_in(svg: str) -> str:
    """The points written into an SVG."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, flags=re.DOTALL)
    return html.unescape(found[1]) if found else ""


def same_points(ours: str, theirs: str, tolerance: float = 2e-3) -> bool:
    """Whether two CSVs have the same columns and, up to rounding, the same numbers."""
    ours_rows, theirs_rows = (
        [line.split(",") for line in csv.splitlines()] for csv in (ours, theirs)
    )
    if not ours_rows or ours_rows[:1] != theirs_rows[:1] or len(ours_rows) != len(theirs_rows):
        return False
    a, b = (
        torch.tensor([[float(v) for v in row] for row in rows[1:]])
        for rows in (ours_rows, theirs_rows)
    )
    largest = a.abs().amax(dim=0).clamp(min=1e-6)
    return bool(((a - b).abs() <= tolerance * largest).all())
