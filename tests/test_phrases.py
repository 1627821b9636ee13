"""Where phrases lie among a prompt's tokens, in any script."""

import pytest

from ttom_core.backbones.phrases import phrase_positions
from ttom_core.errors import TTOMError


def places(text, phrase, limit=512):
    """The parts of the text that the found tokens spell; every character is a token."""
    offsets = [(i, i + 1) for i in range(len(text))]
    found = phrase_positions(text, offsets, [phrase], limit)[phrase]
    return "".join(text[i] for i in found)


FOUND = {
    "English": ("A red circle, a red circle.", "red circle", 2),
    "Chinese": ("一个红色圆圈向右移动", "红色圆圈", 1),
    "Chinese beside Latin": ("4K画面中的Tesla汽车", "Tesla", 1),
    "Latin before Chinese": ("4K画面中的Tesla汽车", "画面", 1),
    "Japanese": ("赤い円が右に動く", "赤い円", 1),
    "Thai": ("วงกลมสีแดงเคลื่อนไปทางขวา", "วงกลมสีแดง", 1),
    "Korean with an ending": ("빨간 원이 오른쪽으로 움직인다", "빨간 원", 1),
    "Russian": ("красный круг и синий квадрат", "синий квадрат", 1),
}


@pytest.mark.parametrize(("text", "phrase", "times"), FOUND.values(), ids=FOUND)
def test_a_phrase_is_found_in_its_own_script(text, phrase, times):
    assert places(text, phrase) == phrase * times


@pytest.mark.parametrize(
    ("text", "phrase"),
    [("a concatenation", "cat"), ("cats", "cat"), ("кругом", "круг"), ("été", "ét"), ("a1", "a")],
)
def test_a_part_of_a_word_is_not_the_word(text, phrase):
    with pytest.raises(TTOMError, match="is not in the prompt"):
        places(text, phrase)


def test_what_has_no_tokens_is_not_there():
    """Of nothing, or of what a tokenizer leaves out."""
    for phrase in ("", "\u200b"):
        with pytest.raises(TTOMError, match="is not in the prompt"):
            phrase_positions("a \u200b circle", [(0, 1), (4, 10)], [phrase], 512)


def test_half_a_mention_past_the_limit_is_none():
    assert places("red x red", "red", limit=6) == "red"
    with pytest.raises(TTOMError, match="lies past the model's limit of 3 text tokens"):
        places("a red", "red", limit=3)
