"""What the inputs of the nodes have in common: those that several ask for, and the check of every value.

A saved workflow is a stranger's. ComfyUI itself checks what is typed into a widget, but not what is wired
into it, and lets NaN through in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

from ..ttom_core.errors import TTOMError

MAX_TEXT = 20_000  # characters, as in the prompts of layouts and the notes of memory packs
JSON_INPUTS = {"pinned", "boxes_json", "tracks"}  # those who read them have their own, higher limit
MAX_PIXELS = 2**28  # of a clip that is drawn: 3 GiB as ComfyUI keeps pictures; 81 frames of 1920×1088 fit


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """An `execute` for what the node's schema allows; another value is a TTOMError that names its input."""

    @wraps(execute)
    def run(cls: type[io.ComfyNode], **values: Any) -> io.NodeOutput:
        for asked in cls.define_schema().inputs:
            if asked.id in values:
                with about(asked.id):
                    _insist(asked, values[asked.id])
        try:
            return execute(cls, **values)
        except ModuleNotFoundError as error:
            raise TTOMError(
                f"The Python package {error.name} is missing; install what this pack's requirements.txt "
                "lists into ComfyUI's Python, and start it again."
            ) from error

    return run


def _insist(asked: io.Input, value: object) -> None:
    if isinstance(asked, io.Combo.Input):
        if value not in asked.options:
            known = ", ".join(map(str, asked.options[:30]))
            raise TTOMError(f"there is no {_shown(value)}; choose one of {known}.")
    elif isinstance(asked, io.String.Input):
        if not isinstance(value, str):
            raise TTOMError(f"give a text, not {_shown(value)}.")
        if len(value) > MAX_TEXT and asked.id not in JSON_INPUTS:
            raise TTOMError(f"the text has {len(value)} characters; at most {MAX_TEXT} are read.")
    elif isinstance(asked, io.Int.Input | io.Float.Input):
        whole = isinstance(asked, io.Int.Input)
        if not isinstance(value, Integral if whole else Real) or not asked.min <= value <= asked.max:
            kind = "whole number" if whole else "number"
            raise TTOMError(f"give a {kind} from {asked.min} to {asked.max}, not {_shown(value)}.")


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python spells no number of thousands of digits
        return "a number of thousands of digits"


@contextmanager
def about(name: str) -> Iterator[None]:
    """Begin the sentence of a TTOMError with the input that it is about."""
    try:
        yield
    except TTOMError as error:
        raise TTOMError(f"{name}: {error}") from error


def insist_on_size(num_frames: int, width: int, height: int, count: int = 1) -> None:
    """TTOMError when `count` clips of this size are more than a machine should be asked to draw."""
    if count * num_frames * width * height > MAX_PIXELS:
        raise TTOMError(
            f"num_frames, width, height: {count} × {num_frames} frames of {width}×{height} are too much to "
            f"draw at once, which is {MAX_PIXELS} pixels; make them smaller or fewer."
        )


def folded(asked: io.Input) -> io.Input:
    """An input that few artists touch: out of sight until asked for, where the frontend can."""
    asked.extra_dict = {"advanced": True}  # the io of 2025 has no keyword for it
    return asked


def clip_inputs(tooltip: str | None = None) -> list[io.Input]:
    """How long and how large a clip is; defaults are the demo model's."""
    return [
        io.Int.Input("num_frames", default=21, min=1, max=1024, step=4, tooltip=tooltip),
        *frame_inputs(),
    ]


def frame_inputs(tooltip: str | None = None) -> list[io.Input]:
    """How large a frame is, in pixels."""
    return [
        io.Int.Input("width", default=64, min=16, max=4096, step=8, tooltip=tooltip),
        io.Int.Input("height", default=64, min=16, max=4096, step=8),
    ]


def sampling_inputs() -> list[io.Input]:
    """What a plain clip is sampled with."""
    return [
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
        io.Int.Input("steps", default=20, min=1, max=1000),
        io.Float.Input("guidance_scale", default=4.0, min=0.0, max=100.0, step=0.1),
        *clip_inputs(),
    ]


def phrase_input(shown: str) -> io.Input:
    """Which object of several; `insist_on_phrase` checks the choice."""
    return io.String.Input(
        "phrase",
        default="",
        optional=True,
        tooltip=f"Whose {shown}, e.g. 'red circle'; empty for all objects.",
    )


def insist_on_phrase(phrase: str, phrases: Iterable[str]) -> None:
    """TTOMError for a phrase that is none of these."""
    known = list(phrases)
    if phrase not in known:
        raise TTOMError(f"phrase: there is no {phrase[:80]!r}; there is {', '.join(known)}.")


def insist_on_licence(licence: object) -> None:
    """TTOMError for what cannot be the licence of a pack."""
    if not isinstance(licence, str) or not 0 < len(licence.strip()) <= 100:
        raise TTOMError("licence: say what others may do with the pack, such as CC0-1.0.")
