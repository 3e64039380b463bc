"""The tool that says where a family's forward leaves transformers, on forwards that are right and wrong."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers, which judges the forward, is not installed")
sys.path.append(str(Path(__file__).parents[1] / "tools"))
import compare_layers

from krasis.models import qwen3_moe


def rows(capsys):
    """Layer -> (through, alone)."""
    found = re.findall(r"layer (\d+) +(\S+) +(\S+)", capsys.readouterr().out)
    return {int(layer): (float(through), float(alone)) for layer, through, alone in found}


def test_a_right_forward_has_no_divergence(demo, capsys):
    assert compare_layers.compare(demo, 40, 1e-4) is None
    assert list(rows(capsys)) == [0, 1, 2, 3]


def test_the_layer_that_is_wrong_is_named_and_no_other(demo, capsys, monkeypatch):
    forward = qwen3_moe._Attention.__call__

    def wrong(attention, x, angles, state):
        return forward(attention, x, angles, state) * (1.01 if attention._layer == 2 else 1)

    monkeypatch.setattr(qwen3_moe._Attention, "__call__", wrong)
    assert compare_layers.compare(demo, 40, 1e-4) == "layer 2"
    found = rows(capsys)
    assert [layer for layer, (through, _) in found.items() if through > 1e-4] == [2, 3]
    assert [layer for layer, (_, alone) in found.items() if alone > 1e-4] == [2]
