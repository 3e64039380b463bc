"""--device cuda: what is refused and how, and commands on the emulated GPU."""

import pytest
import torch

from krasis.errors import KrasisError
from krasis.heat import profile
from krasis.native.cuda.library import library
from krasis.pack.reader import Pack
from krasis.runtime import opening
from krasis.runtime.cuda import engine as hybrid
from krasis.runtime.rates import REFERENCE

USAGE, BAD_INPUT, NO_FIT = 2, 3, 4
GIB = 1 << 30


def emulated():
    try:
        library("cpu")
    except KrasisError as error:
        return str(error)
    return ""


needs_emulation = pytest.mark.skipif(bool(emulated()), reason=emulated())


@pytest.fixture
def driver(monkeypatch):
    """A machine whose GPU seems to be right, or of another capability, or without its library."""

    def make(capability=(9, 0), built=True):
        def find(device):
            if not built:
                raise KrasisError("libkrasis_cuda.so isn't built", hint="build it again")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(opening, "library", find)

    return make


@pytest.fixture
def gpu(driver, monkeypatch):
    """The emulated GPU in place of one, with so many bytes free."""

    def make(free=16 * GIB):
        driver()
        monkeypatch.setattr(opening, "free_gpu", lambda: (torch.device("cpu"), free))
        monkeypatch.setattr(hybrid, "known", lambda: REFERENCE)

    return make


def run(krasis, pack, *options):
    return krasis("run", pack, "--raw", "--prompt", "def ", "--max-tokens", 4, *options)


def test_no_driver(krasis, demo_pack, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = run(krasis, demo_pack(), "--device", "cuda")
    assert found.code == USAGE
    assert found.error == ("error: no GPU with a driver that torch can use (--device cuda): use --device cpu")


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"capability": (7, 5)}, "the GPU has compute capability 7.5, and kernels need 8.0"),
        ({"built": False}, "krasis was installed without its CUDA library (libkrasis_cuda.so isn't built)"),
    ],
)
def test_a_machine_that_can_not(machine, says, krasis, demo_pack, driver):
    driver(**machine)
    found = run(krasis, demo_pack(), "--device", "cuda")
    assert (found.code, found.error) == (USAGE, f"error: {says} (--device cuda): use --device cpu")
    found = run(krasis, demo_pack())
    assert found.code == 0
    assert f"running on the CPU though there is a GPU: {says}" in found.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--kv", "f32"), "--kv f32 is not for GPUs, which cache bf16 or fp8"),
        (("--layout", "cpu"), "--layout cpu is not for GPUs, which read marlin"),
        (("--threads", 0), "--threads is 0"),
    ],
)
def test_options_that_no_gpu_takes(options, says, krasis, demo_pack, driver):
    driver()
    found = run(krasis, demo_pack(), "--device", "cuda", *options)
    assert (found.code, says in found.error) == (USAGE, True)


def test_importance_matrices_are_for_the_cpu(krasis, demo_pack, texts, driver, tmp_path):
    driver()
    out = ("--imatrix", tmp_path / "imatrix", "--out", tmp_path / "heat")
    found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--device", "cuda", *out)
    assert (found.code, "importance matrices are summed on the CPU" in found.error) == (USAGE, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layouts": ("cpu",)}, "the pack lacks layout marlin, which GPUs read"),
        ({"expert_bits": 16}, "experts are not quantized, as kernels of the GPU need them"),
    ],
)
def test_packs_that_no_gpu_reads(settings, says, krasis, demo_pack, driver):
    driver()
    pack = demo_pack(**settings)
    found = run(krasis, pack, "--device", "cuda")
    assert found.code == BAD_INPUT
    assert f"{says} ({pack})" in found.error
    assert "convert again with" in found.error
    found = run(krasis, pack)
    assert (found.code, f"though there is a GPU: {says}" in found.err) == (0, True)


def test_a_budget_that_holds_too_little(krasis, demo_pack, gpu):
    gpu()
    found = run(krasis, demo_pack(), "--device", "cuda", "--vram", "500MB")
    assert (found.code, "--vram" in found.error, "would fit" in found.error) == (NO_FIT, True, True)


@needs_emulation
def test_run_and_eval(krasis, demo_pack, texts, gpu):
    gpu()
    found = run(krasis, demo_pack(), "--device", "cuda", "--vram", "2GiB", "--json")
    assert len(found.json["token_ids"]) == 4
    assert "no heat profile" in found.err
    text = ("eval", demo_pack(), "--text", texts[0], "--tokens", 32, "--window", 16, "--json")
    scored = krasis(*text, "--device", "cuda", "--kv", "fp8").json
    assert scored["device"] == "cuda"
    # Rounded to bfloat16 and cached in e4m3, over 30 tokens.
    assert scored["nll"] == pytest.approx(krasis(*text, "--device", "cpu").json["nll"], abs=0.1)


@needs_emulation
def test_profiles_are_measured_and_used(krasis, demo_pack, texts, gpu, tmp_path):
    """The emulated engine's routing is the CPU's but where a router is undecided."""
    gpu()
    text, found = ("--text", texts[0], "--tokens", 160, "--window", 32, "--decode-tokens", 4), {}
    for device in ("cuda", "cpu"):
        out = tmp_path / device
        result = krasis("profile-heat", demo_pack(), *text, "--device", device, "--out", out, "--json")
        assert (result.json["tokens"], result.json["decode_tokens"]) == (128, 16)
        assert ("cuda runs one sequence at a time" in result.err) == (device == "cuda")
        found[device] = profile.read(out, Pack(demo_pack()).manifest)
    for phase in ("prefill", "decode"):
        here, there = (found[device].routing(phase) for device in ("cuda", "cpu"))
        assert here.tokens == there.tokens
        for layer, counts in here.counts.items():
            assert counts.sum() == 4 * here.tokens
            assert abs(counts - there.counts[layer]).sum() <= 0.1 * counts.sum()


@needs_emulation
def test_copies_of_weights_are_not_made(krasis, demo_pack, gpu):
    gpu()
    found = run(krasis, demo_pack(), "--device", "cuda", "--load", "copied")
    assert (found.code, "--load copied has no effect on the GPU" in found.err) == (0, True)
