"""Prompts like those that a memory has solved: the same scene and the same boxes, with other objects in them.

What is learnt of a scene from one prompt alone would be of its objects too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from ..layout import Layout
from ..noise import Lesson


def rehearsals(solved: Sequence[Lesson], known: Sequence[Layout], count: int, seed: int) -> list[Lesson]:
    """The solved prompts of one scene first, and then that many in all, their phrases exchanged.

    A phrase is exchanged for another of the `known` layouts that names one object where it named one, and
    several where it named several. Prompts that repeat a phrase's words elsewhere stay as they are.
    """
    drawn = random.Random(seed)
    names = {several: _phrases(known, several) for several in (False, True)}
    lessons = list(solved[:count])
    while solved and len(lessons) < count:
        lessons.append(_exchanged(*drawn.choice(solved), names, drawn))
    return lessons


def _phrases(layouts: Sequence[Layout], several: bool) -> list[str]:
    found = set()
    for layout in layouts:
        counts = Counter(item.phrase for item in layout.objects)
        found |= {phrase for phrase, number in counts.items() if (number > 1) == several}
    return sorted(found)


def _exchanged(prompt: str, layout: Layout, names: dict[bool, list[str]], drawn: random.Random) -> Lesson:
    counts = Counter(item.phrase for item in layout.objects)
    if any(len(re.findall(rf"\b{re.escape(phrase)}\b", prompt)) != 1 for phrase in counts):
        return prompt, layout
    new: dict[str, str] = {}
    for phrase, number in counts.items():
        choices = [name for name in names[number > 1] if name not in new.values()]
        new[phrase] = drawn.choice(choices) if choices else phrase
    # At once: a phrase's new words may be another's old ones.
    pattern = "|".join(rf"\b{re.escape(phrase)}\b" for phrase in sorted(new, key=len, reverse=True))
    text = re.sub(pattern, lambda match: new[match[0]], prompt)
    objects = tuple(
        item.model_copy(update={"phrase": new[item.phrase], "name": new[item.phrase]})
        for item in layout.objects
    )
    return text, layout.model_copy(update={"prompt": text, "objects": objects})
