"""Pictures of heat: both kinds, of one domain and of several, and what a user is told where none can be made."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from krasis.errors import UsageError
from krasis.heat import pictures
from krasis.heat.evaluation import Domain, evaluate
from krasis.heat.routing import Routing


def domains(count):
    """Layers 1 and 3, of 6 and 4 experts; an expert of the second never routed to."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        trace = [{1: rng.permuted(np.tile(np.arange(6), (20, 1)), axis=1)[:, :2], 3: rng.integers(0, 3, (20, 1))}]
        sizes = zip(trace[0].items(), (6, 4), strict=True)
        counts = {layer: np.bincount(ids.ravel(), minlength=n) for (layer, ids), n in sizes}
        routing = Routing(20, counts, {layer: n / 2 for layer, n in counts.items()})
        found.append(Domain(f"text $_{i}$ <b>", routing, routing, trace))
    return found


def test_load_is_a_multiple_of_the_mean():
    counts = {2: np.array([3, 1, 0, 0]), 5: np.array([4, 0])}
    np.testing.assert_array_equal(pictures.load(counts), [[3, 1, 0, 0], [2, 0, np.nan, np.nan]])
    assert (pictures.load({0: np.zeros(3, np.int64)}) == 0).all()


@pytest.mark.parametrize("count", [1, 4])
def test_a_picture_is_what_its_name_says(tmp_path, count):
    found = domains(count)
    evaluation = evaluate(found, {1: 10, 3: 10}, (0.25, 0.5))
    pictures.plot(tmp_path / "new" / "heat.png", found, evaluation)
    pictures.plot(tmp_path / "heat.SVG", found, evaluation)
    assert (tmp_path / "new" / "heat.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(tmp_path / "heat.SVG").getroot().tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heat.SVG", "new"]


def test_other_kinds_of_picture_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such kind of picture") as caught:
        pictures.plot(tmp_path / "heat.jpg", [], None)
    assert ".png or .svg" in str(caught.value)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="pictures need matplotlib") as caught:
        pictures.plot(tmp_path / "heat.png", [], None)
    assert "pip install 'krasis[plot]'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    found = domains(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't write the picture"):
        pictures.plot(tmp_path / "file" / "heat.png", found, evaluate(found, {1: 10, 3: 10}, (0.5,)))
