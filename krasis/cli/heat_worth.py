"""What a heat profile is worth: a table, a picture, a page."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krasis.cli.console import Reporter
from krasis.cli.tables import print_transfers, print_worth

if TYPE_CHECKING:
    from krasis.heat.partial import TextHeat
    from krasis.heat.profile import HeatProfile
    from krasis.pack.reader import Pack

SHARE = 0.25
"""The share of resident experts at which foreign profiles are shown."""


def evaluate(
    pack: "Pack", found: "HeatProfile", texts: "Sequence[TextHeat]", plot: Path | None, report: Path | None
) -> dict[str, Any]:
    """Score a profile on what was held out of its texts, and draw or write that where asked; JSON's view of it.

    The texts must have traces.
    """
    import msgspec

    from krasis.heat import evaluation, pictures
    from krasis.heat import report as pages
    from krasis.heat.evaluation import Domain

    domains = []
    for origin, text in zip(found.corpus, texts, strict=True):
        assert text.trace is not None
        domains.append(Domain(origin.name, text.profile, text.held_out, text.trace))
    held_out = sum(domain.held_out.tokens for domain in domains)
    with Reporter("tokens") as reporter:
        reporter.start("evaluating", held_out)
        scored = evaluation.evaluate(domains, _expert_bytes(pack, found.experts))
        reporter.advance(held_out)
    if plot:
        pictures.plot(plot, domains, scored)
    if report:
        model = f"{pack.path.name} ({found.model['model_type']})"
        pages.write(report, domains, scored, pages.Subject(model, pack.manifest.root, found.tool, found.corpus))
    tree: dict[str, Any] = msgspec.to_builtins(scored)
    return tree


def show(scored: dict[str, Any]) -> None:
    """Hits and PCIe traffic of every policy at each share, and what a domain's profile is worth on the others."""
    print_worth(scored["together"])
    foreign = [transfer for transfer in scored["transfers"] if transfer["profile"] != transfer["text"]]
    if foreign:
        print_transfers(foreign, SHARE)


def _expert_bytes(pack: "Pack", layers: Iterable[int]) -> dict[int, int]:
    """Layer -> bytes of an expert, in whichever layout comes first: all take as many."""
    names = {layer: f"layers.{layer}.experts" for layer in layers}
    return {layer: pack.segment(name, pack.layouts_of[name][0]).record_bytes for layer, name in names.items()}
