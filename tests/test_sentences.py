"""Where a line may be cut, and that nothing is lost by it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mt.sentences import ABBREVIATIONS, join, pack, split_sentences


MARKS = "abZ12 .!?…\"”')。！？」؟۔।॥\t\n\u2028我かم"


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("It rains. It pours! Does it?", ["It rains. ", "It pours! ", "Does it?"]),
        ('"Stop." He left (at last!)  "Why?" said X.', ['"Stop." ', "He left (at last!)  ", '"Why?" said X.']),
        ("Wait... Then go… Now.", ["Wait... ", "Then go… ", "Now."]),
        ("Wait... then go.", ["Wait... then go."]),
        ("Version 2.5 of hf.co is out.", ["Version 2.5 of hf.co is out."]),
        ("Dr. Smith met J. R. Jones on 2. Mai. So?", ["Dr. Smith met J. R. Jones on 2. Mai. ", "So?"]),
        ("In 1999. Then.", ["In 1999. ", "Then."]),
        ("今天下雨。他说：“好！”我们走吧？", ["今天下雨。", "他说：“好！”", "我们走吧？"]),
        ("「行こう。」と言った。はい", ["「行こう。」", "と言った。", "はい"]),
        ("هل تسمع؟ نعم. لا؟", ["هل تسمع؟ ", "نعم. ", "لا؟"]),
        ("یہ ہے۔وہ ہے۔", ["یہ ہے۔", "وہ ہے۔"]),
        ("यह है। वह है॥ क्या?", ["यह है। ", "वह है॥ ", "क्या?"]),
        ("no mark at all", ["no mark at all"]),
        ("", []),
    ],
)
def test_sentences_end_at_their_marks(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_an_abbreviation_ends_no_sentence() -> None:
    assert "Dr" in ABBREVIATIONS and len(split_sentences("The Dr. Who.")) == 1
    assert len(split_sentences("The Door. Who.")) == 2


@given(text=st.text(MARKS, max_size=60), limit=st.integers(1, 30))
def test_nothing_is_lost_and_pieces_are_as_long_as_may_be(text: str, limit: int) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text and all(sentences)
    pieces = pack(text, limit, len)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    single = {sentence.strip() for sentence in sentences}
    assert all(len(piece) <= limit or piece in single for piece in pieces)
    if text.strip() and len(text.strip()) <= limit:
        assert pieces == [text.strip()]


def test_neighbours_are_packed_up_to_the_limit() -> None:
    text = "Aa. Bb. Cc. Dd."
    assert pack(text, 7, len) == ["Aa. Bb.", "Cc. Dd."]
    assert pack(text, 6, len) == ["Aa.", "Bb.", "Cc.", "Dd."]
    assert pack(text, 2, len) == ["Aa.", "Bb.", "Cc.", "Dd."], "too long still: for the caller to refuse"


@pytest.mark.parametrize(
    "texts, joined",
    [
        (["One.", "Two."], "One. Two."),
        (["一。", "二。"], "一。二。"),
        (["そう。", "A です。"], "そう。A です。"),
        (["하나.", "둘."], "하나. 둘."),
        (["One.", "", "Two."], "One. Two."),
        (["", ""], ""),
    ],
)
def test_parts_are_joined_as_their_script_does(texts: list[str], joined: str) -> None:
    assert join(texts) == joined
