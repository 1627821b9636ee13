"""Where the phrases of a prompt lie among its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TTOMError

# Letters of scripts that put no space between words (Thai to Burmese, Khmer, kana, Chinese), or write endings
# to a word (Korean): a phrase may begin and end in the midst of them.
_JOINED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_BEFORE = rf"(?:(?<![^\W{_JOINED}])|(?=[{_JOINED}]))"
_AFTER = rf"(?:(?![^\W{_JOINED}])|(?<=[{_JOINED}]))"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, and where in `text`, which its tokens spell, each of them lies; `limit` as below."""

    prompt: str
    text: str
    offsets: tuple[tuple[int, int], ...]
    limit: int

    def positions(self, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return phrase_positions(self.text, self.offsets, phrases, self.limit)


def phrase_positions(
    text: str, offsets: Sequence[tuple[int, int]], phrases: Sequence[str], limit: int
) -> dict[str, tuple[int, ...]]:
    """Token positions of each phrase, of all its mentions; `offsets` are the tokens' places in the text.

    The model sees `limit` tokens, the last of them the end-of-text token. TTOMError when a phrase is absent
    (a part of a word is not the word) or past the limit.
    """
    taken: list[tuple[int, int]] = []
    found: dict[str, tuple[int, ...]] = {}
    # The longest first, so that "circle" is not looked for inside "red circle".
    for phrase in sorted(phrases, key=len, reverse=True):
        pattern = _BEFORE + re.escape(phrase) + _AFTER
        spans = [
            match.span()
            for match in re.finditer(pattern, text, re.IGNORECASE)
            if not any(match.start() < end and start < match.end() for start, end in taken)
        ]
        mentions = [
            [i for i, (start, end) in enumerate(offsets) if start < end and start < b and a < end]
            for a, b in spans
        ]
        mentions = [mention for mention in mentions if mention]  # empty: of what the tokenizer leaves out
        if not mentions:
            raise TTOMError(
                f"The phrase {phrase!r} is not in the prompt {text!r}; use the prompt's own words."
            )
        taken += spans
        # Half a mention is none: "red" of "red circle" would be the map of something else.
        kept = tuple(i for mention in mentions if mention[-1] < limit - 1 for i in mention)
        if not kept:
            raise TTOMError(
                f"The phrase {phrase!r} lies past the model's limit of {limit} text tokens; shorten the "
                "prompt or name the object earlier."
            )
        found[phrase] = kept
    return {phrase: found[phrase] for phrase in phrases}
