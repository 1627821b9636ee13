"""Fusion averages the products B·A, exactly, and leaves an adapter that can be optimised further."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ttom_core.adapter import Adapter, AdapterError, init_adapter
from ttom_core.fusion import fuse

SIZES = {"blocks.0.to_q": (12, 20), "blocks.0.to_v": (16, 9)}  # out, in


def adapter(seed: int, rank: int = 4, alpha: float = 4.0, a_seed: int | None = None) -> Adapter:
    """Random factors; adapters with one `a_seed` share A."""
    own = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(a_seed) if a_seed is not None else own
    weights = {
        name: (torch.randn(rank, i, generator=shared), torch.randn(o, rank, generator=own))
        for name, (o, i) in SIZES.items()
    }
    return Adapter(weights, rank, alpha, "toy")


def trained(seed: int, rank: int = 8) -> Adapter:
    """As optimisation leaves them: A near its one seed, B small."""
    modules = {name: nn.Linear(i, o) for name, (o, i) in SIZES.items()}
    start = init_adapter(modules, rank, float(rank), 0, "toy")
    own = torch.Generator().manual_seed(seed)
    weights = {
        name: (a + 0.01 * torch.randn(a.shape, generator=own), 0.02 * torch.randn(b.shape, generator=own))
        for name, (a, b) in start.weights.items()
    }
    return Adapter(weights, rank, float(rank), "toy")


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {name: adapter.scaling * b.double() @ a.double() for name, (a, b) in adapter.weights.items()}


def mean(adapters: list[Adapter], weights: list[float]) -> dict[str, Tensor]:
    parts = [deltas(a) for a in adapters]
    return {
        name: sum((w * part[name] for w, part in zip(weights, parts, strict=True)), torch.zeros(()))
        for name in SIZES
    }


def check_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name in SIZES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)


# ---- exact ---------------------------------------------------------------------------------------


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 999), st.integers(1, 6), st.floats(0.5, 16), st.floats(0.01, 5)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_concatenation_is_the_weighted_mean_of_the_products(parts) -> None:
    adapters = [adapter(seed, rank, alpha) for seed, rank, alpha, _ in parts]
    weights = [w for *_, w in parts]
    fused = fuse(adapters, weights)
    check_close(deltas(fused), mean(adapters, [w / sum(weights) for w in weights]))
    assert fused.scaling == pytest.approx(adapters[0].scaling)


def test_averaging_the_factors_is_something_else() -> None:
    pair = [trained(1), trained(2)]
    wanted = mean(pair, [0.5, 0.5])
    for name in SIZES:
        (a1, b1), (a2, b2) = (x.weights[name] for x in pair)
        naive = ((b1 + b2) / 2).double() @ ((a1 + a2) / 2).double()
        error = (naive - wanted[name]).norm() / wanted[name].norm()
        exact = (deltas(fuse(pair))[name] - wanted[name]).norm() / wanted[name].norm()
        assert error > 1e-3
        assert exact < 1e-6


def test_weights_are_taken_as_they_are_when_told_so() -> None:
    pair = [adapter(1), adapter(2)]
    check_close(deltas(fuse(pair, [2.0, -0.5], normalise=False)), mean(pair, [2.0, -0.5]))


@pytest.mark.parametrize("rank", [None, 4, 9])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_adapters_fuse_to_themselves(count: int, rank: int | None) -> None:
    one = adapter(3)
    fused = fuse([one] * count, [0.3 + k for k in range(count)], rank)
    assert (fused.rank, fused.alpha) == (one.rank, one.alpha)
    for name in SIZES:
        for x, y in zip(fused.weights[name], one.weights[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_one_shared_a_stays_and_costs_no_rank() -> None:
    adapters = [adapter(seed, a_seed=7) for seed in range(3)]
    fused = fuse(adapters, rank=4)
    assert fused.rank == 4
    for name in SIZES:
        assert torch.equal(fused.weights[name][0], adapters[0].weights[name][0])
    check_close(deltas(fused), mean(adapters, [1 / 3] * 3))


def test_the_released_update_rule_is_a_fusion() -> None:
    """(old + s·new) / (1 + s)."""
    old, new, s = adapter(1), adapter(2), 0.8
    check_close(deltas(fuse([old, new], [1, s])), mean([old, new], [1 / (1 + s), s / (1 + s)]))


# ---- cut to a rank -------------------------------------------------------------------------------


@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True), rank=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_cut_fusion_is_the_best_of_its_rank(seeds: list[int], rank: int) -> None:
    """Eckart–Young: its error is the tail of the singular values, and no other is smaller."""
    adapters = [adapter(seed) for seed in seeds]
    fused = fuse(adapters, rank=rank)
    assert fused.rank == min(rank, 4 * len(seeds))
    wanted = mean(adapters, [1 / len(seeds)] * len(seeds))
    for name, delta in deltas(fused).items():
        tail = torch.linalg.svdvals(wanted[name])[rank:].norm()
        assert float((delta - wanted[name]).norm()) == pytest.approx(float(tail), abs=1e-4)


def test_no_full_matrix_is_formed() -> None:
    """A ΔW of 200,000 × 200,000 would be 320 GB; its factors are small."""
    size, generator = 200_000, torch.Generator().manual_seed(0)

    def wide() -> Adapter:
        pair = (torch.randn(2, size, generator=generator), torch.randn(size, 2, generator=generator))
        return Adapter({"to_q": pair}, 2, 2.0, "toy")

    assert fuse([wide(), wide()], rank=2).rank == 2


def test_a_cut_fusion_can_be_optimised_further() -> None:
    """A keeps the scale and nearly the place it had, so a gradient finds B as it would have at the start."""
    adapters = [trained(seed) for seed in range(5)]
    fused = fuse(adapters, rank=8)
    assert (fused.rank, fused.alpha) == (8, 8.0)
    for name in SIZES:
        first, now = adapters[0].weights[name][0], fused.weights[name][0]
        assert float(now.norm() / first.norm()) == pytest.approx(1, abs=1e-4)
        nearness = float((first * now).sum() / first.norm() / now.norm())
        assert nearness > 0.85, (name, nearness)


def test_fusing_is_the_same_every_time_and_whatever_signs_come_in() -> None:
    adapters = [adapter(seed) for seed in range(3)]
    flipped = []
    for one in adapters:
        sign = torch.tensor([1.0, -1.0, -1.0, 1.0])
        weights = {n: (sign[:, None] * a, b * sign) for n, (a, b) in one.weights.items()}
        flipped.append(Adapter(weights, one.rank, one.alpha, one.fingerprint))
    once, again = fuse(adapters, rank=4), fuse(adapters, rank=4)
    turned = fuse([adapters[0], *flipped[1:]], rank=4)
    for name in SIZES:
        for x, y, z in zip(once.weights[name], again.weights[name], turned.weights[name], strict=True):
            assert torch.equal(x, y)
            torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5)


def test_the_order_changes_the_factors_only() -> None:
    adapters = [adapter(seed) for seed in range(3)]
    results = [deltas(fuse(list(order), rank=5)) for order in itertools.permutations(adapters)]
    for other in results[1:]:
        check_close(other, results[0])


def test_untrained_adapters_fuse_to_one_that_does_nothing() -> None:
    zero = [
        Adapter({n: (a, torch.zeros_like(b)) for n, (a, b) in adapter(s).weights.items()}, 4, 4.0, "toy")
        for s in (1, 2)
    ]
    for name, (a, b) in fuse(zero, rank=4).weights.items():
        assert not b.any(), name
        assert a.isfinite().all()
        assert a.any()


# ---- what does not fit ---------------------------------------------------------------------------


def changed(**facts) -> Adapter:
    one = adapter(1)
    fields = {"weights": one.weights, "rank": 4, "alpha": 4.0, "fingerprint": "toy"} | facts
    return Adapter(**fields)


FULL = adapter(1).weights
NOT_A_NUMBER = {n: (a, b * float("nan")) for n, (a, b) in FULL.items()}
WIDER = FULL | {"blocks.0.to_q": (torch.zeros(4, 21), torch.zeros(12, 4))}
WRONG = {
    "other model": ([changed(fingerprint="other")], None, None, "different models"),
    "other modules": ([changed(weights={"blocks.0.to_q": FULL["blocks.0.to_q"]})], None, None, "to_v"),
    "other shape": ([changed(weights=WIDER)], None, None, "12×21"),
    "not finite": ([changed(weights=NOT_A_NUMBER)], None, None, "not finite"),
    "weights too few": ([adapter(2)], [1.0], None, "2 adapters need as many weights"),
    "weights of nothing": ([adapter(2)], [0.0, 0.0], None, "sum"),
    "weights not numbers": ([adapter(2)], [1.0, float("nan")], None, "finite"),
    "rank 0": ([adapter(2)], None, 0, "at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(case: str) -> None:
    others, weights, rank, words = WRONG[case]
    with pytest.raises(AdapterError, match=words) as error:
        fuse([adapter(1), *others], weights, rank)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_nothing_cannot_be_fused() -> None:
    with pytest.raises(AdapterError, match="no adapter"):
        fuse([])
