"""What an answer is worth: scored by hand-made cases."""

from __future__ import annotations

import pytest

from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.scoring import caption_facts, named, normalised, right

LETTERS = ("a man", "a dog", "a red ball", "nothing")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("B", 1), ("(B)", 1), ("B.", 1), ("Answer: C", 2), ("The best answer is: D", 3), ("the answer is b", 1),
        ("The correct option is (A).", 0), ("a dog", 1), ("I would say (C), since it is red", 2), ("E", None),
        ("either (A) or (B)", None),
        ("", None), ("A cat", None), ("Best option: (D", 3), ("nothing", 3), ("Because", None),
        ("B.A dog runs", 1), ("B:A dog", 1), ("C)the ball", 2), ('"B"', 1), ("<B>", 1), ("`B`", 1), ("\\boxed{B}", 1),
        ("Therefore, the answer is B.", 1), ("I think the answer is B because it barks", 1), ("My answer is B", 1),
        ("The right answer is A.", 0), ("The video shows a dog. The answer is (B)", 1), ("The letter is A", 0),
        ("The answer is B. (A) is a man, (C) a ball.", 1), ("the final answer is: **B**", 1),
        ("The answer is A dog that runs", None), ("It is not the case that option A fits", None),
        ("If the answer is B, so be it; the answer is C.", None), ("C.D.s are shown", None), ("e.g. a cat", None),
        ("The answer is a secret", None), ("A.", 0), ("I think the answer is Zebra", None),
        ("The correct answer is option B", 1), ("**C**", 2), ("Answer: **B**", 1), ("**(D)** nothing", 3),
        ("C or D", None), ("A or B", None), ("c or d", None), ("B, C and D are wrong", None),
        ("The answer is C or D", None), ("The answer is A cat", None), ("A cat is there", None), ("A's", None),
        ("B is wrong", None), ("A isn't right", None), ("B, a dog", 1), ("C, since D is wrong", 2), ("B. A and B", 1),
        ("A man walks", None), ("I think so", None), ("A dogged man", None),
        ("(A) is wrong", None), ("(B) is incorrect.", None), ("B) is wrong", None), ("B. is not right", None),
        ("Option (B) is false.", None), ("It is not (B).", None), ("None of them, not even (A).", None),
        ("(B) is wrong; the answer is C.", 2), ("(B) because (A) is wrong", 1), ("C: not (A), not (B).", 2),
        ("\\boxed{A} or \\boxed{B}", None), ("So it is $\\boxed{\\text{C}}$, not (A).", 2),
    ],
)  # fmt: skip
def test_which_option_an_answer_names(said: str, number: int | None) -> None:
    assert named(said, LETTERS) == number


@pytest.mark.parametrize("said", [
    "{}\n\nExplanation: he is outside.", "{} - {option}", "{} {option}", "{} is correct.", "{} is the correct answer.",
    "Option {} is correct.", "The answer is {} because he is seen doing it.", "The answer is {} as shown.",
    "Based on the video, the correct answer is **{}**.", "It shows him. **Answer:** {}", "So we have $\\boxed{{{}}}$.",
    "<answer>{}</answer>", "<answer>{}", "He is outside. <answer>{}. {option}</answer>",
])  # fmt: skip
def test_an_answer_is_read_alike_for_every_letter(said: str) -> None:
    options = ("walking the dog", "playing the guitar", "cooking dinner", "riding a bicycle")
    told = [said.format(letter, option=option) for letter, option in zip("ABCD", options, strict=True)]
    assert [named(one, options) for one in told] == [0, 1, 2, 3]


def test_options_that_say_the_same_or_nothing_are_named_by_letters() -> None:
    assert named("B", ("x", "", "x")) == 1 and named("", ("x", "", "x")) is None
    assert named("C", ("x", "", "x")) == 2 and named("x", ("x", "", "x")) is None
    twice = Item("i", "v", "choice", "?", "x", ("x", "y", "x"))
    assert right(twice, "A") and right(twice, "C") and not right(twice, "B") and not right(twice, "")


def test_an_option_may_begin_as_an_answer_does() -> None:
    options = ("answer the phone", "answering a call", "option trading", "play")
    assert [named(option, options) for option in options] == [0, 1, 2, 3]
    assert named("The answer is: answer the phone.", options) == 0 and named("The answer is D", options) == 3


@pytest.mark.parametrize("said", ["B", "{}", "B {}", "B. {}", "(B) {}", "(B) {}.", "The answer is B {}"])
@pytest.mark.parametrize("own", ["is not moving", "was wrong", "or so", "and C"])
def test_an_option_may_say_what_would_deny_its_letter(said: str, own: str) -> None:
    assert named(said.format(own), ("is moving", own, "stands still")) == 1


@pytest.mark.parametrize(
    ("said", "answer", "is_right"),
    [
        ("The Red.", "red", True), ("a red circle", "red circle", True), ("red", "blue", False), ("3", "three", True),
        ("Yes, he does.", "yes", True), ("No", "yes", False), ("yesterday", "yes", False),
        ("Top left", "top left", True),
        ("red circle", "red", False), ("", "red", False), ("12", "twelve", False),
        ("", "a", False), ("A.", "a", True), ("the", "a", False), ("", "?", False),
        ("लड़की", "लड़का", False), ("लड़का।", "लड़का", True), ("cafe\u0301", "Caf\u00e9", True), ("👍", "👎", False),
    ],
)  # fmt: skip
def test_open_answers_match_but_for_form(said: str, answer: str, is_right: bool) -> None:
    assert right(Item("i", "v", "open", "?", answer), said) == is_right


def test_an_answer_of_endless_digits_is_wrong_and_no_end_of_it_all() -> None:
    """Python reads no number of more than 4,300 digits."""
    two = Item("i", "v", "open", "?", "two")
    assert not right(two, "2" * 5000) and right(two, "002") and normalised("1" * 5000) == "1" * 5000


def test_normalising_is_stable() -> None:
    for text in ("A red, red Ball!", "the 3 dogs", "  ", "Über-Maß 10", "👍 !", "लड़का"):
        assert normalised(normalised(text)) == normalised(text)


def test_facts_of_a_caption() -> None:
    truth = "A red ring moves left. A blue square stays at the top left. A red circle flashes at the top left."
    said = "A red ring moves left. A blue square stays at the top right. A red ring moves left."
    found = caption_facts(said, truth)
    assert (found.hits, found.said, found.true) == (1, 3, 3)
    assert sorted(found.invented) == ["a blue square stays at the top right", "a red ring moves left"]
    assert sorted(found.missed) == ["a blue square stays at the top left", "a red circle flashes at the top left"]
    assert caption_facts(truth, truth).hits == 3 and caption_facts("", truth).said == 0
    cut = caption_facts("A red ring moves left. A blue square st", truth, cut=True)
    assert (cut.hits, cut.said, cut.invented, len(cut.missed)) == (1, 1, (), 2)
    assert caption_facts("A red ri", truth, cut=True).said == 0


@pytest.mark.parametrize("said", ["A red ring moves left!", "a  RED ring\nmoves left", "\tA red ring moves left . . ."])
def test_a_fact_is_the_same_whatever_its_case_its_blanks_and_its_closing_mark(said: str) -> None:
    found = caption_facts(said, "A red ring moves left.")
    assert (found.hits, found.said, found.missed) == (1, 1, ())
    cut = caption_facts(f"{said}! A blue ri", "A red ring moves left.", cut=True)
    assert (cut.hits, cut.said) == (1, 1)
