"""What is counted while text runs, held to the reference; and that a run cut short goes on to the same bits."""

import msgspec
import numpy as np
import pytest
import torch

from krasis.errors import FitError, InputError, KrasisError, UsageError
from krasis.heat import partial as partials
from krasis.heat.partial import Job, Partial
from krasis.pack.manifest import Origin
from krasis.pack.reader import Pack
from krasis.runtime.eval import windows
from krasis.runtime.heat import check_enough, measure, profile_of

WINDOW, DECODED = 128, 16


def job(texts=1, **changes):
    corpus = tuple(Origin(f"text {i}", 9, "0" * 64) for i in range(texts))
    return msgspec.structs.replace(
        Job("test", "ab" * 32, corpus, WINDOW, DECODED, None, "cpu", None, traces=True), **changes
    )


@pytest.fixture
def open_partial(tmp_path):
    """(experts, job, options) -> the measurement under way at one destination."""
    return lambda experts, given, **options: Partial(tmp_path / "heat.json.zst", given, experts, **options)


def cut(ids, tokens):
    return list(windows(ids[:tokens], WINDOW))


def chosen(engine, ids):
    """Layer -> ids int64 and weights [tokens, top_k] of a window that runs whole."""
    engine.all_hidden(ids, engine.new_state())
    return engine.tracer.take()


def summed(found, rows):
    """Counts and weights of some rows of all windows, one addition at a time."""
    counts, weights = {}, {}
    for window, part in rows:
        choices, shares = found[window]
        for layer, ids in choices.items():
            for row in range(*part.indices(len(ids))):
                for expert, weight in zip(ids[row], shares[layer][row], strict=True):
                    counts[layer, expert] = counts.get((layer, expert), 0) + 1
                    weights[layer, expert] = weights.get((layer, expert), 0.0) + float(weight)
    return counts, weights


def check(routing, tokens, counts, weights):
    assert routing.tokens == tokens
    for layer, found in routing.counts.items():
        assert found.tolist() == [counts.get((layer, expert), 0) for expert in range(len(found))]
        expected = [weights.get((layer, expert), 0.0) for expert in range(len(found))]
        assert routing.weights[layer].tolist() == pytest.approx(expected, rel=1e-5)


def test_phases_are_counted_as_whole_windows_choose(family, exact_pack, open_engine, text_ids, open_partial):
    """Five windows, of which the fourth is held out and the fifth is short; each is judged by one run of it whole."""
    engine = open_engine(exact_pack(family), "reference", trace=True)
    texts = cut(next(iter(text_ids.values())), 4 * WINDOW + 40)
    found = [chosen(engine, ids) for ids in texts]
    (heat,) = measure(engine, [texts], open_partial(engine.tracer.experts, job()), lambda tokens: None)
    early, late = slice(0, -DECODED), slice(-DECODED, None)
    counted = (0, 1, 2, 4)
    check(heat.prefill, 3 * (WINDOW - DECODED) + 40 - DECODED, *summed(found, [(w, early) for w in counted]))
    check(heat.decode, 4 * DECODED, *summed(found, [(w, late) for w in counted]))
    check(heat.held_out, WINDOW, *summed(found, [(3, slice(None))]))
    (traced,) = heat.trace
    assert all(np.array_equal(traced[layer], ids) for layer, ids in found[3][0].items())


def test_the_cpu_counts_what_the_reference_counts(exact_pack, open_engine, text_ids, open_partial):
    texts = [cut(next(iter(text_ids.values())), 8 * WINDOW)]
    both = []
    for device in ("reference", "cpu"):
        engine = open_engine(exact_pack("qwen3_moe"), device, trace=True, kv="f32")
        partial = open_partial(engine.tracer.experts, job(device=device))
        both.append(measure(engine, texts, partial, lambda tokens: None)[0])
        partial.remove()
    for phase in ("prefill", "decode", "held_out"):
        reference, found = (getattr(heat, phase) for heat in both)
        assert found.tokens == reference.tokens
        pairs = sum(counts.sum() for counts in reference.counts.values())
        moved = sum(np.abs(found.counts[layer] - counts).sum() for layer, counts in reference.counts.items())
        # None does, as measured; two experts as good as each other may change places where sums are rounded otherwise.
        assert moved <= pairs / 1000


@pytest.fixture
def engine(demo_pack, open_engine):
    return open_engine(demo_pack(), trace=True)


@pytest.fixture
def two(text_ids):
    """Windows of two texts."""
    return [cut(ids, 9 * WINDOW) for ids in list(text_ids.values())[:2]]


class Interrupts:
    """A progress that interrupts after so many windows."""

    def __init__(self, windows):
        self.left, self.tokens = windows, 0

    def __call__(self, tokens):
        self.left, self.tokens = self.left - 1, self.tokens + tokens
        if self.left == 0:
            raise KeyboardInterrupt


def contents(engine, pack, heats):
    corpus = job(len(heats)).corpus
    traces = [[{layer: ids.tolist() for layer, ids in window.items()} for window in heat.trace] for heat in heats]
    return profile_of(engine, Pack(pack), corpus, heats).encode(), traces


