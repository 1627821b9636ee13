"""Does a planned layout do what its prompt says? 168 prompts of our own in T2V-CompBench's categories.

    python benchmarks/planning/run.py                                     # the rule planner
    python benchmarks/planning/run.py --llm MODEL --base-url URL          # any chat-completions server
    python benchmarks/planning/run.py --show                              # every prompt that is missed

prompts.json says by hand what must be seen in the boxes; no planner takes part in judging. Every third
prompt is held out: no rule was ever mended by looking at it. A score is the share of a prompt's
expectations that hold; obeyed are prompts with all of them; silent are those with a miss that the layout
does not mention. Writes results/planning.json, with --llm results/planning_MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import estimate
from ttom_core.evaluation.expectations import held
from ttom_core.evaluation.results import write_result
from ttom_core.planner import LLMSettings, Proposal, propose

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
HELD_OUT = 3  # every third prompt of a category


def rows() -> list[dict[str, Any]]:
    """The prompts with their category, and whether they are held out."""
    categories = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    return [
        {**row, "category": category, "held_out": place % HELD_OUT == HELD_OUT - 1}
        for category, members in categories.items()
        for place, row in enumerate(members)
    ]


def judge(row: dict[str, Any], settings: LLMSettings | None, folder: Path | None) -> dict[str, Any]:
    """What became of one prompt: its score, what was missed, and how the plan came about."""
    try:
        proposal = propose(row["prompt"], 0, settings, folder=folder)
    except TTOMError as error:
        return {**row, "score": 0.0, "missed": [str(error)], "silent": False, "how": "none"}
    results = held(proposal.layout, row)
    missed = [words for words, good in results.items() if not good]
    silent = bool(missed) and not proposal.layout.unresolved
    score = sum(results.values()) / len(results)
    return {**row, "score": score, "missed": missed, "silent": silent, "how": _how(proposal)}


def _how(proposal: Proposal) -> str:
    """After what a plan passed the checks; "faulty" when it never did."""
    if proposal.faults:
        return "faulty"
    if proposal.reasks:
        return "re-ask"
    return "repair" if proposal.repaired else "first"


def figures(judged: list[dict[str, Any]], with_model: bool) -> dict[str, dict[str, Any]]:
    """Scores by category, of the held-out prompts and of all; for a model, after what plans were valid."""
    groups: dict[str, list[dict[str, Any]]] = {"all": judged}
    groups["held_out"] = [row for row in judged if row["held_out"]]
    for row in judged:
        groups.setdefault(row["category"], []).append(row)
    table = {}
    for name, members in groups.items():
        table[f"score_{name}"] = estimate([row["score"] for row in members], "share of expectations")
        table[f"obeyed_{name}"] = estimate([not row["missed"] for row in members], "share of prompts")
        table[f"silent_{name}"] = estimate([row["silent"] for row in members], "share of prompts")
    if with_model:
        valid: set[str] = set()
        for step in ("first", "repair", "re-ask"):
            valid.add(step)
            values = [row["how"] in valid for row in judged]
            table[f"valid_{step}".replace("-", "")] = estimate(values, "share of prompts, so far")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llm", metavar="MODEL", help="plan with this model (default: the rules)")
    parser.add_argument("--base-url", help="the model's server")
    parser.add_argument("--key-variable", help="environment variable with the server's key")
    parser.add_argument("--mode", choices=("staged", "one-call"), default="staged")
    parser.add_argument("--keep", type=Path, help="a folder for the model's plans: a second run resumes")
    parser.add_argument("--show", action="store_true", help="print what is missed, held-out prompts apart")
    parser.add_argument("--out", type=Path, help="the result file")
    options = parser.parse_args()
    settings = None
    name, command = "planning", "python benchmarks/planning/run.py"
    if options.llm:
        settings = LLMSettings.checked(
            model=options.llm,
            base_url=options.base_url,
            key_variable=options.key_variable,
            staged=options.mode == "staged",
        )
        name = "planning_" + re.sub(r"\W+", "_", options.llm)
        command += f" --llm {options.llm} --mode {options.mode}"
    judged = [judge(row, settings, options.keep) for row in tqdm(rows(), desc=name)]
    for row in judged if options.show else ():
        if row["missed"] and not row["held_out"]:
            print(f"{'SILENT ' if row['silent'] else ''}{row['prompt']}\n    {'; '.join(row['missed'])}")
    table = figures(judged, settings is not None)
    for figure, cells in table.items():
        print(f"{figure:28} {cells['value']:.3f} ({cells['low']:.3f}–{cells['high']:.3f}) of {cells['n']}")
    write_result(options.out or RESULTS / f"{name}.json", command, 0, table)


if __name__ == "__main__":
    main()
