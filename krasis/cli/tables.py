"""Tables for people: what a pack holds, kind by kind, in at most 100 columns."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from krasis.cli.console import human, plain

WIDTH = 100


def print_facts(facts: Mapping[str, object]) -> None:
    """Names beside their values; lists with commas."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
        table.add_row(plain(name), plain(shown))
    _print(table)


def print_spreads(spreads: Mapping[str, Mapping[str, float]]) -> None:
    """Name -> median, min and max of a figure over several runs."""
    heads = ("median", "min", "max")
    rows = ((name, *(f"{found[head]:.4g}" for head in heads)) for name, found in spreads.items())
    _print(_table(("", *heads), rows, left=1))


def print_grid(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """What each row is, and its figures."""
    _print(_table(heads, rows, left=1))


def print_sizes(sizes: Mapping[str, int]) -> None:
    """Kind of segment -> bytes."""
    total = sum(sizes.values())
    rows = ((name, human(size), f"{size / total:.1%}") for name, size in sizes.items())
    _print(_table(("part", "bytes", "share"), rows, left=1))


def print_matrices(matrices: Iterable[Mapping[str, Any]]) -> None:
    """The entries of `krasis.pack.summary.matrices`."""
    heads = ("matrix", "codec", "group", "count", "shape", "padded", "bytes", "error", "worst", "weighted")
    rows = (
        (
            m["kind"],
            m["codec"],
            m["group_size"],
            m["count"],
            _shape(m["shape"]),
            "" if m["padded_shape"] == m["shape"] else _shape(m["padded_shape"]),
            human(m["bytes"]),
            _percent(m["rel_rms_error"]),
            _percent(m["worst_rel_rms_error"]),
            _percent(m["weighted_rel_rms_error"]),
        )
        for m in matrices
    )
    found = list(rows)
    # A plan has no errors yet, and few packs weighted ones.
    width = max(place + 1 for place in range(len(heads)) if place < 7 or any(row[place] for row in found))
    _print(_table(heads[:width], (row[:width] for row in found), left=2))


def print_source(files: Iterable[Mapping[str, Any]]) -> None:
    """The files a pack was made from, as sha256sum lists and checks them."""
    for file in files:
        print(f"{file['sha256']}  {plain(file['name'])}")


def print_worth(scored: Mapping[str, Any]) -> None:
    """A `krasis.heat.evaluation.Scored` as JSON has it: each policy at each share of resident experts."""
    at = scored["shares"]
    shares, policies = tuple(f"{found['share']:.0%}" for found in at), at[0]["policies"]
    hits = ((name, *(f"{found['policies'][name]['pairs']:.1%}" for found in at)) for name in policies)
    _print(_table(("hits with so many resident", *shares), hits, left=1))
    moved = ((name, *(human(found["policies"][name]["bytes_per_token"]) for found in at)) for name in policies)
    _print(_table(("missed, bytes a token", *shares), moved, left=1))


def print_transfers(transfers: Iterable[Mapping[str, Any]], share: float) -> None:
    """`krasis.heat.evaluation.Transfer`s as JSON has them, at one share: hits, and tokens until a cache recovers."""
    heads = ("profile of", "on", f"hits, {share:.0%}", "uniform", "oracle", "seeded LFU", "half back", "90% back")
    rows = []
    for transfer in transfers:
        i = next(i for i, found in enumerate(transfer["shares"]) if found["share"] == share)
        policies, back = transfer["shares"][i]["policies"], transfer["regained"][i]["seeded_lfu"]
        hits = (f"{policies[name]['pairs']:.1%}" for name in ("profile", "uniform", "oracle", "seeded_lfu"))
        tokens = ("never" if back[part] is None else f"{back[part]} tokens" for part in ("half", "most"))
        rows.append((transfer["profile"], transfer["text"], *hits, *tokens))
    _print(_table(heads, rows, left=2))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]], left: int) -> Table:
    """The first `left` columns are words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    return table


def _print(table: Table) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(table)


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _percent(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3%}"


def spread(figures: list[float]) -> dict[str, float]:
    """Median and range, as JSON has them."""
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}
