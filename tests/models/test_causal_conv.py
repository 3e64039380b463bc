"""The causal convolution against torch's, in pieces of any length."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from krasis.models.blocks.causal_conv import causal_conv


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    width=st.integers(1, 5),
    channels=st.integers(1, 7),
    seed=st.integers(0, 1 << 30),
)
def test_pieces_match_torch(lengths, width, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, channels, generator=generator)
    x = torch.randn(sum(lengths), channels, generator=generator)
    before = functional.pad(x.T[None], (width - 1, 0))
    expected = functional.conv1d(before, weight.T[:, None], groups=channels)[0].T
    state = torch.zeros(width - 1, channels)
    found = torch.cat([causal_conv(piece, weight, state) for piece in x.split(lengths)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, before[0].T[len(x) :])
