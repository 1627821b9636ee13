"""Where the phrases of a prompt lie among its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TTOMError


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
    or past the limit.
    """
    taken: list[tuple[int, int]] = []
    found: dict[str, tuple[int, ...]] = {}
    # The longest first, so that "circle" is not looked for inside "red circle".
    for phrase in sorted(phrases, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
        spans = [
            match.span()
            for match in re.finditer(pattern, text, re.IGNORECASE)
            if not any(match.start() < end and start < match.end() for start, end in taken)
        ]
        if not spans:
            raise TTOMError(
                f"The phrase {phrase!r} is not in the prompt {text!r}; use the prompt's own words."
            )
        taken += spans
        mentions = [
            [i for i, (start, end) in enumerate(offsets) if start < end and start < b and a < end]
            for a, b in spans
        ]
        # Half a mention is none: "red" of "red circle" would be the map of something else.
        kept = tuple(i for mention in mentions if mention[-1] < limit - 1 for i in mention)
        if not kept:
            raise TTOMError(
                f"The phrase {phrase!r} lies past the model's limit of {limit} text tokens; shorten the "
                "prompt or name the object earlier."
            )
        found[phrase] = kept
    return {phrase: found[phrase] for phrase in phrases}
