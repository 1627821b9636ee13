"""Claims judged by what was measured: only a whole interval says that one holds, or does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FEWEST = 20  # prompts of which an interval is worth a verdict
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be told"
Result = dict[str, Any]
RULE = (
    f"A claim holds here when the whole 95 % interval of its figure (bootstrap over prompts, at the same "
    f"prompt and seed) lies where the claim puts it; it does not hold here when the whole interval lies on "
    f"the other side; otherwise, or with fewer than {FEWEST} prompts, it cannot be told. A claim of several "
    "figures needs all of them, one that says “or” any. Where all n prompts say the same, so that an "
    "interval has no width, it is taken 3/n wider on both sides. Nothing is rounded in a claim's favour. "
    "Each is judged alone, and of forty such verdicts one or two may be chance."
)


@dataclass(frozen=True)
class Condition:
    """A figure of a result file that should lie above a bound, or with `below`, under it.

    In a figure's name {own} is the method that its file's others are compared with, {last} the last one.
    """

    result: str
    figure: str
    bound: float = 0.0
    below: bool = False


@dataclass(frozen=True)
class Claim:
    """A sentence and the conditions that it comes to: all of them, or with `either`, one."""

    source: str
    text: str
    conditions: tuple[Condition, ...]
    either: bool = False


def number(figure: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def verdict(figure: Mapping[str, Any] | None, condition: Condition) -> str:
    """What a figure's whole interval says of a condition; too few prompts say nothing."""
    if figure is None or figure["low"] is None or figure["n"] < FEWEST:
        return OPEN
    low, high = figure["low"], figure["high"]
    if low == high:  # a bootstrap knows no prompt that it has not seen: the rule of three
        low, high = low - 3 / figure["n"], high + 3 / figure["n"]
    above, below = low > condition.bound, high < condition.bound
    if condition.below:
        above, below = below, above
    return HOLDS if above else FAILS if below else OPEN


def together(verdicts: Iterable[str], either: bool = False) -> str:
    """All conditions, or one: a claim is only as sure as it takes."""
    found = set(verdicts)
    wanted, spoils = (FAILS, HOLDS) if either else (HOLDS, FAILS)
    if spoils in found:
        return spoils
    return OPEN if OPEN in found or not found else wanted


def judged(claim: Claim, results: Mapping[str, Result]) -> tuple[str, str]:
    """The verdict on a claim, and the figures that it rests on, in words."""
    verdicts, words = [], []
    for condition in claim.conditions:
        name, figure = _figure(condition, results)
        verdicts.append(verdict(figure, condition))
        if figure is None:
            words.append(f"{condition.result}: {condition.figure} has not been measured")
            continue
        asked = f"{'below' if condition.below else 'above'} {condition.bound:g}"
        few = f", fewer than {FEWEST}" if figure["n"] < FEWEST else ""
        words.append(f"{name.replace('_', ' ')} {number(figure)}, asked: {asked} (n {figure['n']}{few})")
    return together(verdicts, claim.either), "; ".join(words)


def measured(claim: Claim, results: Mapping[str, Result]) -> bool:
    """Whether any figure that the claim rests on is there: of the others there is nothing to tell."""
    return any(_figure(condition, results)[1] is not None for condition in claim.conditions)


def unmeasured(claims: Iterable[Claim], results: Mapping[str, Result]) -> str:
    """A sentence that counts the claims of which no figure is there, by their source, else nothing."""
    counts = Counter(claim.source for claim in claims if not measured(claim, results))
    told = ", ".join(f"{source} ({count})" for source, count in counts.items())
    return f"Claims that have not been measured: {told}." if told else ""


def mixed(results: Mapping[str, Result]) -> str:
    """A sentence where the results of a family are not all of one model, else nothing."""
    families: dict[str, dict[str, list[str]]] = {}
    for name, result in results.items():
        if model := result.get("settings", {}).get("model"):
            family = str(model).partition("-")[0]
            families.setdefault(family, {}).setdefault(str(model), []).append(name)
    mixtures = [models for models in families.values() if len(models) > 1]
    if not mixtures:
        return ""
    told = "; ".join(f"{', '.join(names)}: {model}" for models in mixtures for model, names in models.items())
    return f"These results are of different models, and do not belong together. {told}."


def _figure(condition: Condition, results: Mapping[str, Result]) -> tuple[str, Mapping[str, Any] | None]:
    """The name of a condition's figure and the figure; None where it was not measured.

    The name is "" where it has to be put together, and the file does not say what it compares.
    """
    result = results.get(condition.result) or {}
    name = condition.figure
    if "{" in name:
        settings = result.get("settings") or {}
        try:
            name = name.format(own=settings["pairs"][0][1], last=list(settings["methods"])[-1])
        except (KeyError, IndexError, TypeError):
            return "", None
    return name, result.get("figures", {}).get(name)
