"""prompt → Layout. Offline rules for now; they say what they did not understand."""

from __future__ import annotations

from ..layout import Layout
from .rules import PlanError, plan_by_rules

__all__ = ["PlanError", "plan"]


def plan(prompt: str, seed: int = 0) -> Layout:
    """Plan a layout for a prompt; a nonzero seed varies the placement a little.

    PlanError when the prompt is empty or names no object.
    """
    return plan_by_rules(prompt, seed)
