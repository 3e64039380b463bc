"""Pictures of a heat profile and its evaluation, drawn with matplotlib where it is installed."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krasis.errors import UsageError
from krasis.heat.coverage import curve, flat, ranking
from krasis.heat.evaluation import Domain, Evaluation, join
from krasis.heat.routing import Counts
from krasis.pack.disk import write_output

SUFFIXES = (".png", ".svg")
ROW = 3
"""Differences of domains beside each other."""

# Okabe and Ito's colours, which differ to every kind of eye.
CURVES = {
    "oracle": ("#000000", "-", "oracle on this text"),
    "profile": ("#0072B2", "-", "this profile"),
    "uniform": ("#999999", "-", "uniform"),
}
CACHES = {
    "lru": ("#E69F00", "o", "LRU"),
    "seeded_lru": ("#E69F00", "D", "LRU, seeded"),
    "lfu": ("#009E73", "o", "LFU with decay"),
    "seeded_lfu": ("#009E73", "D", "LFU with decay, seeded"),
    "tail": ("#CC79A7", "s", "recency tail"),
}


def load(counts: Counts) -> NDArray[np.float64]:
    """float64 [layers, experts]: an expert's routed tokens as a multiple of its layer's mean, NaN beyond the last."""
    found = np.full((len(counts), max(map(len, counts.values()))), np.nan)
    for row, layer in zip(found, sorted(counts), strict=True):
        row[: len(counts[layer])] = counts[layer] / max(counts[layer].mean(), 1e-12)
    return found


def check(path: Path) -> None:
    """Raises UsageError for a picture that is neither PNG nor SVG, or without matplotlib: before all work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError("no such kind of picture", where=path, expected="a name that ends in .png or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("pictures need matplotlib", hint="install it with: pip install 'krasis[plot]'") from error


def plot(path: Path, domains: Sequence[Domain], evaluation: Evaluation) -> None:
    """Write one picture, PNG or SVG as its name says: heat maps, coverage, and how domains differ.

    Raises UsageError as `check` does, or where nothing can be written there.
    """
    check(path)
    from matplotlib.figure import Figure

    rows = -(-len(domains) // ROW) if len(domains) > 1 else 0
    figure = Figure(figsize=(14, 11 + 4 * rows), dpi=110, layout="constrained")
    parts: Any = figure.subfigures(2 + bool(rows), 1, height_ratios=[5, 6, *([4 * rows] if rows else [])])
    every = join(domains)
    counts = every.profile.counts
    _heat_maps(parts[0], counts)
    _coverage(parts[1], every, evaluation)
    if rows:
        _differences(parts[2], domains, counts, rows)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_output(path, content.getvalue(), "picture")


def _heat_maps(part: Any, counts: Counts) -> None:
    heat = load(counts)
    titles = ("Heat: tokens of an expert as a multiple of its layer's mean", "The same, each layer from hot to cold")
    for axes, title, values in zip(part.subplots(1, 2), titles, (heat, -np.sort(-heat, axis=1)), strict=True):
        image = _image(axes, title, values, sorted(counts), cmap="cividis", norm=_root_norm(heat))
    part.colorbar(image, ax=part.axes, label="times the mean", pad=0.01)
    part.axes[-2].set_xlabel("place in the layer")


def _coverage(part: Any, every: Domain, evaluation: Evaluation) -> None:
    """The three that are fixed for every share, caches where they were simulated."""
    text = flat(every.held_out.counts)
    share = np.linspace(0, 100, len(text) + 1)
    orders = {"oracle": ranking(every.held_out.counts), "profile": ranking(every.profile.counts)}
    axes, per_token = part.subplots(1, 2)
    for name, (colour, line, label) in CURVES.items():
        covered = share if name == "uniform" else 100 * curve(orders[name], text)
        axes.plot(share, covered, line, color=colour, label=label, linewidth=3 if name == "oracle" else 1.8)
    for name, (colour, _, _) in CURVES.items():
        _points(per_token, evaluation, name, color=colour, linewidth=3 if name == "oracle" else 1.8)
    for name, (colour, marker, label) in CACHES.items():
        # What is seeded ends up near what is not: an open mark around a filled one shows both.
        style = {"color": colour, "marker": marker, "linestyle": ":", "linewidth": 1.2}
        style |= {"markerfacecolor": "none", "markersize": 9} if marker == "D" else {"markersize": 5}
        axes.plot(*_hits(evaluation, name), label=label, **style)
        _points(per_token, evaluation, name, **style)
    axes.set(title="Hits on held-out text", xlabel="resident experts, %", ylabel="routed pairs, %")
    axes.set(xlim=(0, 100), ylim=(0, 101))
    per_token.set(title="What misses move", xlabel="resident experts, %", ylabel="MB over PCIe a token", ylim=(0, None))
    for each in (axes, per_token):
        each.grid(color="#dddddd", linewidth=0.6)
    part.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def _hits(evaluation: Evaluation, name: str) -> tuple[list[float], list[float]]:
    shares = evaluation.together.shares
    return [100 * at.share for at in shares], [100 * at.policies[name].pairs for at in shares]


def _points(axes: Any, evaluation: Evaluation, name: str, **style: Any) -> None:
    shares = evaluation.together.shares
    moved = [at.policies[name].bytes_per_token / 1e6 for at in shares]
    axes.plot([100 * at.share for at in shares], moved, **style)


def _differences(part: Any, domains: Sequence[Domain], counts: Counts, rows: int) -> None:
    every = load(counts)
    found = [load(domain.profile.counts) - every for domain in domains]
    limit = max(float(np.nanmax(np.abs(values))) for values in found) or 1.0
    grid = part.subplots(rows, min(ROW, len(domains)), squeeze=False).ravel()
    for axes, domain, values in zip(grid, domains, found, strict=False):
        title = f"{domain.name}: more or less than all text"
        image = _image(axes, title, values, sorted(counts), cmap="PuOr_r", vmin=-limit, vmax=limit)
    for axes in grid[len(domains) :]:
        axes.remove()
    part.colorbar(image, ax=part.axes, label="times the mean, difference", pad=0.01)


def _image(axes: Any, title: str, values: NDArray[np.float64], layers: list[int], **style: Any) -> Any:
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **style)
    # A file's name is no mathematics.
    axes.set_title(title, parse_math=False, fontsize=11)
    axes.set(xlabel="expert", ylabel="layer")
    ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 12)).round().astype(int))
    axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
    return image


def _root_norm(heat: NDArray[np.float64]) -> Any:
    """A few experts are many times hotter than the rest, which a linear scale would leave dark."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=float(np.nanmax(heat)))
