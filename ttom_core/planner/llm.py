"""The language-model planner (TTOM 3.1, appendix C): enrichment, objects, layout, each checked in code.

The paper's two verifications are `checks.py`: what they can repair is repaired, the rest goes back to the
model in a sentence, at most twice a stage, and what then remains stands in the proposal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from string import Template
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..layout import Layout, LayoutError
from .camera import Form, World, WorldKeyframe, WorldObject, project
from .chat import Chat, LLMError, LLMSettings, OnProgress, Reply, Usage
from .checks import check, check_names, own_words, repair, retold
from .rules import MAX_LENGTH, PlanError

MAX_DEPTH = 32  # brackets within brackets; the forms have six

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")


class Proposal(BaseModel):
    """A layout and how it came about; `layout.planner` says by whom, `layout.prompt` is what to encode.

    `faults` were found by the checks and could neither be repaired nor talked out of the model; a model's
    stand in `layout.unresolved` as well. `world` is the plan before its camera, where there is one.
    """

    model_config = ConfigDict(frozen=True)

    layout: Layout
    world: World | None = None
    repaired: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    reasks: int = 0
    usage: Usage = Usage()
    cached: bool = False


class Description(Form):
    description: str


class Thing(Form):
    id: str
    name: str
    phrase: str


class Things(Form):
    objects: tuple[Thing, ...] = Field(min_length=1, max_length=200)


class WholePlan(Form):
    """All stages in one answer."""

    description: str
    plan: World


def plan_by_llm(
    prompt: str, settings: LLMSettings, seed: int = 0, on_progress: OnProgress | None = None
) -> Proposal:
    """Plan a layout with a language model.

    `on_progress` is called about ten times a second; whatever it raises stops the work and is passed on.
    PlanError when the prompt is empty or too long; LLMError when the server or the model gives no plan.
    """
    if not prompt.strip():
        raise PlanError("The prompt is empty; describe what the video should show.")
    if len(prompt) > MAX_LENGTH:
        raise PlanError(f"The prompt has {len(prompt)} characters; shorten it to {MAX_LENGTH}.")
    return _Planning(prompt, settings, Chat(settings, seed, on_progress)).run()


class _UnusableError(Exception):
    """An answer that cannot be read; its words are for the model."""


@dataclass(frozen=True)
class _Draft:
    """A plan with its layout, before anybody decides whether it will do."""

    world: World
    layout: Layout
    repaired: tuple[str, ...]


class _Planning:
    """One prompt's way through the stages."""

    def __init__(self, prompt: str, settings: LLMSettings, chat: Chat) -> None:
        self.prompt, self.settings, self.chat = prompt, settings, chat
        self.reasks = 0
        self.read = list[str]()  # what had to be repaired before it could be read

    def run(self) -> Proposal:
        draft, faults = self._staged() if self.settings.staged else self._whole()
        return Proposal(
            layout=draft.layout.model_copy(update={"unresolved": tuple(faults)}),
            world=draft.world,
            repaired=(*self.read, *draft.repaired),
            faults=tuple(faults),
            reasks=self.reasks,
            usage=self.chat.usage,
        )

    def _staged(self) -> tuple[_Draft, list[str]]:
        text, notes = self.prompt, list[str]()
        if self.settings.enrich:
            described, faults = self._ask("enrich", Description, {"prompt": self.prompt}, self._described)
            if faults:
                notes = [f"The prompt itself was laid out, not its description: {faults[0]}"]
            else:
                text = described
        material: dict[str, Any] = {"prompt": self.prompt, "text": text}
        things, open_ = self._ask("objects", Things, material, lambda answer: self._listed(answer, text))
        material["objects"] = [thing.model_dump() for thing in things]
        settled = None if open_ else things  # a list with faults may still be mended with the boxes
        draft, faults = self._ask(
            "layout", World, material, lambda answer: self._drafted(answer, text, settled)
        )
        return draft, notes + faults

    def _whole(self) -> tuple[_Draft, list[str]]:
        def judge(answer: WholePlan) -> tuple[_Draft, list[str]]:
            text, faults = self._described(answer) if self.settings.enrich else (self.prompt, [])
            draft, more = self._drafted(answer.plan, text)
            return draft, faults + more

        return self._ask("plan", WholePlan, {"prompt": self.prompt}, judge)

    # What each stage's answer is held to: its result, and its faults

    def _described(self, answer: Description | WholePlan) -> tuple[str, list[str]]:
        text = answer.description
        if len(text) > MAX_LENGTH:
            return text, [f"The description has {len(text)} characters; keep it under {MAX_LENGTH}."]
        return text, retold(self.prompt, text)

    def _listed(self, answer: Things, text: str) -> tuple[list[Thing], list[str]]:
        anywhere = (WorldKeyframe(time=0, x=0, y=0, w=1, h=1),)
        objects = [
            WorldObject(**t.model_dump(), enter=0, leave=1, resizes="", keyframes=anywhere)
            for t in answer.objects
        ]
        named = own_words(objects, text, [])
        things = [Thing(id=o.id, name=o.name, phrase=o.phrase) for o in named]
        return things, check_names(named, self.prompt, text)

    def _drafted(
        self, world: World, text: str, things: list[Thing] | None = None
    ) -> tuple[_Draft, list[str]]:
        if things is not None:  # who they are was settled in the stage before
            boxes = {o.id: o for o in world.objects}
            if missing := [repr(thing.id) for thing in things if thing.id not in boxes]:
                raise _UnusableError(f"There are no boxes for {', '.join(missing)}; give every id its own.")
            objects = tuple(boxes[t.id].model_copy(update=t.model_dump()) for t in things)
            world = world.model_copy(update={"objects": objects})
        world, repaired = repair(world, self.prompt, text)
        try:
            layout, _ = project(world, text, f"llm {self.settings.model}")
        except LayoutError as error:
            raise _UnusableError(f"{error} Coordinates are shares of the canvas, from 0 to 1.") from None
        return _Draft(world, layout, tuple(repaired)), check(world, self.prompt, text)

    # One stage: ask, read, judge, ask again

    def _ask(
        self,
        stage: str,
        form: type[Answer],
        material: dict[str, Any],
        judge: Callable[[Answer], tuple[Result, list[str]]],
    ) -> tuple[Result, list[str]]:
        """The first answer without faults, else the one with the fewest, and its faults."""
        template = self.settings.template
        enriched = ["enrich"] if self.settings.enrich else []
        names = ["plan", *enriched, "objects", "layout"] if stage == "plan" else [stage]
        messages = [
            {"role": "system", "content": "\n\n".join(map(template, ["role", *names]))},
            {"role": "user", "content": json.dumps(material, ensure_ascii=False)},
        ]
        best: tuple[Result, list[str], bool] | None = None
        for ask in range(1 + self.settings.reasks):
            self.reasks += ask > 0
            reply = self.chat.reply(messages, form, stage, ask)
            try:
                answer, damaged = _parse(reply, form)
                result, faults = judge(answer)
            except _UnusableError as error:
                faults = [str(error)]
            else:
                if best is None or len(faults) < len(best[1]):
                    best = result, faults, damaged
                if not faults:
                    break
            listed = "\n".join(f"- {fault}" for fault in faults)
            messages += [
                {"role": "assistant", "content": reply.text or "{}"},
                {"role": "user", "content": Template(template("correct")).safe_substitute(faults=listed)},
            ]
        if best is None:
            raise LLMError(
                f"{self.settings.model!r} gave no usable plan in {1 + self.settings.reasks} tries "
                f"({faults[0][:200].rstrip('.')}); try another model, or plan by the rules."
            )
        result, faults, damaged = best
        self.read += [f"The model's answer to {stage!r} was damaged JSON; it was repaired."] * damaged
        return result, faults


