"""The six weeks' judge of a server's answers finds what is wrong with them."""

from __future__ import annotations

from benchmarks.customer import Answer, Reign, strangers

REIGNS = [Reign(1, 0.0, 1.0), Reign(2, 10.0, 11.0), Reign(1, 20.0, 21.0)]


def test_answers_of_the_champion_pass() -> None:
    during = [Answer(2, 3, 1, "a"), Answer(9, 12, 1, "a"), Answer(9, 12, 2, "b"), Answer(13, 14, 2, "b")]
    assert strangers([*during, Answer(22, 23, 1, "a")], REIGNS) == []


def test_an_answer_of_another_version_is_found() -> None:
    (early,) = strangers([Answer(2, 9, 2, "b")], REIGNS)
    (late,) = strangers([Answer(12, 13, 1, "a")], REIGNS)
    (never,) = strangers([Answer(12, 13, 3, "c")], REIGNS)
    assert "[1]" in early
    assert "[2]" in late
    assert "version 3" in never


def test_a_mixture_of_two_models_is_found() -> None:
    (mixed,) = strangers([Answer(2, 3, 1, "a"), Answer(4, 5, 1, "a"), Answer(6, 7, 1, "ab")], REIGNS)
    assert "other bytes" in mixed
