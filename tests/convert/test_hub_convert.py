"""A model of the hub becomes the pack that a folder of the same files becomes, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import msgspec
import pytest
from crash import SETTINGS, Silent
from hub_server import LIST, MODEL, HubServer, reshard
from test_kill import save_random

from krasis.convert.compare import compare
from krasis.convert.download import Link
from krasis.convert.hub import HubStore
from krasis.convert.pipeline import Conversion
from krasis.errors import FitError, InputError
from krasis.pack import manifest as manifests
from krasis.pack.reader import Pack
from krasis.pack.writer import begun

SHARDS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    return reshard(save_random(folder / "whole", layers=8), folder / "model", SHARDS)


@pytest.fixture(scope="module")
def local(checkpoint, tmp_path_factory):
    return Conversion(checkpoint, SETTINGS).run(tmp_path_factory.mktemp("local") / "pack", Silent())


@pytest.fixture
def hub(checkpoint):
    with HubServer(checkpoint) as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "hub"


@pytest.fixture
def store(hub, cache, tmp_path):
    """Options -> a store of the served model for a pack at PACK."""

    def make(**options):
        link = Link(lambda line: None, first_pause_s=0)
        begin = begun(tmp_path / "pack")
        return HubStore(MODEL, None, print, begun=begin, cache=cache, endpoint=hub.url, link=link, **options)

    return make


@pytest.fixture
def convert_to(tmp_path):
    """Store -> the manifest of the pack it becomes."""
    return lambda store, **options: Conversion(store, SETTINGS).run(tmp_path / "pack", Silent(), **options)


def without_source(manifest):
    """A manifest that says of its source what one made from a folder does."""
    files = tuple(manifests.Origin(one.name.rpartition("/")[2], one.bytes, one.sha256) for one in manifest.source)
    return json.loads(manifests.encode(msgspec.structs.replace(manifest, source=files)))


def shards_in(cache):
    """Blobs of shards, whole and in part."""
    return [path for path in cache.glob("*/blobs/*") if len(path.name.partition(".")[0]) == 64]


def finished_shards(checkpoint, pack):
    """Names of files of the pack that an unfinished one has finished -> of the shards that nothing else needs."""
    journal = pack.with_name("pack.partial") / "journal.jsonl"
    done = [entry["file"]["name"] for entry in map(json.loads, journal.read_text().splitlines()) if "errors" in entry]
    files = Conversion(checkpoint, SETTINGS).files
    left = frozenset().union(*(file.shards for file in files if file.name not in done))
    return done, frozenset().union(*(file.shards for file in files if file.name in done)) - left


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_pack_is_that_of_a_folder(discard, jobs, hub, store, convert_to, local, tmp_path):
    manifest = convert_to(store(discard=discard), jobs=jobs)
    assert without_source(manifest) == without_source(local)
    assert without_source(local) == json.loads(manifests.encode(local))
    assert {file.name.rpartition("/")[0] for file in manifest.source} == {f"hf://{MODEL}@{hub.main}"}
    assert all(matches for *_, matches in Pack(tmp_path / "pack").verify())


def test_every_shard_comes_once(hub, store, convert_to, checkpoint):
    convert_to(store())
    assert sorted(hub.fetched()) == sorted(path.name for path in checkpoint.glob("*.safetensors"))


def test_discarding_keeps_two_shards_at_most(hub, store, convert_to, cache, local, monkeypatch, checkpoint):
    held = []
    fetch = HubStore.fetch

    def watched(self, name, progress):
        path = fetch(self, name, lambda amount: (progress(amount), held.append(len(shards_in(cache)))))
        held.append(len(shards_in(cache)))
        return path

    monkeypatch.setattr(HubStore, "fetch", watched)
    assert without_source(convert_to(store(discard=True), jobs=2)) == without_source(local)
    assert max(held) == 2
    assert not shards_in(cache)
    # The last shard holds the head beside the last layers, and comes twice.
    assert len(hub.fetched()) == SHARDS + 1


def test_a_plan_needs_no_shards(hub, store, checkpoint, monkeypatch):
    monkeypatch.setattr("krasis.convert.hub.FIRST_READ_BYTES", 1 << 12)
    assert Conversion(store(), SETTINGS).summary() == Conversion(checkpoint, SETTINGS).summary()
    sent = sum(request.sent for request in hub.requests if request.name.endswith(".safetensors"))
    assert 0 < sent < sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2


@pytest.mark.parametrize("discard", [False, True])
def test_what_finished_files_used_is_not_fetched_again(discard, hub, store, convert_to, local, checkpoint, tmp_path):
    late = "model-00005-of-00006.safetensors"
    hub.statuses[late] = (404, "EntryNotFound")
    broken = store(discard=discard)
    hub.statuses[late] = None
    planned = Conversion(broken, SETTINGS)
    hub.statuses[late] = (404, "EntryNotFound")
    with pytest.raises(InputError, match="00005"):
        planned.run(tmp_path / "pack", Silent())
    done, gone = finished_shards(checkpoint, tmp_path / "pack")
    assert len(done) > 3
    assert gone
    hub.statuses.clear()
    hub.requests.clear()
    # The model moves on; what was begun does not.
    (config := hub.folder / "README.md").write_text("new")
    first, _ = hub.main, hub.commit()
    config.unlink()
    manifest = convert_to(store(discard=discard))
    assert without_source(manifest) == without_source(local)
    assert {file.name.rpartition("/")[0] for file in manifest.source} == {f"hf://{MODEL}@{first}"}
    assert not gone & set(hub.fetched())


def test_a_kill_and_cut_connections(hub, checkpoint, local, cache, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_DISABLE_TELEMETRY": "1"}
    options = ["--group-size", "32", "--layouts", "marlin,cpu", "--jobs", "2", "--json", "--discard-source"]
    command = [sys.executable, "-m", "krasis", "convert", MODEL, str(tmp_path / "pack"), *options]
    hub.delay_s = 0.05
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial = tmp_path / "pack.partial"
    while process.poll() is None and not (partial.is_dir() and len(list(partial.glob("layer-*.bin"))) >= 3):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done, gone = finished_shards(checkpoint, tmp_path / "pack")
    assert done
    hub.delay_s = 0
    hub.requests.clear()
    hub.cuts = {path.name: [70_000, 0, 10] for path in checkpoint.glob("*.safetensors")}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["root_hash"] == Pack(tmp_path / "pack").manifest.root
    assert without_source(Pack(tmp_path / "pack").manifest) == without_source(local)
    assert not gone & set(hub.fetched())
    assert again.stderr.count("asking for the rest") == 1
    assert not shards_in(cache)
    assert {request.name for request in hub.requests} <= {path.name for path in checkpoint.iterdir()} | {LIST}


@pytest.mark.parametrize("discard", [False, True])
def test_too_little_room_is_said_before_anything_comes(discard, hub, store, convert_to, monkeypatch, checkpoint):
    sizes = [path.stat().st_size for path in sorted(checkpoint.glob("*.safetensors"))]
    most = max(map(sum, zip(sizes, sizes[1:] + sizes[:1], strict=True)))
    need = most if discard else sum(sizes)
    made = store(discard=discard)
    pack = Conversion(made, SETTINGS).bytes + len(made.small("tokenizer.json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need + pack - 1))
    with pytest.raises(
        FitError, match=f"needs {need} more bytes, and the pack {pack}.*{need + pack - 1} are free"
    ) as error:
        convert_to(made)
    assert (f"--discard-source, for which {most} do" in str(error.value)) != discard
    assert not hub.fetched()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need + pack))
    convert_to(made)


def test_a_pack_is_compared_with_the_hub_it_came_from_and_with_a_folder(store, checkpoint, tmp_path):
    Conversion(store(), SETTINGS).run(tmp_path / "pack", Silent())
    for source in (store(), checkpoint):
        found = compare(Pack(tmp_path / "pack"), source, Silent(), 2)
        assert (found.wrong, found.changed) == ({}, [])
        assert found.tensors > 0
