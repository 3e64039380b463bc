"""Rotary embedding against transformers, and against the formula far out."""

import math

import pytest
import torch
from judge import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from krasis.models.blocks.rope import Rope, RopeSpec, rotate
from krasis.models.config import Config

YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096}
VARIANTS = {
    "plain yarn": {},
    "unrounded ramp": {"truncate": False},
    "rounded ramp": {"truncate": True},
    "another ramp": {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "ramp without length": {"beta_fast": 4.0, "beta_slow": 4.0, "truncate": False},
    "all turn often": {"rope_theta": 2.0, "original_max_position_embeddings": 1 << 20},
    "none turns often": {"original_max_position_embeddings": 4},
    "told factor of attention": {"attention_factor": 0.7},
    "no stretch": {"factor": 1.0},
    "one mscale": {"mscale": 0.7},
    "other mscale": {"mscale_all_dim": 0.7},
    "two mscales": {"mscale": 0.7, "mscale_all_dim": 1.3},
    "half turns": {"partial_rotary_factor": 0.5},
    "quarter turns": {"partial_rotary_factor": 0.25, "truncate": False},
}


def frequencies(rope):
    """(radians a position, the factor of cos and sin)."""
    cos, sin = (part[0, 0].double() for part in rope.angles(1, 1))
    return torch.atan2(sin, cos), torch.hypot(sin, cos)


@pytest.mark.parametrize("head_dim", [24, 64, 128])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_yarn_is_that_of_transformers(changes, head_dim):
    config = transformers.GptOssConfig(rope_parameters=YARN | changes, head_dim=head_dim)
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    rope = Rope(head_dim, Config({"rope_parameters": YARN | changes}).rope(partial=1.0))
    assert rope.dim == 2 * len(expected)
    found, factors = frequencies(rope)
    torch.testing.assert_close(found, expected.double(), rtol=2e-6, atol=0)
    torch.testing.assert_close(factors, torch.full_like(factors, factor), rtol=1e-6, atol=0)


def test_angles_far_out_are_exact():
    position, theta, dim = 131071, 150000.0, 64
    cos, sin = Rope(dim, RopeSpec(theta=theta)).angles(position, 1)
    for i in range(dim // 2):
        angle = position * theta ** (-2 * i / dim)
        assert cos[0, 0, i].item() == pytest.approx(math.cos(angle), abs=1e-7)
        assert sin[0, 0, i].item() == pytest.approx(math.sin(angle), abs=1e-7)


def test_a_dimension_turns_with_the_one_half_a_head_away_and_the_rest_stays():
    x, position = torch.randn(1, 2, 10, generator=torch.Generator().manual_seed(0)), 3
    rope = Rope(10, RopeSpec(theta=500.0, partial=0.6))
    found = rotate(x, rope.angles(position, 1))
    for i in range(3):
        turned = torch.polar(torch.ones(2), torch.full((2,), position * 500.0 ** (-i / 3)))
        expected = torch.complex(x[0, :, i], x[0, :, i + 3]) * turned
        torch.testing.assert_close(torch.complex(found[0, :, i], found[0, :, i + 3]), expected)
    assert torch.equal(found[..., 6:], x[..., 6:])
