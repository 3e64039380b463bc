"""A heat profile and its evaluation as one HTML page that needs nothing else: no network, no other file."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import msgspec

from krasis.heat.evaluation import POLICIES, Domain, Evaluation
from krasis.heat.routing import Counts
from krasis.pack.disk import write_output
from krasis.pack.manifest import Origin

# In the order in which they go into report.html, the data last: nothing is looked for in it.
PARTS = {"/*STYLE*/": "report.css", "/*SCRIPT*/": "report.js"}
DATA = "/*DATA*/"


class Subject(msgspec.Struct, frozen=True):
    """Whose heat it is: the model's name, its pack's root hash, the texts, and the tool with its version."""

    model: str
    pack_root: str
    tool: str
    corpus: tuple[Origin, ...]


class Text(msgspec.Struct, frozen=True):
    """What was counted on one domain, for the profile and held out of it: counts [layers][experts]."""

    name: str
    profile_tokens: int
    held_out_tokens: int
    profile: list[list[int]]
    held_out: list[list[int]]


class Data(msgspec.Struct, frozen=True):
    """All that the page shows."""

    subject: Subject
    layers: list[int]
    texts: list[Text]
    policies: dict[str, str]
    evaluation: Evaluation


def write(path: Path, domains: Sequence[Domain], evaluation: Evaluation, subject: Subject) -> None:
    """Write the page whole or not at all. Raises UsageError where nothing can be written there."""
    write_output(path, render(domains, evaluation, subject).encode(), "report")


def render(domains: Sequence[Domain], evaluation: Evaluation, subject: Subject) -> str:
    """The page as text."""
    texts = [
        Text(
            domain.name,
            domain.profile.tokens,
            domain.held_out.tokens,
            _rows(domain.profile.counts),
            _rows(domain.held_out.counts),
        )
        for domain in domains
    ]
    data = Data(subject, sorted(domains[0].profile.counts), texts, POLICIES, evaluation)
    folder = resources.files("krasis.heat")
    page = (folder / "report.html").read_text("utf-8")
    for mark, name in PARTS.items():
        page = page.replace(mark, (folder / name).read_text("utf-8"))
    # A name may hold </script> or <!--; in JSON a < can only be in a string, where this is the same.
    return page.replace(DATA, msgspec.json.encode(data).decode().replace("<", "\\u003c"))


def _rows(counts: Counts) -> list[list[int]]:
    return [counts[layer].tolist() for layer in sorted(counts)]
