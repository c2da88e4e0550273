"""A fact as plain strings: what is accepted, what is refused and with which advice."""

import dataclasses

import pytest

from tl_edit.request import EditRequest, check_template

RELATION, SUBJECT = "{} is in the city of", "The Eiffel Tower"


def unchecked(**fields):
    """`__post_init__` alone: the shape checks of the test run refuse other types before it is reached."""
    request = object.__new__(EditRequest)
    for name, value in {
        "relation": RELATION,
        "subject": SUBJECT,
        "target_new": "Rome",
        "target_true": None,
        **fields,
    }.items():
        object.__setattr__(request, name, value)
    request.__post_init__()
    return request


@pytest.mark.parametrize(
    ("relation", "subject", "prompt"),
    [
        (RELATION, SUBJECT, "The Eiffel Tower is in the city of"),
        ("The mother tongue of {} is", "Danielle Darrieux", "The mother tongue of Danielle Darrieux is"),
        ("The sport of {}", "LeBron James", "The sport of LeBron James"),
        ("{}'s mother tongue is", "Angela Merkel", "Angela Merkel's mother tongue is"),
        ("{}", "The capital of France is", "The capital of France is"),
        ("In {0} { the } {} } was", "Zürich", "In {0} { the } Zürich } was"),
        ("{} is", "a{b}c", "a{b}c is"),
        ("{} is", "a{}c", "a{}c is"),
        ("{} is", "{name!r:>10}", "{name!r:>10} is"),
        ("{} is", "%s\\1", "%s\\1 is"),
        ("{} 在", "北京 🗼", "北京 🗼 在"),
        (" {} is", "Rome", " Rome is"),
        ("Q: where is {}?\nA:", "Rome", "Q: where is Rome?\nA:"),
    ],
)
def test_the_prompt_is_the_relation_with_the_subject_put_in(relation, subject, prompt):
    assert EditRequest(relation, subject, "new").prompt == prompt


@pytest.mark.parametrize("given", ["Rome", " Rome", "  Rome", "Rome ", "\tRome\n"])
def test_a_target_is_the_same_with_and_without_its_spaces(given):
    assert EditRequest(RELATION, SUBJECT, given) == EditRequest(RELATION, SUBJECT, "Rome")
    assert EditRequest(RELATION, SUBJECT, "Berlin", given).target_true == "Rome"


def test_spaces_inside_a_target_stay():
    assert EditRequest(RELATION, SUBJECT, " New  York ").target_new == "New  York"


def test_the_true_target_may_be_left_out():
    assert EditRequest(RELATION, SUBJECT, "Rome").target_true is None


def test_a_request_is_a_value():
    request = EditRequest(RELATION, SUBJECT, "Rome", "Paris")
    assert request == dataclasses.replace(request)
    assert hash(request) == hash(dataclasses.replace(request))
    assert request != dataclasses.replace(request, target_new="Berlin")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.subject = "Other"


def test_str_tells_the_fact():
    assert str(EditRequest(RELATION, SUBJECT, "Rome")) == "The Eiffel Tower is in the city of → Rome"
    shown = str(EditRequest(RELATION, SUBJECT, "Rome", "Paris"))
    assert shown == "The Eiffel Tower is in the city of → Rome (was Paris)"


@pytest.mark.parametrize("field", ["relation", "subject", "target_new", "target_true"])
@pytest.mark.parametrize("value", [3, b"Rome", ["Rome"], 1.5, True])
def test_anything_but_a_string_is_refused(field, value):
    kind = type(value).__name__
    with pytest.raises(
        ValueError, match=rf"EditRequest: {field} is .* of type {kind}; expected a string.*; convert it"
    ):
        unchecked(**{field: value})


@pytest.mark.parametrize("field", ["relation", "subject", "target_new"])
def test_none_is_refused_where_it_means_nothing(field):
    with pytest.raises(ValueError, match=rf"EditRequest: {field} is None of type NoneType; expected a string; convert"):
        unchecked(**{field: None})


def test_the_check_accepts_what_the_class_accepts():
    assert unchecked() == EditRequest(RELATION, SUBJECT, "Rome")


@pytest.mark.parametrize("field", ["relation", "subject", "target_new", "target_true"])
@pytest.mark.parametrize("value", ["", " ", "\n\t"])
def test_empty_fields_are_refused_with_an_example(field, value):
    fields = {"relation": RELATION, "subject": SUBJECT, "target_new": "Rome", "target_true": "Paris", field: value}
    with pytest.raises(ValueError, match=rf"EditRequest: {field} is empty; expected words, e\.g\. '.+'"):
        EditRequest(**fields)


@pytest.mark.parametrize(
    ("relation", "found"),
    [
        ("is in the city of", 0),
        ("{} and {} are in", 2),
        ("{}{}", 2),
        ("{0} is in", 0),
        ("{subject} is", 0),
        ("{ } is", 0),
    ],
)
def test_a_relation_has_exactly_one_placeholder(relation, found):
    with pytest.raises(
        ValueError, match=rf"relation .* has {found} placeholders; expected exactly one '\{{\}}' where the subj"
    ):
        EditRequest(relation, SUBJECT, "Rome")


def test_braces_around_the_placeholder_are_refused():
    with pytest.raises(ValueError, match=r"relation '\{\{\}\} is' has braces around .*; write '\{\} is'\."):
        EditRequest("{{}} is", SUBJECT, "Rome")


@pytest.mark.parametrize("template", ["It was.", "{} {}"])
def test_the_message_about_a_prefix_speaks_of_prompts(template):
    with pytest.raises(ValueError, match=r"^prefix .* where the prompt goes, e\.g\. 'It was\. \{\}'"):
        check_template(template, "prefix")


@pytest.mark.parametrize("ending", [" ", "  "])
def test_a_relation_that_ends_in_a_space_is_refused_with_the_one_to_write(ending):
    with pytest.raises(ValueError, match=r"ends in a space; .* write '\{\} is in the city of'"):
        EditRequest(RELATION + ending, SUBJECT, "Rome")


@pytest.mark.parametrize("subject", [" Rome", "Rome ", "\tRome", "Rome\n"])
def test_a_subject_with_spaces_around_is_refused(subject):
    with pytest.raises(
        ValueError, match=r"subject .* begins or ends with a space; expected the bare name; put spaces into"
    ):
        EditRequest(RELATION, subject, "Rome")


@pytest.mark.parametrize(("new", "true"), [("Rome", "Rome"), (" Rome", "Rome"), ("Rome", "Rome ")])
def test_equal_targets_are_refused(new, true):
    with pytest.raises(ValueError, match=r"both 'Rome'; expected two different objects; nothing would be edited"):
        EditRequest(RELATION, SUBJECT, new, true)


def test_a_request_shows_itself():
    page = EditRequest("{} is in", "<b>", "Rome", "Paris")._repr_html_()
    assert [word in page for word in ("&lt;b&gt; is in", "Rome", "Paris")] == [True] * 3
    assert "<b>" not in page
