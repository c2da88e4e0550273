"""However questions are asked, the model's opinions are those of one pass for each prompt with each answer."""

from collections import Counter
from dataclasses import replace

import pytest
import tiny_models
import torch
from oracles import evaluate as oracle
from some_edits import make_edit

from tl_edit import EditRecord, EditRequest, Evaluation, evaluate, forward, tokens
from tl_edit.blocks import TreeBlocks, tree
from tl_edit.evaluate import Question, Sheet, asking, batches, opinions, questions, ways
from tl_edit.evaluate import texts as texts_module
from tl_edit.evaluate.asking import Asker
from tl_edit.evaluate.sheet import _asked
from tl_edit.evaluate.texts import nlls

LONG = "In the old days people said that every way leads to the great city where the river turns to the sea, and so"
RECORDS = (
    EditRecord(
        EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Rome and Paris"),  # one begins with the other
        ("Where is the Eiffel Tower? It is in", f"{LONG} the Eiffel Tower is in"),
        # Equal prompts, and prompts that others begin with.
        ("The Louvre is in", "The Louvre is", "The Louvre is in", "The Louvre is in the middle of"),
        (("The Eiffel Tower is", "in the city of Paris"),),
    ),
    EditRecord(EditRequest("{} was born in", "Danielle", "Constantinople")),
    EditRecord(EditRequest("{} is", "The Louvre", "in Rome", "a place"), (), (f"{LONG} the Louvre", "It")),
)
CASES = tiny_models.available_cases()


def sheet_of(model, bos=False, **given) -> Sheet:
    return Sheet(model, RECORDS, bos, distracted=True, **given)


def has_bos(case) -> bool:
    return not case.family.startswith("qwen")


def limit_of(case) -> float:
    """Hugging Face computes rotary angles, norms or attention in float32 in the others."""
    exact = case.interface == "HookedTransformer" or case.family in ("gpt2", "gpt_neox")
    return 1e-10 if exact else 1e-5


def check(model, scores, bos, limit) -> None:
    """Each probability, hit and prediction against the loop."""
    for record, found in zip(RECORDS, scores, strict=True):
        groups = Counter()
        for group, prompt, answers in _asked(record, True):
            score = getattr(found, group)[groups[group]]
            groups[group] += 1
            said = [oracle.alone(model, prompt, answer, prepend_bos=bos) for answer in answers]
            if group == "other_facts":
                probs, hits = [score.prob], [score.hits]
            else:
                probs, hits = [score.prob_new, score.prob_true], [score.hits_new, score.hits_true]
            for one, prob, hit in zip(said, probs, hits, strict=False):
                assert prob == pytest.approx(one.prob, rel=limit, abs=0)
                assert list(hit) == one.hits
            assert score.prediction == model.tokenizer.decode([said[0].predicted])


def check_opinions(model, found, asked, bos, limit=1e-10) -> None:
    for question, opinion in zip(asked, found, strict=True):
        expected = oracle.alone(model, question.prompt, question.answer, prepend_bos=bos)
        assert opinion.log_probs == pytest.approx(expected.log_probs, rel=limit, abs=0)
        assert (list(opinion.hits), opinion.predicted) == (expected.hits, expected.predicted)


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_family_is_asked_as_alone(case, bos):
    if bos and not has_bos(case):
        pytest.skip("its tokenizer has no BOS")
    model = tiny_models.build(case, dtype=torch.float64)
    sheet = sheet_of(model, bos)
    # So windows slide, and answers have several tokens.
    assert max(len(question.before) for question in sheet.questions) > tiny_models.WINDOW
    assert {len(question.target) for question in sheet.questions} > {1, 2}
    check(model, sheet.scores((), 128), bos, limit_of(case))
    hooked = case.interface == "HookedTransformer"
    assert sheet.engine == ("trees (packed weights)" if hooked else "rows (not a HookedTransformer)")


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama", "gpt_neo")), ids=str)
def test_single_precision(case):
    model = tiny_models.build(case)
    check(model, sheet_of(model).scores((), 128), False, 2e-4)


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "gpt_neo", "gemma2")), ids=str)
def test_batches_do_not_matter(case, monkeypatch):
    model = tiny_models.build(case, dtype=torch.float64)
    for batch_size, width, nodes in ((1, 64, 2048), (3, 1, 2048), (128, 8, 30), (128, 500, 2048)):
        monkeypatch.setattr(tree, "WIDTH", width)
        monkeypatch.setattr(ways, "NODES", nodes)
        check(model, sheet_of(model).scores((), batch_size), False, limit_of(case))


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_an_edit_that_is_switched_on_between_is_seen(interface):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    sheet = sheet_of(model)
    before = sheet.scores((), 128)
    check(model, before, False, 1e-10)
    with make_edit(model, (0, 2)).on(model):
        check(model, sheet.scores((), 128), False, 1e-10)
    assert sheet.scores((), 128) == before


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_distributions_are_those_after_the_prompt(interface):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    sheet = sheet_of(model)
    found = sheet.distributions(128)
    assert set(found) == set(sheet.compared) != set()
    for i, log_probs in found.items():
        question = sheet.questions[i]
        expected = oracle.alone(model, question.prompt, question.answer, prepend_bos=False).following
        assert torch.allclose(log_probs, expected, rtol=1e-10, atol=0)
        assert log_probs.untyped_storage().nbytes() == 8 * len(log_probs)
    (scores, *_) = sheet.scores((), 128, against=found)
    assert [score.kl for score in scores.neighborhood] == pytest.approx([0.0] * 4, abs=1e-12)


