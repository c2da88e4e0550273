"""What texts may be, the order in which they are taken, and what of them counts."""

import random

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import host, second_moment
from tl_edit.moment.texts import Reader, Texts, batches
from tl_edit.processes import Processes

TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old"]


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("gpt2")


def reader(model, texts, *, own=None, seed=0, **options):
    options = {"prepend_bos": True, "count_bos": True, "max_tokens": None, "max_length": None} | options
    return Reader(model, Texts(texts, seed), own or Processes(), **options)


def rows(model, texts, size=10**6, **options):
    return [row for window in reader(model, texts, **options).windows(size) for row in window]


def test_the_order_is_that_of_the_published_programs(model):
    order = list(range(len(TEXTS)))
    random.Random(1).shuffle(order)
    expected = [model.to_tokens(TEXTS[i])[0].tolist() for i in order]
    assert [row.tokens.tolist() for row in rows(model, TEXTS, seed=1)] == expected


class Counted:
    """Texts that know how often they were asked for."""

    def __init__(self, texts):
        self.texts, self.asked = texts, []

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.texts[i]


def test_only_the_texts_that_are_needed_are_read(model):
    texts = Counted(TEXTS * 100)
    second_moment(model, texts, [0], max_tokens=60, progress=False)
    assert len(texts.asked) < 10


def test_streams_are_taken_as_they_come_and_not_read_to_the_end(model):
    given = []

    def stream():
        for text in TEXTS * 1000:
            given.append(text)
            yield text

    found = rows(model, stream(), max_tokens=50)
    assert [row.tokens.tolist() for row in found[:-1]] == [model.to_tokens(text)[0].tolist() for text in given[:-1]]
    assert sum(row.counted for row in found) == 50
    assert len(given) < 10


def test_rows_of_datasets(model):
    datasets = pytest.importorskip("datasets")
    expected = second_moment(model, TEXTS, [0], progress=False)[0].matrix
    named = datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "title": TEXTS, "text": TEXTS})
    single = datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "body": TEXTS})
    for texts in (named, single, named["text"], [{"text": text} for text in TEXTS], [{"body": text} for text in TEXTS]):
        assert torch.equal(second_moment(model, texts, [0], progress=False)[0].matrix, expected)
    streamed = second_moment(model, named.to_iterable_dataset(), [0], progress=False)[0].matrix
    assert torch.allclose(streamed, expected, rtol=1e-4, atol=1e-7)
    two = datasets.Dataset.from_dict({"question": TEXTS, "answer": TEXTS})
    with pytest.raises(ValueError, match=r"columns \['question', 'answer'\].*expected one named 'text'.*read_texts"):
        second_moment(model, two, [0], progress=False)
    with pytest.raises(ValueError, match="expected one named 'text'"):
        second_moment(model, [{"question": "a", "answer": "b"}], [0], progress=False)
    with pytest.raises(ValueError, match=r"type DatasetDict.*texts\['train'\]"):
        second_moment(model, datasets.DatasetDict(train=named), [0], progress=False)


def test_pandas_columns_are_taken_by_place(model):
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(TEXTS, index=[f"row {i}" for i in range(len(TEXTS))])
    expected = second_moment(model, TEXTS, [0], progress=False)[0].matrix
    assert torch.equal(second_moment(model, column, [0], progress=False)[0].matrix, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_count_bos_leaves_out_the_first_key_alone(family):
    model = tiny_models.build(family, dtype=torch.float64)
    total, count = torch.zeros(80, 80, dtype=torch.float64), 0
    for text in TEXTS:
        store = []
        hook = (host.key_name(1), lambda act, hook, store=store: store.append(act))
        model.run_with_hooks(model.to_tokens(text, prepend_bos=True), fwd_hooks=[hook])
        keys = store[0][0, 1:].detach().double()
        total, count = total + keys.T @ keys, count + len(keys)
    options = {"prepend_bos": True, "count_bos": False, "progress": False}
    moment = second_moment(model, TEXTS, [1], **options)[1]
    assert moment.count == count
    assert torch.allclose(moment.matrix, total / count, rtol=1e-5, atol=1e-6)
    assert "without BOS" in repr(moment)
    assert second_moment(model, TEXTS, [1], max_tokens=33, **options)[1].count == 33
    assert sum(row.counted for row in rows(model, TEXTS, count_bos=False)) == count


def test_texts_without_tokens_count_nothing(model):
    assert [row.tokens.tolist() for row in rows(model, ["", TEXTS[0], torch.tensor([], dtype=torch.long)])] == [
        model.to_tokens(TEXTS[0])[0].tolist()
    ]


def test_max_length_cuts_each_text(model):
    assert max(len(row.tokens) for row in rows(model, TEXTS, max_length=7)) == 7
    expected = sum(min(7, model.to_tokens(text).shape[1]) for text in TEXTS)
    assert second_moment(model, TEXTS, [0], max_length=7, progress=False)[0].count == expected


def test_windows_and_batches_keep_every_row_once(model):
    long = TEXTS * 5
    found = list(reader(model, long).windows(100))
    assert len(found) > 3
    for window in found[:-1]:
        assert 100 <= sum(len(row.tokens) for row in window) < 100 + 128
    assert sorted(row.number for window in found for row in window) == list(range(len(long)))
    numbers = []
    for taken, batch in batches(model, found[0], 60):
        lengths = [len(row.tokens) for row in taken]
        assert lengths == sorted(lengths, reverse=True)
        assert batch.tokens.numel() <= 60 or len(taken) == 1
        numbers += [row.number for row in taken]
    assert sorted(numbers) == sorted(row.number for row in found[0])


@pytest.mark.parametrize("max_tokens", [None, 70])
@pytest.mark.parametrize("stream", [False, True])
def test_processes_share_the_texts_out(model, max_tokens, stream):
    def given():
        return iter(TEXTS) if stream else TEXTS

    whole = rows(model, given(), max_tokens=max_tokens)
    parts = [rows(model, given(), max_tokens=max_tokens, own=Processes(rank, 3)) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert [row.number for row in part] == [row.number for row in whole if row.number % 3 == rank]
    together = sorted((row for part in parts for row in part), key=lambda row: row.number)
    assert [row.tokens.tolist() for row in together] == [row.tokens.tolist() for row in whole]


def test_the_share_read_is_known_for_the_progress_bar(model):
    texts = reader(model, TEXTS)
    next(texts.windows(1))
    assert texts.share() == 1 / len(TEXTS)
    stream = reader(model, iter(TEXTS))
    next(stream.windows(1))
    assert stream.share() is None


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "hold no tokens"),
        (TEXTS, {"max_tokens": 0}, "max_tokens is 0"),
        (TEXTS, {"max_length": 0}, "max_length is 0"),
        (TEXTS, {"layers": [9]}, "layers 0 to 2"),
        (TEXTS, {"layers": []}, "at least one layer"),
        (TEXTS, {"ridge": -1.0}, "ridge is -1.0"),
        (TEXTS, {"checkpoint_seconds": -1.0}, "checkpoint_seconds is -1.0"),
    ],
)
def test_bad_input_is_refused(model, texts, options, message):
    with pytest.raises(ValueError, match=message):
        second_moment(model, texts, **({"layers": [1], "progress": False} | options))