def _parse(reply: Reply, form: type[Answer]) -> tuple[Answer, bool]:
    """The JSON object in a reply, without what stands around it; and whether it had to be repaired."""
    import json_repair

    text = reply.text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}") + 1
    if start < 0:
        raise _UnusableError("Your answer holds no JSON object.")
    try:
        return form.model_validate_json(text[start : max(start, end)]), False
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            raise _UnusableError(_wrong(error)) from None
    if not reply.finished:
        raise _UnusableError("Your answer was cut off; give the whole of it, in fewer words and keyframes.")
    if _depth(text[start:]) > MAX_DEPTH:  # the repair's time grows with its square
        raise _UnusableError("Your answer is no valid JSON.")
    try:
        value = json_repair.loads(text[start:])
        values = value if isinstance(value, list) else [value]
        return form.model_validate(next((v for v in values if isinstance(v, dict)), None)), True
    except ValidationError as error:
        raise _UnusableError(_wrong(error)) from None
    except (ValueError, RecursionError):
        raise _UnusableError("Your answer is no valid JSON.") from None


def _depth(text: str) -> int:
    """How many brackets are open at most, strings not told apart."""
    return max(accumulate((c in "{[") - (c in "}]") for c in text))


def _wrong(error: ValidationError) -> str:
    """What a form lacks, in words that a model can act on."""
    faults = [
        f"{'.'.join(map(str, e['loc'])) or 'the answer'}: {e['msg']}"
        for e in error.errors(include_url=False, include_input=False)[:8]
    ]
    return "The answer does not fit the schema: " + "; ".join(faults) + "."
