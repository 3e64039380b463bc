"""What is counted while text runs, held to the reference; and that a run cut short goes on to the same bits."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard

from krasis.errors import FitError, InputError, KrasisError, UsageError
from krasis.heat import partial as partials
from krasis.heat.partial import Job, Partial
from krasis.heat.routing import Routing
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
    with open_partial(engine.tracer.experts, job()) as partial:
        (heat,) = measure(engine, [texts], partial, lambda tokens: None)
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
        with open_partial(engine.tracer.experts, job(device=device)) as partial:
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
    """Windows of two texts, the last of each shorter than what is decoded of it."""
    return [cut(ids, 8 * WINDOW + DECODED - 5) for ids in list(text_ids.values())[:2]]


TOKENS = 2 * (8 * WINDOW + DECODED - 5)


class Interrupts:
    """A progress that interrupts once more than so many tokens are done."""

    def __init__(self, limit):
        self.limit, self.tokens = limit, 0

    def __call__(self, tokens):
        self.tokens += tokens
        if self.tokens > self.limit:
            raise KeyboardInterrupt


def windows_done(partial):
    return sum(text.windows for text in partial.texts)


def contents(engine, pack, heats):
    corpus = job(len(heats)).corpus
    traces = [[{layer: ids.tolist() for layer, ids in window.items()} for window in heat.trace] for heat in heats]
    return profile_of(engine, Pack(pack), corpus, heats).encode(), traces


@pytest.fixture
def run(demo_pack, open_partial):
    """(engine, texts, progress) -> what a run gives, from where the last one stood, which is then done with."""

    def measured(engine, texts, progress=lambda tokens: None):
        with open_partial(engine.tracer.experts, job(2)) as partial:
            assert partial.dropped == ""
            found = contents(engine, demo_pack(), measure(engine, texts, partial, progress))
            partial.remove()
        return found

    return measured


@pytest.fixture
def stop(open_partial):
    """(engine, texts, tokens) -> the windows done by a run that is stopped after so many tokens."""

    def run(engine, texts, tokens):
        partial = open_partial(engine.tracer.experts, job(2))
        with pytest.raises(KeyboardInterrupt), partial:
            measure(engine, texts, partial, Interrupts(tokens))
        return windows_done(partial)

    return run


@pytest.mark.parametrize("sequences", [3, 8, 64])
def test_a_profile_is_the_same_however_many_run_together(family, sequences, pack_of, open_engine, two, run):
    one, several = (open_engine(pack_of(family), trace=True, sequences=n) for n in (1, sequences))
    assert run(several, two) == run(one, two)


@pytest.mark.parametrize("stops", [(WINDOW,), (3 * WINDOW, 4 * WINDOW - 1, 7 * WINDOW), (TOKENS - 1,)], ids=str)
@pytest.mark.parametrize("sequences", [(1, 1), (3, 1), (2, 5)], ids=str)
def test_a_stopped_run_goes_on_to_the_same_bits(stops, sequences, demo_pack, open_engine, two, run, stop, tmp_path):
    first, second = (open_engine(demo_pack(), trace=True, sequences=n) for n in sequences)
    unbroken = run(second, two)
    for tokens in stops:
        done = stop(first, two, tokens)
        assert tokens // WINDOW - sequences[0] < done <= tokens // WINDOW + 1
    progress = Interrupts(TOKENS)
    assert run(second, two, progress) == unbroken
    assert progress.tokens == TOKENS
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_at_its_end_has_all(engine, two, open_partial):
    def interrupted():
        yield from two[1]
        raise KeyboardInterrupt

    partial = open_partial(engine.tracer.experts, job(2))
    with pytest.raises(KeyboardInterrupt), partial:
        measure(engine, [two[0], interrupted()], partial, lambda tokens: None)
    with open_partial(engine.tracer.experts, job(2)) as partial:
        assert windows_done(partial) == 18


def test_what_was_not_saved_is_run_again(engine, two, run, stop, tmp_path):
    """As after a kill: the work file is older than the traces."""
    unbroken, work = run(engine, two), tmp_path / "heat.json.zst.partial/work"
    done = stop(engine, two, 5 * WINDOW)
    saved = work.read_bytes()
    assert stop(engine, two, 15 * WINDOW) > done
    work.write_bytes(saved)
    progress = Interrupts(TOKENS)
    assert run(engine, two, progress) == unbroken
    assert progress.tokens == TOKENS


def test_progress_is_saved_every_now_and_then(engine, two, open_partial, monkeypatch):
    monkeypatch.setattr(partials, "SAVED_EVERY_S", 0)
    monkeypatch.setattr(partials, "SAVING_SHARE", 0)
    seen = []

    def look(tokens):
        work = zstandard.decompress((partial.path / partials.WORK).read_bytes())
        seen.append(sum(text["windows"] for text in msgspec.msgpack.decode(work)["texts"]))

    with open_partial(engine.tracer.experts, job(2)) as partial:
        measure(engine, two, partial, look)
    assert sorted(set(seen)) == list(range(18))


CHANGES = [
    ({"window": 64}, "window"),
    ({"decode_tokens": 4}, "decode tokens"),
    ({"limit": 5}, "limit"),
    ({"pack_root": "cd" * 32}, "pack root"),
    ({"corpus": job(2).corpus[:1] * 2}, "corpus"),
    ({"traces": False}, "traces"),
    ({"imatrix": True}, "imatrix"),
    ({"sequences": 3}, "sequences"),
]


@pytest.mark.parametrize(("changes", "says"), CHANGES, ids=[says for _, says in CHANGES])
def test_another_job_starts_over(changes, says, engine, two, stop, open_partial):
    assert stop(engine, two, 5 * WINDOW) > 0
    with open_partial(engine.tracer.experts, job(2, **changes)) as partial:
        assert partial.dropped == f"it differs in {says}"
        assert windows_done(partial) == 0


def test_work_that_cannot_be_gone_on_with_starts_over(engine, two, stop, open_partial, tmp_path):
    folder, experts = tmp_path / "heat.json.zst.partial", engine.tracer.experts
    work, trace = folder / "work", folder / "trace-0"

    def dropped(experts=experts):
        with open_partial(experts, job(2)) as partial:
            assert windows_done(partial) == 0
        return partial.dropped

    stop(engine, two, 5 * WINDOW)
    work.write_bytes(work.read_bytes()[:-9])
    assert dropped() == "it can't be read"
    stop(engine, two, 5 * WINDOW)
    trace.write_bytes(trace.read_bytes()[:-1])
    assert dropped() == "it lacks something"
    stop(engine, two, 5 * WINDOW)
    assert dropped(experts | {0: 3}) == "it lacks something"


def test_one_run_a_destination(engine, open_partial, tmp_path):
    with open_partial(engine.tracer.experts, job()) as partial:
        with pytest.raises(UsageError, match="another profile-heat is measuring this profile") as refusal:
            open_partial(engine.tracer.experts, job())
        assert str(partial.path) in str(refusal.value)
        with Partial(tmp_path / "other.json.zst", job(), engine.tracer.experts) as other:
            other.remove()
    with open_partial(engine.tracer.experts, job()) as partial:
        partial.remove()
    assert not list(tmp_path.iterdir())


def test_what_others_put_there_stays(engine, open_partial, tmp_path):
    with open_partial(engine.tracer.experts, job()) as partial:
        mine = partial.path / "notes.txt"
        mine.touch()
        partial.remove()
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_shows_before_anything_runs(engine, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't write the heat profile"):
        Partial(tmp_path / "file/heat.json.zst", job(), engine.tracer.experts)


def test_a_full_disk_keeps_what_was_saved(engine, two, stop, open_partial, monkeypatch):
    done = stop(engine, two, 5 * WINDOW)
    monkeypatch.setattr(partials, "SAVED_EVERY_S", 0)
    partial = open_partial(engine.tracer.experts, job(2))
    (partial.path / "work.tmp").symlink_to("/dev/full")
    with pytest.raises(FitError, match="the disk is full"), partial:
        measure(engine, two, partial, lambda tokens: None)
    with open_partial(engine.tracer.experts, job(2)) as partial:
        assert windows_done(partial) == done


EXPERTS = {0: 2, 3: 1}
SUMMED = job(traces=False, imatrix=True, sequences=1)


@pytest.fixture
def summing(open_partial, monkeypatch):
    """() -> a measurement that is saved after each window, and its sums, which count windows."""
    monkeypatch.setattr(partials, "SAVED_EVERY_S", 0)
    monkeypatch.setattr(partials, "SAVING_SHARE", 0)

    def begin():
        sums = np.zeros((2, 3)), np.zeros(1, np.int64)
        return open_partial(EXPERTS, SUMMED, sums=[found.data for found in sums]), sums

    return begin


def another_window(partial, sums):
    nothing = Routing.nothing(EXPERTS)
    for found in sums:
        found += 1
    partial.put(0, partial.texts[0].counted(nothing, nothing))
    partial.save_if_due()


def windows_and_sums(begin):
    partial, (squares, inputs) = begin()
    with partial:
        assert len(set(squares.ravel())) == 1
        return windows_done(partial), squares[0, 0], inputs[0]


def test_sums_are_those_of_the_windows(summing):
    partial, sums = summing()
    with partial:
        another_window(partial, sums)
        another_window(partial, sums)
        for found in sums:
            found += 1
    assert windows_and_sums(summing) == (2, 2, 2)
    assert sorted(path.name for path in partial.path.iterdir()) == ["sums-2", "work"]


@pytest.mark.parametrize("step", ["write_synced", "sync_folder", "_write", "unlink"])
def test_a_run_that_dies_while_it_saves_leaves_sums_that_fit(step, summing, monkeypatch):
    partial, sums = summing()
    with partial:
        another_window(partial, sums)

        def die(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            where = {"_write": partial, "unlink": Path}.get(step, partials)
            patch.setattr(where, step, die)
            with pytest.raises(KeyboardInterrupt):
                another_window(partial, sums)
    windows, *found = windows_and_sums(summing)
    assert (windows, found) == ((2, [2, 2]) if step == "unlink" else (1, [1, 1]))
    partial, sums = summing()
    with partial:
        another_window(partial, sums)
        assert sorted(path.name for path in partial.path.iterdir()) == [f"sums-{windows + 1}", "work"]


def test_sums_that_were_cut_short_start_over(summing):
    partial, sums = summing()
    with partial:
        another_window(partial, sums)
    path = partial.path / "sums-1"
    path.write_bytes(path.read_bytes()[:-1])
    assert windows_and_sums(summing) == (0, 0, 0)


def test_numbers_that_are_none_are_refused(engine, two, open_partial, monkeypatch):
    record = engine.tracer.record
    monkeypatch.setattr(engine.tracer, "record", lambda layer, ids, weights: record(layer, ids, weights * torch.nan))
    with pytest.raises(KrasisError, match="no finite numbers"), open_partial(engine.tracer.experts, job(2)) as partial:
        measure(engine, two, partial, lambda tokens: None)


def test_too_little_text():
    check_enough([3, 4, 1], 512)
    with pytest.raises(InputError, match="too little text"):
        check_enough([3, 3, 3], 512)