@pytest.mark.parametrize("case", tiny_models.available_cases(("mixtral", "attn_only")), ids=str)
def test_what_has_no_packed_form_is_asked_in_rows(case):
    model = tiny_models.build(case)
    sheet = sheet_of(model)
    check(model, sheet.scores((), 128), False, 1e-3)
    assert sheet.engine.startswith("rows (no")


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
def test_half_precision_is_asked_in_rows(case):
    model = tiny_models.build(case, dtype=torch.bfloat16)
    sheet = sheet_of(model)
    (scores, *_) = sheet.scores((), 128)
    expected = oracle.alone(model, scores.efficacy[0].prompt, "Rome", prepend_bos=False)
    assert scores.efficacy[0].prob_new == pytest.approx(expected.prob, rel=0.1)
    assert sheet.engine.startswith("rows (no")


class TestFallback:
    """Where a faster way is not the model's own, the next one is gone, and the engine says why."""

    @pytest.fixture
    def model(self):
        if "HookedTransformer" not in tiny_models.interfaces():
            pytest.skip("there is no HookedTransformer")
        return tiny_models.build("gpt2", dtype=torch.float64)

    def test_numbers_that_are_not_the_models(self, model, monkeypatch):
        states = TreeBlocks.states
        monkeypatch.setattr(TreeBlocks, "states", lambda self, *given: states(self, *given).roll(1, -1))
        result = evaluate(model, RECORDS, distracted=True, prepend_bos=False)
        assert result.engine.startswith("rows (answers are off by ")
        check(model, result.scores, False, 1e-10)

    def test_numbers_that_are_none(self, model, monkeypatch):
        states = TreeBlocks.states
        monkeypatch.setattr(TreeBlocks, "states", lambda self, *given: float("nan") * states(self, *given))
        result = evaluate(model, RECORDS, distracted=True, prepend_bos=False)
        assert "not finite" in result.engine
        check(model, result.scores, False, 1e-10)

    def test_whatever_is_raised(self, model, monkeypatch):
        monkeypatch.setattr(TreeBlocks, "states", lambda self, *given: [][0])
        sheet = sheet_of(model)
        check(model, sheet.scores((), 128), False, 1e-10)
        assert sheet.engine == "rows (its blocks cannot be called alone (IndexError: list index out of range))"
        monkeypatch.undo()
        sheet.scores((), 128)
        assert sheet.engine.startswith("rows (its blocks"), "what failed is not tried again"

    def test_memory_that_runs_out_is_no_reason(self, model, monkeypatch):
        def fail(*_given):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(TreeBlocks, "states", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            sheet_of(model).scores((), 128)

    def test_a_module_of_the_users(self, model):
        model.blocks[1].mlp.act_fn = lambda x: torch.tanh(x)
        sheet = sheet_of(model)
        check(model, sheet.scores((), 128), False, 1e-10)
        assert sheet.engine == "rows (blocks.1.mlp is not TransformerLens' own)"

    def test_a_few_questions(self, model):
        result = evaluate(model, RECORDS[1], prepend_bos=False)
        assert result.engine == "rows (a few questions)"

    def test_weights_that_are_no_numbers_are_still_told(self, model):
        with torch.no_grad():
            model.blocks[0].mlp.W_out[0, 0] = float("nan")
        with pytest.raises(ValueError, match="next-token probabilities are not finite"):
            evaluate(model, RECORDS)


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
@pytest.mark.parametrize("way", ["none", "wrong", "raises"])
def test_logits_that_cannot_be_trimmed_are_computed_whole(interface, way, monkeypatch):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    monkeypatch.setattr(asking, "check_common", _refuse)
    logits_at = forward.logits_at
    wrong = {"none": lambda *_: None, "wrong": lambda *given: 1.1 * logits_at(*given), "raises": lambda *_: [][0]}
    monkeypatch.setattr(forward, "logits_at", wrong[way])
    sheet = sheet_of(model)
    check(model, sheet.scores((), 128), False, 1e-10)


def _refuse(_model):
    raise asking.CannotCallBlocksError("asked for")


@pytest.mark.parametrize("case", tiny_models.available_cases((*tiny_models.FAMILIES, "mixtral", "attn_only")), ids=str)
def test_trimmed_logits_are_the_models_own(case):
    model = tiny_models.build(case)
    rows = [tokens.encode(model, text, prepend_bos=False) for text in (LONG, "The Louvre is in", "It")]
    batch, places = tokens.pad(model, rows), torch.tensor([3, 0, len(rows[0]) + 2, 2 * len(rows[0])])
    with torch.no_grad():
        expected = forward.logits(model, batch).flatten(0, 1)[places]
        assert torch.allclose(forward.logits_at(model, batch, places), expected, rtol=0, atol=1e-5)
    assert not model.unembed._forward_pre_hooks


def watch(model, seen):
    def hook(act, hook):
        seen.append(tuple(act.shape[:2]))

    return [("blocks.0.hook_resid_pre", hook)]


@pytest.mark.parametrize("attached", [False, True], ids=["given", "foreign"])
@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_hooks_see_each_row_as_it_stands_and_once(interface, attached):
    """Each prompt is followed by all tokens of an object but the last, without padding."""
    model, seen = tiny_models.build("gpt2", interface, dtype=torch.float64), []
    hooks = watch(model, seen)
    if attached:
        model.hook_dict[hooks[0][0]].add_hook(hooks[0][1])
        result = evaluate(model, RECORDS, distracted=True, prepend_bos=False, batch_size=4)
    else:
        result = evaluate(model, RECORDS, hooks=hooks, distracted=True, prepend_bos=False, batch_size=4)
    rows = {ways.as_row(question) for question in sheet_of(model).questions}
    assert Counter(len(row) for row in rows) == sum((Counter({length: n}) for n, length in seen), Counter())
    assert max(n for n, _ in seen) <= 4
    assert result.engine.startswith("rows (a hook is attached at blocks.0" if attached else "rows (hooks are given)")
    check(model, result.scores, False, 1e-10)


def test_rows_that_others_begin_with_are_not_run(monkeypatch):
    model, shapes = tiny_models.build("gpt2", dtype=torch.float64), []
    monkeypatch.setattr(asking, "check_common", _refuse)
    logits_at = forward.logits_at

    def count(model, batch, places):
        shapes.append((len(batch.lengths), len(places)))
        return logits_at(model, batch, places)

    monkeypatch.setattr(forward, "logits_at", count)
    sheet = sheet_of(model)
    check(model, sheet.scores((), 128), False, 1e-10)
    rows = {ways.as_row(question) for question in sheet.questions}
    own = [row for row in rows if not any(other[: len(row)] == row and other != row for other in rows)]
    assert sum(n for n, _ in shapes) == len(own) < len(rows)
    reads = {
        ways.as_row(question)[:stop]
        for question in sheet.questions
        for stop in range(len(question.before), len(question.row) + 1)
    }
    assert sum(n for _, n in shapes) <= sum(len(question.target) for question in sheet.questions)
    assert sum(n for _, n in shapes) >= len(reads)


def test_nodes_and_logits_at_a_time_are_bounded(monkeypatch):
    if "HookedTransformer" not in tiny_models.interfaces():
        pytest.skip("there is no HookedTransformer")
    model, nodes, reads = tiny_models.build("gpt2", dtype=torch.float64), [], []
    states, unembed = TreeBlocks.states, TreeBlocks.unembed

    def counted_states(self, forest, only):
        nodes.append(len(forest.tokens))
        return states(self, forest, only)

    def counted_logits(self, states):
        reads.append(len(states))
        return unembed(self, states)

    monkeypatch.setattr(TreeBlocks, "states", counted_states)
    monkeypatch.setattr(TreeBlocks, "unembed", counted_logits)
    monkeypatch.setattr(questions, "READ_AT_ONCE", 5)
    sheet = sheet_of(model)
    longest = max(len(question.row) for question in sheet.questions)
    for batch_size, most in ((1, longest), (2, 2 * longest), (128, 90)):
        monkeypatch.setattr(ways, "NODES", 90 if batch_size == 128 else 2048)
        nodes.clear()
        reads.clear()
        check(model, sheet.scores((), batch_size), False, 1e-10)
        assert max(nodes) <= max(most, longest)
        assert max(reads) <= 5
    # What is shared is there once, and each place is read once.
    monkeypatch.setattr(tree, "WIDTH", 10**4)
    monkeypatch.setattr(ways, "NODES", 10**4)
    nodes.clear()
    reads.clear()
    sheet.scores((), 10**4)
    rows = [ways.as_row(question) for question in sheet.questions]
    assert nodes == [len({row[:stop] for row in rows for stop in range(1, len(row) + 1)})]
    starts = [len(question.before) for question in sheet.questions]
    places = {row[:stop] for row, start in zip(rows, starts, strict=True) for stop in range(start, len(row) + 1)}
    assert sum(reads) == len(places)


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_whole_logits_at_a_time_are_bounded(interface, monkeypatch):
    model, sizes = tiny_models.build("gpt2", interface, dtype=torch.float64), []
    run = forward.logits

    def count(model, batch, *hooks):
        sizes.append(batch.tokens.shape)
        return run(model, batch, *hooks)

    monkeypatch.setattr(forward, "logits", count)
    monkeypatch.setattr(forward, "LOGIT_BYTES", 60 * 8 * int(model.cfg.d_vocab))
    texts, hooks = [LONG, "It was a day of rain", "The Louvre is in Paris"], watch(model, [])
    result = evaluate(model, RECORDS, hooks=hooks, texts=texts, distracted=True, prepend_bos=False)
    check(model, result.scores, False, 1e-10)
    asked = [Question.of(model, *pair, prepend_bos=False) for pair in [("The Louvre is in", "Paris")] * 30]
    check_opinions(
        model, [each for chunk in batches(model, asked, 128) for each in opinions(model, [asked[i] for i in chunk])],
        asked, False,
    )  # fmt: skip
    assert all(n * length <= 60 or n == 1 for n, length in sizes)
    assert any(n > 1 for n, _ in sizes)


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_the_perplexity_of_texts_does_not_depend_on_memory(interface, monkeypatch):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    texts = [LONG, "It was a day of rain", "The Louvre is in Paris", LONG[:40]]
    whole = nlls(model, texts, prepend_bos=True, batch_size=128)
    for text, n, nll in zip(texts, *whole, strict=True):
        ids = model.to_tokens(text, prepend_bos=True)
        log_probs = model(ids)[0, :-1].detach().log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert (n, nll) == (ids.shape[1] - 1, pytest.approx(-float(log_probs.sum()), rel=1e-10))
    monkeypatch.setattr(forward, "LOGIT_BYTES", 1)
    monkeypatch.setattr(texts_module, "READ_AT_ONCE", 3)
    counts, bounded = nlls(model, texts, prepend_bos=True, batch_size=128)
    assert counts == whole[0]
    assert bounded == pytest.approx(whole[1], rel=1e-12)


def test_some_questions_again_and_none():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    asked = sheet_of(model).questions
    asker = Asker(model)
    assert asker({}, batch_size=3) == {}
    for wanted in ([3], list(range(len(asked))), [5, 0, 5]):
        found = asker({i: asked[i] for i in wanted}, batch_size=3, whole=[5])
        assert set(found) == set(wanted)
        check_opinions(model, [found[i] for i in wanted], [asked[i] for i in wanted], False)
        assert all((opinion.following is not None) == (i == 5) for i, opinion in found.items())


@pytest.mark.skipif("HookedTransformer" not in tiny_models.interfaces(), reason="asked in rows")
def test_any_weight_may_change_between_two_times():
    """Packed weights of before would be silently wrong; a change through ``.data`` leaves no mark on the parameter."""
    model = tiny_models.build("gpt2", "HookedTransformer", dtype=torch.float64)
    questions = dict(enumerate(sheet_of(model).questions))
    asker = Asker(model)
    for name in ("blocks.0.attn.W_Q", "blocks.1.attn.W_O", "blocks.1.mlp.W_in", "unembed.W_U", "embed.W_E"):
        parameter = dict(model.named_parameters())[name]
        parameter.data.mul_(1.5)
        found = asker(questions, batch_size=128)
        check_opinions(model, [found[i] for i in questions], list(questions.values()), False)
    assert "trees" in asker.engine


def test_the_engine_is_kept_and_joined(tmp_path):
    model = tiny_models.build("gpt2")
    one, other = evaluate(model, RECORDS[0]), evaluate(model, RECORDS[0], hooks=watch(model, []))
    replace(one, scores=()).save(tmp_path / "one")
    assert Evaluation.load(tmp_path / "one").engine == one.engine != ""
    assert Evaluation.of([one, one]).engine == one.engine
    assert Evaluation.of([one, other]).engine == Evaluation.of([]).engine == replace(one, engine="").engine == ""


def test_rows_of_like_length_run_together():
    assert sorted(ways._alike({10: 10, 11: 5, 27: 20})) == [[10, 11], [27]]
    assert ways._alike({4: 1, 5: 1}) == [[4, 5]]  # one more call costs more
    assert sorted(ways._alike({5: 500, 6: 500})) == [[5], [6]]
