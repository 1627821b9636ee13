"""prompt → Layout: by offline rules, or by a language model where one is named; both say who planned."""

from __future__ import annotations

from pathlib import Path

from ..layout import Layout
from . import cache
from .chat import LLMError, LLMSettings, OnProgress, Progress, Usage, unload
from .checks import check
from .llm import Proposal, plan_by_llm
from .rules import PlanError, plan_by_rules

__all__ = [
    "LLMError",
    "LLMSettings",
    "PlanError",
    "Progress",
    "Proposal",
    "Usage",
    "check",
    "plan",
    "propose",
    "unload",
]


def plan(prompt: str, seed: int = 0) -> Layout:
    """Plan a layout by the rules; a nonzero seed varies the placement a little.

    PlanError when the prompt is empty or names no object.
    """
    return plan_by_rules(prompt, seed)


def propose(
    prompt: str,
    seed: int = 0,
    settings: LLMSettings | None = None,
    *,
    folder: Path | None = None,
    fallback: bool = False,
    on_progress: OnProgress | None = None,
) -> Proposal:
    """A layout with how it came about: by the model of `settings`, or by the rules without one.

    `folder` keeps a model's plans, so that the same inputs give the same layout without a network. With
    `fallback` the rules plan where the model cannot, and the layout says so. PlanError when the prompt
    names nothing; LLMError when the model or its server fails.
    """
    if settings is None:
        layout = plan_by_rules(prompt, seed)
        return Proposal(layout=layout, faults=tuple(check(layout, prompt)))
    key = cache.digest(version=1, prompt=prompt, seed=seed, settings=settings.key_parts())
    if folder and (kept := cache.read(folder, key, Proposal)):
        return kept.model_copy(update={"cached": True})
    try:
        proposal = plan_by_llm(prompt, settings, seed, on_progress)
    except LLMError as error:
        if not fallback:
            raise
        rules = propose(prompt, seed)
        notes = (f"The rules planned this, because: {error}", *rules.layout.unresolved)
        layout = rules.layout.model_copy(update={"unresolved": notes})
        return rules.model_copy(update={"layout": layout})
    if folder:
        cache.write(folder, key, proposal)
    return proposal
