"""Files of a hub that cuts connections, lies, or is not there."""

import hashlib
import threading

import pytest
from hub_server import LIST, MODEL, HubServer, reshard

from krasis.errors import InputError, KrasisError

pytest.importorskip("huggingface_hub")
from krasis.convert.download import RETRIES, Link
from krasis.convert.hub import HubStore
from krasis.convert.store import read_headers


@pytest.fixture(scope="module")
def checkpoint(demo, tmp_path_factory):
    return reshard(demo, tmp_path_factory.mktemp("hub") / "model", 6)


@pytest.fixture
def hub(checkpoint):
    with HubServer(checkpoint) as server:
        yield server


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def store(hub, cache, said):
    """Options -> a store of the served model that does not wait long."""

    def make(revision=None, **options):
        link = Link(said.append, first_pause_s=0)
        return HubStore(MODEL, revision, said.append, cache=cache, endpoint=hub.url, link=link, **options)

    return make


@pytest.fixture
def shard(checkpoint):
    return min(path.name for path in checkpoint.glob("*.safetensors"))


def ignore(_):
    pass


def blobs(cache):
    return {path.name for path in cache.glob("*/blobs/*")}


def test_files_are_what_the_hub_holds(hub, store, checkpoint, cache):
    found = store()
    assert found.commit == hub.main
    assert found.small("config.json") == (checkpoint / "config.json").read_bytes()
    assert found.small("chat_template.jinja") is None
    for name in sorted(path.name for path in checkpoint.glob("*.safetensors")):
        amounts = []
        assert found.missing(name) == found.size(name) == (checkpoint / name).stat().st_size
        assert found.fetch(name, amounts.append).read_bytes() == (checkpoint / name).read_bytes()
        assert (sum(amounts), found.missing(name)) == (found.size(name), 0)


def test_the_hubs_own_client_finds_what_was_fetched(store, cache, shard, hub):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    path = store().fetch(shard, ignore)
    store().small("config.json")
    assert try_to_load_from_cache(MODEL, shard, cache) == str(path)
    info = scan_cache_dir(cache)
    (repo,) = info.repos
    assert not info.warnings
    assert repo.refs["main"].commit_hash == hub.main


def test_what_the_hubs_own_client_fetched_is_used(hub, store, cache, shard):
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(MODEL, shard, revision=hub.main, cache_dir=cache, endpoint=hub.url)
    hub.requests.clear()
    assert str(store().fetch(shard, ignore)) == path
    assert not hub.asked(shard)


def test_headers_need_no_weights(hub, store, checkpoint, shard, cache):
    found = store()
    headers = found.headers(shard)
    assert headers == read_headers(checkpoint / shard)
    assert sum(request.sent for request in hub.asked(shard)) <= 1 << 18
    assert not blobs(cache)
    found.fetch(shard, ignore)
    hub.requests.clear()
    assert found.headers(shard) == headers
    assert not hub.requests


def test_long_headers_are_read_to_their_end(hub, store, shard, monkeypatch, checkpoint):
    monkeypatch.setattr("krasis.convert.hub.FIRST_READ_BYTES", 100)
    hub.cuts[shard] = [50, 10, 100, 500]
    assert store().headers(shard) == read_headers(checkpoint / shard)
    assert [request.first for request in hub.asked(shard)] == [0, 0, 0, 100, 100]


