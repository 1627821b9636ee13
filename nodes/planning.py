"""From words to a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..ttom_core.layout import Layout
from . import host
from .inputs import about, checked, folded
from .types import LayoutSocket, LLMSocket

if TYPE_CHECKING:
    from ..ttom_core.planner import LLMSettings, Progress, Proposal


class LanguageModel(io.ComfyNode):
    """`ttom_core.planner.LLMSettings`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LanguageModel",
            display_name="Language Model (TTOM)",
            category="TTOM",
            description="Which language model plans layouts: OpenAI's, or any compatible server's.",
            inputs=[
                io.String.Input("model", default="", tooltip="As the server calls it, such as qwen3:14b."),
                io.String.Input(
                    "base_url",
                    default="http://localhost:11434/v1",
                    tooltip="Ollama, vLLM, LM Studio, llama.cpp and others; empty for OpenAI.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["staged", "one call"],
                    default="staged",
                    tooltip="A call for every stage suits small models, one for all is cheaper.",
                ),
                io.Boolean.Input(
                    "enrich",
                    default=False,
                    tooltip="Let it write a fuller description first; the planner's prompt output is then "
                    "that description.",
                ),
                folded(io.Float.Input("temperature", default=0.0, min=0.0, max=2.0, step=0.1)),
                folded(
                    io.Float.Input(
                        "timeout",
                        default=120.0,
                        min=1.0,
                        max=3600.0,
                        tooltip="Seconds an answer.",
                    )
                ),
                folded(
                    io.String.Input(
                        "key_variable",
                        default="",
                        tooltip="The NAME of the environment variable that holds the key, never the key: "
                        "this is saved with the workflow. Empty: OPENAI_API_KEY for OpenAI, none for others.",
                    )
                ),
            ],
            outputs=[LLMSocket.Output("llm", display_name="llm")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: str,
        base_url: str,
        mode: str,
        enrich: bool,
        temperature: float,
        timeout: float,
        key_variable: str,
    ) -> io.NodeOutput:
        from ..ttom_core.planner import LLMSettings

        return io.NodeOutput(
            LLMSettings.checked(
                model=model.strip(),
                base_url=base_url.strip() or None,
                staged=mode == "staged",
                enrich=enrich,
                temperature=temperature,
                timeout=timeout,
                key_variable=key_variable.strip() or None,
            )
        )


class LayoutPlanner(io.ComfyNode):
    """`ttom_core.planner.propose`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutPlanner",
            display_name="Layout Planner (TTOM)",
            category="TTOM",
            description=(
                "Plans where each object of a prompt is, and when: by rules for plain English, or by a "
                "language model."
            ),
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a red circle moves to the right while a blue square stays still",
                    tooltip="What the video should show.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Where the prompt leaves a choice, another seed chooses differently.",
                ),
                LLMSocket.Input("llm", optional=True, tooltip="Left open, the rules plan."),
                folded(
                    io.Boolean.Input(
                        "fallback",
                        default=False,
                        optional=True,
                        tooltip="When the language model fails, let the rules plan and say so in the notes.",
                    )
                ),
                io.String.Input(
                    "pinned",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="A layout as JSON, as layout_json puts it out: used, and checked, instead of "
                    "planning. Edit it as you like.",
                ),
                folded(
                    io.Boolean.Input(
                        "unload",
                        default=False,
                        optional=True,
                        tooltip="Once it has planned, ask an Ollama server to free the language model's "
                        "memory for the video's.",
                    )
                ),
            ],
            outputs=[
                LayoutSocket.Output("layout", display_name="layout"),
                io.String.Output(
                    "prompt_out", display_name="prompt", tooltip="The same prompt, for the sampler."
                ),
                io.String.Output(
                    "notes",
                    display_name="notes",
                    tooltip="Who planned, the objects found, and what is wrong or was not understood.",
                ),
                io.String.Output("layout_json", display_name="layout_json", tooltip="To pin and edit."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        prompt: str,
        seed: int,
        llm: LLMSettings | None = None,
        fallback: bool = False,
        pinned: str = "",
        unload: bool = False,
    ) -> io.NodeOutput:
        from ..ttom_core.planner import Proposal, check, propose

        if pinned.strip():
            with about("pinned"):
                layout = Layout.from_json(pinned)
            proposal = Proposal(layout=layout, faults=tuple(check(layout, prompt)))
        else:
            say = host.text_on(cls.hidden.unique_id)

            def show(progress: Progress) -> None:
                again = f", asked again {progress.ask}×" if progress.ask else ""
                say(f"{progress.stage}: {progress.characters} characters{again}")

            folder = host.plans_folder()
            proposal = propose(prompt, seed, llm, folder=folder, fallback=fallback, on_progress=show)
        notes = _notes(proposal)
        if unload and llm and proposal.usage.requests and not proposal.cached:
            notes += _unload(llm)
        layout = proposal.layout
        return io.NodeOutput(layout, layout.prompt or prompt, "\n".join(notes), layout.to_json())


def _unload(llm: LLMSettings) -> list[str]:
    """Free the model's memory. Where that fails it is but a note: the plan is there all the same."""
    from ..ttom_core.planner import LLMError, unload

    try:
        unload(llm)
    except LLMError as error:
        return [str(error)]
    return []


def _notes(proposal: Proposal) -> list[str]:
    layout, usage = proposal.layout, proposal.usage
    found = ", ".join(thing.name for thing in layout.objects)
    lines = [f"Planned by {layout.planner}: {found}."]
    if proposal.cached:
        lines.append("Remembered from an earlier plan; nobody was asked.")
    elif usage.requests:
        cost = "" if usage.cost is None else f", {usage.cost:.4f} USD"
        lines.append(f"{usage.requests} requests, {usage.input_tokens} + {usage.output_tokens} tokens{cost}.")
    return list(dict.fromkeys([*lines, *layout.unresolved, *proposal.repaired, *proposal.faults]))
