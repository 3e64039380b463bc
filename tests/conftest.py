"""What many tests share: the bundled model and texts, packs of it, engines on them."""

import functools
from pathlib import Path

import hypothesis
import msgspec
import pytest

from krasis.convert.pipeline import Conversion
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime.devices import open_backend
from krasis.runtime.engine import Engine
from krasis.runtime.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
FAMILIES = sorted(path.name for path in (EXAMPLES / "models").iterdir())


@pytest.fixture(autouse=True)
def torch_threads():
    """Backends and convert --jobs set torch's threads for the whole process; no test may slow the next."""
    # Not imported above: krasis, which tells torch's idle threads to sleep, must come first.
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    """Each family that a trained checkpoint is bundled of."""
    return request.param


@pytest.fixture(scope="session")
def example():
    """Family -> its bundled checkpoint."""
    return lambda family: EXAMPLES / "models" / family


@pytest.fixture(scope="session")
def demo(example):
    """The bundled checkpoint that will do for most."""
    return example("qwen3_moe")


@pytest.fixture(scope="session")
def texts():
    """Text it never saw."""
    return sorted((EXAMPLES / "text").glob("dev-*.txt"))


@pytest.fixture(scope="session")
def convert():
    """(checkpoint, pack, settings) -> the pack's path."""

    usual = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"))

    def run(source, pack, expert_codec=None, imatrix=None, jobs=1, **settings):
        settings = msgspec.structs.replace(usual, **settings)
        Conversion(source, settings, expert_codec, imatrix).run(pack, Silent(), jobs=jobs)
        return pack

    return run


@pytest.fixture(scope="session")
def pack_of(example, convert, tmp_path_factory):
    """(family, settings) -> a pack of the bundled model, made once a session. Don't change it."""

    @functools.cache
    def make(family, **settings):
        return convert(example(family), tmp_path_factory.mktemp("packs") / family, **settings)

    return make


@pytest.fixture(scope="session")
def demo_pack(pack_of):
    """Settings -> a pack of the bundled model that will do for most."""
    return functools.partial(pack_of, "qwen3_moe")


@pytest.fixture(scope="session")
def exact_pack(pack_of):
    """Family -> the bundled model without any quantization."""
    return functools.partial(pack_of, expert_bits=16, dense_bits=16)


@pytest.fixture(scope="session")
def text_ids(demo_pack, texts):
    """File name -> the ids of its first 8,192 tokens."""
    tokenizer = Tokenizer(Pack(demo_pack()))
    return {path.name: tokenizer.encode(path.read_text(encoding="utf-8"))[:8192] for path in texts}


@pytest.fixture(scope="session")
def open_engine():
    """(pack, device) -> an engine of 512 tokens; backends, which own threads, are shared."""
    backend = functools.cache(lambda device, threads: open_backend(device, threads)[0])

    def run(pack, device="cpu", *, threads=None, context=512, **options):
        return Engine(Pack(pack), backend(device, threads), context=context, **options)

    return run