def test_one_string_is_not_a_list_of_texts(model):
    with pytest.raises(ValueError, match="one string"):
        second_moment(model, "The Eiffel Tower", [1], progress=False)


def test_ids_of_another_tokenizer_are_refused(model):
    with pytest.raises(ValueError, match=r"token ids from 5 to 10000000; .* tokenise with the model's own"):
        second_moment(model, [torch.tensor([5, 10_000_000])], [0], progress=False)


# --- columns, and texts that are none ------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_row_decides_the_column(model, stream):
    """Not each row for itself, which would mix titles into the texts."""
    rows_of = [{"id": i, "body": text} for i, text in enumerate(TEXTS)]
    late = [*rows_of, {"id": 3, "title": "Paris"}]
    with pytest.raises(ValueError, match=rf"row {len(TEXTS)} of the texts .* \['id', 'title'\]; expected 'body'"):
        second_moment(model, iter(late) if stream else late, [0], progress=False)
    two = [*rows_of, {"id": 3, "body": "Rome.", "text": "Paris"}]
    expected = second_moment(model, [*TEXTS, "Rome."], [0], progress=False)[0].matrix
    found = second_moment(model, iter(two) if stream else two, [0], progress=False)[0].matrix
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    unsure = [{"title": None, "body": "Rome."}, *rows_of]
    with pytest.raises(ValueError, match=r"columns \['title', 'body'\].*expected one named 'text'"):
        second_moment(model, iter(unsure) if stream else unsure, [0], progress=False)


def test_columns_of_numbers_are_refused(model):
    datasets = pytest.importorskip("datasets")
    numbers = datasets.Dataset.from_dict({"text": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"columns \['text'\], of which \[\] hold strings"):
        second_moment(model, numbers, [0], progress=False)


@pytest.mark.parametrize(
    ("wrong", "found"), [(None, "None of type NoneType"), (5, "5 of type int"), ([1, 2], r"\[1, 2\] of type list")]
)
@pytest.mark.parametrize("row", [False, True])
def test_a_text_that_is_none_is_named(model, wrong, found, row):
    texts = [*TEXTS, wrong, *TEXTS]
    given = [{"text": text} for text in texts] if row else texts
    with pytest.raises(ValueError, match=rf"text {len(TEXTS)} \(counted from 0\) is {found}; expected a string, or a"):
        second_moment(model, given, [0], progress=False)


def test_a_lone_surrogate_is_named(model):
    with pytest.raises(ValueError, match=r"text 1 \(counted from 0\) cannot be tokenised .*UTF-8 can hold; repair it"):
        second_moment(model, iter(["Rome.", "a \ud800 b"]), [0], progress=False)


# --- without a tokenizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("prepend_bos", [None, False])
def test_token_ids_need_no_tokenizer(model, tmp_path, prepend_bos):
    ids = [model.to_tokens(text)[0] for text in TEXTS]
    expected = second_moment(model, ids, [0], progress=False)[0].matrix
    bare = tiny_models.build("gpt2")
    bare.tokenizer = None
    options = {"prepend_bos": prepend_bos, "checkpoint": tmp_path / "run", "progress": False}
    assert torch.equal(second_moment(bare, ids, [0], **options)[0].matrix, expected)
    with pytest.raises(ValueError, match="the model has no tokenizer; expected one to turn strings"):
        second_moment(bare, [*ids, "Rome."], [0], prepend_bos=prepend_bos, progress=False)


# --- several processes ---------------------------------------------------------------------------------


def test_sets_are_refused_for_several_processes():
    Texts({"a", "b"}, 0).check_shared(Processes())
    for texts in ({"a", "b"}, frozenset({"a", "b"})):
        with pytest.raises(ValueError, match=r"texts is a set.*pass sorted\(texts\)"):
            Texts(texts, 0).check_shared(Processes(0, 2))


def test_settings_that_leave_no_tokens_are_named(model):
    with pytest.raises(ValueError, match="the settings leave no tokens to count.*larger max_length, or count_bos=True"):
        second_moment(model, TEXTS, [0], prepend_bos=True, max_length=1, count_bos=False, progress=False)