@pytest.mark.parametrize("head", [b"", b"{", b"[]", b"{}", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'])
def test_headers_that_are_none(head, hub, store, shard):
    hub.content[shard] = len(head).to_bytes(8, "little") + head + bytes(1 << 18)
    with pytest.raises(InputError, match=rf"not a safetensors file.*\({MODEL}/{shard}\)"):
        store().headers(shard)


def test_cut_downloads_go_on_where_they_stopped(hub, store, shard, said, checkpoint):
    hub.cuts[shard] = [500_000, 0, 300_000, 70_000]
    amounts = []
    path = store().fetch(shard, amounts.append)
    assert path.read_bytes() == (checkpoint / shard).read_bytes()
    requests = hub.asked(shard)
    assert [request.first for request in requests] == [0, 500_000, 500_000, 800_000, 870_000]
    assert sum(request.sent for request in requests) == sum(amounts) == path.stat().st_size
    assert len(said) == 1
    assert "asking for the rest" in said[0]


def test_another_run_goes_on_where_one_gave_up(hub, store, shard, checkpoint, cache):
    hub.cuts[shard] = [400_000] + [0] * RETRIES
    with pytest.raises(InputError, match="can't fetch"):
        store().fetch(shard, ignore)
    assert len(hub.asked(shard)) == 1 + RETRIES
    hub.requests.clear()
    found, amounts = store(), []
    assert found.missing(shard) == found.size(shard) - 400_000
    assert found.fetch(shard, amounts.append).read_bytes() == (checkpoint / shard).read_bytes()
    assert [request.first for request in hub.asked(shard)] == [400_000]
    assert sum(amounts) == found.size(shard)
    assert not list(cache.glob("*/blobs/*.incomplete"))


def test_a_hub_that_ignores_range_sends_all_again(hub, store, shard, checkpoint):
    hub.cuts[shard] = [400_000]
    hub.ignore_range = True
    amounts = []
    assert store().fetch(shard, amounts.append).read_bytes() == (checkpoint / shard).read_bytes()
    assert sum(amounts) == (checkpoint / shard).stat().st_size


def test_a_part_of_something_else_is_dropped(hub, store, shard, checkpoint, cache):
    hub.cuts[shard] = [400_000] + [0] * RETRIES
    with pytest.raises(InputError):
        store().fetch(shard, ignore)
    (part,) = cache.glob("*/blobs/*.incomplete")
    part.write_bytes(bytes(400_000))
    with pytest.raises(InputError, match=r"is not what the hub promises.*fetch it again"):
        store().fetch(shard, ignore)
    assert store().fetch(shard, ignore).read_bytes() == (checkpoint / shard).read_bytes()


@pytest.mark.parametrize("change", [lambda c: c[:-1] + b"\0", lambda c: c + b"x", lambda c: c[:-1], lambda c: b""])
@pytest.mark.parametrize("name", ["shard", "config.json"])
def test_content_other_than_promised_is_refused(change, name, hub, store, shard, checkpoint, cache):
    name = shard if name == "shard" else name
    hub.content[name] = change((checkpoint / name).read_bytes())
    with pytest.raises(InputError, match=name):
        store().fetch(name, ignore)
    assert not list(cache.glob(f"*/snapshots/*/{name}"))
    assert all(blob.endswith(".incomplete") for blob in blobs(cache))


def test_a_busy_hub_is_asked_again(hub, store, shard):
    hub.statuses = {LIST: [(503, ""), (429, "")], shard: [(502, ""), (500, ""), (504, "")]}
    store().fetch(shard, ignore)
    assert len(hub.asked(LIST)) == 3
    assert len(hub.asked(shard)) == 4


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ((404, "RepoNotFound"), "no such model"),
        ((401, "RepoNotFound"), "no such model.*HF_TOKEN"),
        ((401, ""), "no such model.*HF_TOKEN"),
        ((403, "GatedRepo"), "gated.*accept its terms"),
        ((404, "RevisionNotFound"), "no revision main"),
        ((418, ""), "the hub answers 418"),
    ],
)
def test_refusals_of_the_hub_are_one_line(status, message, hub, store, said):
    hub.statuses[LIST] = status
    with pytest.raises(InputError, match=message) as error:
        store()
    assert "\n" not in str(error.value)
    assert len(hub.asked(LIST)) == 1
    assert not said


def test_a_gated_file(hub, store, shard):
    hub.statuses[shard] = (403, "GatedRepo")
    with pytest.raises(InputError, match="gated"):
        store().headers(shard)


@pytest.mark.parametrize("model", ["a/b/c", "../x", "a/..", "a b/c", "a/b--c"])
def test_ids_that_are_none(model, cache, said, hub):
    with pytest.raises(InputError, match="no hub id"):
        HubStore(model, None, said.append, cache=cache, endpoint=hub.url)
    assert not hub.requests


@pytest.mark.parametrize("name", ["../x.safetensors", "a/../../x", "/x", "a//b", "./x", "a\\b", "x\0y", "", 3, None])
def test_listed_names_that_lead_elsewhere(name, hub, store):
    hub.listing = lambda tree: tree["siblings"].append({"rfilename": name, "size": 1, "blobId": "0" * 40})
    with pytest.raises(InputError, match="lists a file"):
        store()


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1, "lfs": None},
        {"size": None, "lfs": None},
        {"size": "1", "lfs": None},
        {"blobId": "../../x", "lfs": None},
        {"lfs": {"size": 1, "sha256": "/etc/passwd", "pointerSize": 1}},
        {"lfs": {"size": 1 << 60, "sha256": "0" * 64, "pointerSize": 1}},
        {"lfs": {"size": 1}},
        {"lfs": 3},
    ],
)
def test_listed_figures_that_are_none(change, hub, store):
    hub.listing = lambda tree: tree["siblings"][0].update(change)
    with pytest.raises(InputError, match=r"the hub lists|list of files"):
        store()


@pytest.mark.parametrize("sha", ["main", "../x", "0" * 39, None, 7])
def test_a_commit_that_is_none(sha, hub, store):
    hub.listing = lambda tree: tree.update(sha=sha)
    with pytest.raises(InputError, match="names commit"):
        store()


def test_folders_of_the_model_are_left_alone(hub, store):
    extra = {"rfilename": "original/model.safetensors", "size": 1, "blobId": "0" * 40}
    hub.listing = lambda tree: tree["siblings"].append(extra)
    with pytest.raises(InputError, match="is missing"):
        store().fetch("original/model.safetensors", ignore)


