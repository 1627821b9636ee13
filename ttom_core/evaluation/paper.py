"""What the paper claims, and what this project set out to reach, as figures that its result files hold."""

from __future__ import annotations

from .claims import Claim, Condition
from .evaluate import QUALITIES

KEPT = 0.03  # a quality is kept that falls by less than this
CATEGORIES = (
    "motion", "numeracy", "spatial", "consistent_attribute", "dynamic_attribute", "action", "interaction"
)  # fmt: skip
RIVALS = ("base", "tto", "lvd", "latent", "noise")


def ahead(result: str, first: str, second: str, quality: str = "composition", where: str = "") -> Condition:
    """The first scores above the second at the same prompts; for distortion, below."""
    name = f"{quality}_of_{first}_over_{second}{where}"
    return Condition(result, name, below=quality == "distortion")


def kept(method: str) -> tuple[Condition, ...]:
    """A method's presence and distortion stay within `KEPT` of the base model's, or are better."""
    return (
        Condition("evidence", f"presence_of_{method}_over_base", -KEPT),
        Condition("evidence", f"distortion_of_{method}_over_base", KEPT, below=True),
    )


MEMORY, PAPER, FAST = "memory_quality", "memory_paper", "memory_fast"
CLAIMS = (
    Claim("table 1", "TTOM composes better than its base model", (ahead("evidence", "tto", "base"),)),
    Claim("table 1", "TTOM composes better than LVD", (ahead("evidence", "tto", "lvd"),)),
    Claim("table 1", "LVD composes better than the base model", (ahead("evidence", "lvd", "base"),)),
    *(
        Claim(
            "table 1",
            f"TTOM is ahead of its base model in {category.replace('_', ' ')}",
            (ahead("evidence", "tto", "base", where=f"_{category}"),),
        )
        for category in CATEGORIES
    ),
    Claim("tables 9, 10", f"TTOM keeps the base model's quality (to within {KEPT})", kept("tto")),
    Claim(
        "tables 9, 10", "LVD lowers the base model's quality (its presence)",
        (Condition("evidence", "presence_of_lvd_over_base", below=True),),
    ),
    Claim("table 3", "TTO composes better than no optimisation", (ahead(MEMORY, "tto", "base"),)),
    Claim("table 3", "memory adds to TTO", (ahead(PAPER, "solved_tto", "tto"),)),
    Claim("table 4", "memory alone is ahead of nothing", (ahead(PAPER, "solved_only", "base"),)),
    Claim("table 4", "optimising on from memory adds to it", (ahead(PAPER, "solved_tto", "solved_only"),)),
    Claim(
        "table 4",
        "five fused entries are better than ten",
        (ahead(PAPER, "solved_only", "solved_only_top10"), ahead(PAPER, "solved_tto", "solved_tto_top10")),
    ),
    Claim(
        "table 5", "JSD is better than cross-entropy",
        (Condition("ablation_losses", "composition_of_bce_over_jsd", below=True),),
    ),
    Claim(
        "table 5", "JSD is better than the centre of mass",
        (Condition("ablation_losses", "composition_of_center_of_mass_over_jsd", below=True),),
    ),
    *(
        Claim(
            "table 6", f"a memory of 200 prompts is better than one of {size}",
            (ahead(PAPER, "solved_tto", f"solved_tto_of_{size}"),),
        )
        for size in (50, 100, 150)
    ),
    Claim(
        "table 7", "one optimised step is too few",
        (Condition("ablation_steps", "composition_of_steps_1_over_{own}", below=True),),
    ),
    Claim(
        "table 7", "three optimised steps are still too few",
        (Condition("ablation_steps", "composition_of_steps_3_over_{own}", below=True),),
    ),
    Claim(
        "table 7", f"more steps than the preset's are no better (by less than {KEPT})",
        (Condition("ablation_steps", "composition_of_{last}_over_{own}", KEPT, below=True),),
    ),
    *(
        Claim(
            "table 8", f"8 iterations are better than {other}",
            (ahead("ablation_iterations", "iterations_8", f"iterations_{other}"),),
        )
        for other in (4, 12, 16)
    ),
)  # fmt: skip
GOALS = (
    Claim(
        "goal", "the best preset composes 0.85 or more", (Condition("evidence", "best_composition", 0.85),)
    ),
    *(
        Claim(
            "goal",
            f"the best preset is ahead of {', '.join(RIVALS)} in {quality}"
            + (" (which is less of it)" if quality == "distortion" else ""),
            tuple(ahead("evidence", "best", rival, quality) for rival in RIVALS),
        )
        for quality in QUALITIES
    ),
    Claim(
        "goal",
        "TTO alone composes 2.5 times the base model's score, or closes 60 % of its gap to 1",
        (
            Condition("evidence", "tto_above_2.5_base"),
            Condition("evidence", "tto_above_60_percent_of_gap"),
        ),
        either=True,
    ),
    *(
        Claim("goal", f"on the CogVideoX sibling {words} {promise}", conditions, either=True)
        for method, words in (("tto", "TTO alone"), ("best", "its best preset"))
        for promise, conditions in (
            (
                "composes 1.7 times its base model's score, or closes half of the gap to 1",
                (
                    Condition("cogvideox", f"{method}_above_1.7_base"),
                    Condition("cogvideox", f"{method}_above_50_percent_of_gap"),
                ),
            ),
            (
                f"keeps the presence of the base model (to within {KEPT})",
                (Condition("cogvideox", f"presence_of_{method}_over_base", -KEPT),),
            ),
        )
    ),
    Claim(
        "goal",
        f"a memory makes TTO compose better, or as well (to within {KEPT}) with half the iterations",
        (
            ahead(MEMORY, "memory_tto", "tto"),
            Condition(MEMORY, "composition_of_memory_tto_half_over_tto", -KEPT),
        ),
        either=True,
    ),
    Claim(
        "goal",
        f"TTO from a memory keeps the presence of TTO alone (to within {KEPT})",
        (Condition(MEMORY, "presence_of_memory_tto_over_tto", -KEPT),),
    ),
    *(
        Claim(
            "goal",
            f"at a quarter of the iterations{words} a memory makes TTO compose better and keeps its presence",
            (
                ahead(result, f"memory_tto_quarter{rate}", f"tto_quarter{rate}"),
                Condition(result, f"presence_of_memory_tto_quarter{rate}_over_tto_quarter{rate}", -KEPT),
            ),
        )
        for result, rate, words in ((MEMORY, "", ""), (FAST, "_fast", ", each twice as large,"))
    ),
    Claim(
        "goal",
        f"from a memory a quarter of the iterations, each twice as large, composes as well as all of them "
        f"and keeps their presence (to within {KEPT})",
        tuple(
            Condition(FAST, f"{quality}_of_memory_tto_quarter_fast_over_tto", -KEPT)
            for quality in ("composition", "presence")
        ),
    ),
    Claim(
        "goal",
        "a memory read without optimising composes better than the base model",
        (ahead(MEMORY, "memory_only", "base"),),
    ),
    Claim(
        "control",
        "read without optimising, a scene's own entries are better than random ones",
        (ahead(MEMORY, "memory_only", "random_only"),),
    ),
    Claim(
        "control",
        "at a quarter of the iterations the memory is a better start than random entries of it",
        (ahead(MEMORY, "memory_tto_quarter", "random_quarter"),),
    ),
    Claim(
        "control",
        "read without optimising, a scene's own entries are better than those of the mirrored scene",
        (
            Condition(
                MEMORY, "composition_of_wrong_direction_only_over_memory_only_where_directed", below=True
            ),
        ),
    ),
)