@pytest.fixture
def unbroken(engine, two, demo_pack, open_partial):
    """What a run that nothing stops gives."""
    partial = open_partial(engine.tracer.experts, job(2))
    found = contents(engine, demo_pack(), measure(engine, two, partial, lambda tokens: None))
    partial.remove()
    return found


@pytest.mark.parametrize("stops", [(1,), (3, 4, 5), (9, 10), (17,), (18,)])
def test_a_stopped_run_goes_on_to_the_same_bits(stops, engine, two, demo_pack, open_partial, unbroken, tmp_path):
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            measure(engine, two, open_partial(engine.tracer.experts, job(2)), Interrupts(stop))
    partial, progress = open_partial(engine.tracer.experts, job(2)), Interrupts(-1)
    assert partial.dropped == ""
    assert sum(text.windows for text in partial.texts) == stops[-1]
    assert contents(engine, demo_pack(), measure(engine, two, partial, progress)) == unbroken
    assert progress.tokens == 18 * WINDOW
    partial.remove()
    assert not list(tmp_path.iterdir())


def test_what_was_not_saved_is_run_again(engine, two, demo_pack, open_partial, unbroken, monkeypatch):
    """As after a kill: the work file is older than the traces."""
    partial = open_partial(engine.tracer.experts, job(2))
    with pytest.raises(KeyboardInterrupt):
        measure(engine, two, partial, Interrupts(5))
    saved = partial.path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        measure(engine, two, partial, Interrupts(17))
    partial.path.write_bytes(saved)
    partial = open_partial(engine.tracer.experts, job(2))
    assert sum(text.windows for text in partial.texts) == 5
    assert contents(engine, demo_pack(), measure(engine, two, partial, lambda tokens: None)) == unbroken


def test_progress_is_saved_every_now_and_then(engine, two, open_partial, monkeypatch):
    monkeypatch.setattr(partials, "SAVED_EVERY_S", 0)
    seen = []

    def look(tokens):
        saved = open_partial(engine.tracer.experts, job(2))
        seen.append(sum(text.windows for text in saved.texts))

    measure(engine, two, open_partial(engine.tracer.experts, job(2, traces=True)), look)
    assert seen == list(range(1, 19))


CHANGES = [
    ({"window": 64}, "window"),
    ({"decode_tokens": 4}, "decode tokens"),
    ({"limit": 5}, "limit"),
    ({"pack_root": "cd" * 32}, "pack root"),
    ({"corpus": job(2).corpus[:1] * 2}, "corpus"),
    ({"traces": False}, "traces"),
]


@pytest.mark.parametrize(("changes", "says"), CHANGES, ids=[says for _, says in CHANGES])
def test_another_job_starts_over(changes, says, engine, two, open_partial):
    with pytest.raises(KeyboardInterrupt):
        measure(engine, two, open_partial(engine.tracer.experts, job(2)), Interrupts(5))
    partial = open_partial(engine.tracer.experts, job(2, **changes))
    assert partial.dropped == f"it is of another {says}"
    assert [text.windows for text in partial.texts] == [0, 0]


def test_work_that_cannot_be_gone_on_with_starts_over(engine, two, open_partial, tmp_path):
    experts = engine.tracer.experts

    def again():
        with pytest.raises(KeyboardInterrupt):
            measure(engine, two, open_partial(experts, job(2)), Interrupts(5))
        return tmp_path / "heat.json.zst.partial", tmp_path / "heat.json.zst.partial.trace-0"

    work, _ = again()
    work.write_bytes(work.read_bytes()[:-9])
    assert open_partial(experts, job(2)).dropped == "it can't be read"
    _, trace = again()
    trace.write_bytes(trace.read_bytes()[:-1])
    assert open_partial(experts, job(2)).dropped == "it lacks something"
    again()
    assert open_partial(experts | {0: 3}, job(2)).dropped == "it lacks something"


def test_without_going_on_nothing_is_kept(engine, two, open_partial, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(engine, two, open_partial(engine.tracer.experts, job(2, traces=False), resumable=False), Interrupts(5))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_shows_before_anything_runs(engine, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't write the heat profile"):
        Partial(tmp_path / "file/heat.json.zst", job(), engine.tracer.experts)
    (tmp_path / "heat.json.zst.partial.tmp").symlink_to("/dev/full")
    with pytest.raises(FitError, match="the disk is full"):
        Partial(tmp_path / "heat.json.zst", job(), engine.tracer.experts)


def test_numbers_that_are_none_are_refused(engine, two, open_partial, monkeypatch):
    record = engine.tracer.record
    monkeypatch.setattr(engine.tracer, "record", lambda layer, ids, weights: record(layer, ids, weights * torch.nan))
    with pytest.raises(KrasisError, match="no finite numbers"):
        measure(engine, two, open_partial(engine.tracer.experts, job(2)), lambda tokens: None)


def test_too_little_text():
    check_enough([3, 4, 1], 512)
    with pytest.raises(InputError, match="too little text"):
        check_enough([3, 3, 3], 512)