@pytest.mark.parametrize("length", [0xFFFF_FFFF_FFFF_FFFF, 100_000_001, 1 << 40])
def test_headers_beyond_the_limit(length, hub, store, shard):
    hub.content[shard] = length.to_bytes(8, "little") + bytes(1 << 19)
    with pytest.raises(InputError, match="states a header"):
        store().headers(shard)


def test_a_commit_is_kept_while_the_model_moves_on(demo, tmp_path, cache, said, shard):
    folder = reshard(demo, tmp_path / "moving", 6)
    with HubServer(folder) as server:
        first = server.main
        options = {"cache": cache, "endpoint": server.url}
        store = HubStore(MODEL, None, said.append, **options)
        (folder / shard).write_bytes((folder / shard).read_bytes() + b"x")
        server.commit()
        old = store.fetch(shard, ignore).read_bytes()
        assert (
            HubStore(MODEL, None, said.append, begun=f"{MODEL} main {first}", **options)
            .fetch(shard, ignore)
            .read_bytes()
            == old
        )
        newer = HubStore(MODEL, None, said.append, **options)
        assert (newer.commit, newer.fetch(shard, ignore).read_bytes()) == (server.main, old + b"x")
        # Dropping one commit's file leaves the other's, and blobs that both have.
        discarding = HubStore(MODEL, None, said.append, discard=True, **options)
        newer.small("config.json"), store.small("config.json")
        discarding.release(shard)
        discarding.release("config.json")
        assert store.fetch(shard, ignore).read_bytes() == old
        server.requests.clear()
        store.small("config.json")
        assert not server.requests


def test_released_shards_leave_the_cache_if_told_to(store, cache, shard):
    kept = store()
    path = kept.fetch(shard, ignore)
    kept.release(shard)
    assert path.exists()
    store(discard=True).release(shard)
    assert not path.is_symlink()
    assert not blobs(cache)
    store(discard=True).release(shard)


@pytest.mark.parametrize("offline", [False, True])
def test_a_cached_model_needs_no_hub(offline, hub, cache, store, shard, said, checkpoint, monkeypatch):
    store().fetch(shard, ignore)
    store().small("config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    link = Link(said.append, first_pause_s=0)
    away = {"cache": cache, "endpoint": hub.url if offline else "http://127.0.0.1:9", "link": link}
    hub.requests.clear()
    found = HubStore(MODEL, None, said.append, **away)
    assert found.commit == hub.main
    assert "from the cache" in said[-1]
    assert found.headers(shard) == read_headers(checkpoint / shard)
    assert found.fetch(shard, ignore).read_bytes() == (checkpoint / shard).read_bytes()
    with pytest.raises(InputError, match=r"00002.* is not cached"):
        found.fetch(shard.replace("00001-", "00002-"), ignore)
    with pytest.raises(InputError, match="can't reach the hub, and the model is not cached"):
        HubStore("tiny/other", None, said.append, **away)
    assert not hub.requests


def test_a_cache_without_links(hub, cache, store, shard, monkeypatch, checkpoint):
    monkeypatch.setattr("pathlib.Path.symlink_to", lambda self, target: (_ for _ in ()).throw(OSError("no links here")))
    found = store(discard=True)
    found.small("config.json")
    assert not found.fetch(shard, ignore).is_symlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    away = store(discard=True)
    assert away.fetch(shard, ignore).read_bytes() == (checkpoint / shard).read_bytes()
    assert away.sha256(shard) is None
    away.release(shard)
    assert not away._cache.path(away.commit, shard).exists()


def test_the_token_goes_to_the_hub_alone(hub, store, shard, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = store()
    found.small("config.json")
    found.fetch(shard, ignore)
    assert {request.token for request in hub.asked(LIST) + hub.asked("config.json")} == {"Bearer hf_secret"}
    assert {request.token for request in hub.asked(shard)} == {None}


def test_closing_ends_a_download_and_keeps_its_part(hub, store, shard, cache):
    hub.delay_s = 0.01
    found, amounts = store(), []
    closing = threading.Timer(0.1, found.close)
    closing.start()
    with pytest.raises(KrasisError, match="interrupted"):
        found.fetch(shard, amounts.append)
    (part,) = cache.glob("*/blobs/*.incomplete")
    assert part.stat().st_size == sum(amounts)
    assert hashlib.sha256(part.read_bytes()).hexdigest() != part.name.partition(".")[0]


def test_two_that_fetch_one_file(hub, store, shard, checkpoint):
    hub.delay_s = 0.001
    found = [store(), store()]
    threads = [threading.Thread(target=one.fetch, args=(shard, ignore)) for one in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.asked(shard)) == 1
    assert found[0].fetch(shard, ignore).read_bytes() == (checkpoint / shard).read_bytes()
