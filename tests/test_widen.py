"""Training small and shipping wide: the wide model says what its narrow twin says."""

import pytest
import torch

from demo.train import build_pipeline, narrow_twin
from demo.widen import widen_text, widen_transformer


@pytest.fixture(scope="module")
def twins():
    """A narrow pipeline whose weights are all away from their start, and the wide one made from it."""
    wide = build_pipeline(0)
    narrow = narrow_twin(wide)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (narrow.transformer, narrow.text_encoder):
            for weight in part.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    widen_transformer(narrow.transformer, wide.transformer)
    widen_text(narrow.text_encoder, wide.text_encoder)
    return narrow, wide


def test_the_wide_text_encoder_says_the_same_and_nothing_else(twins):
    captions = ["a red circle moves up", "two cyan squares"]
    tokens = twins[0].tokenizer(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        few, many = (
            pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state for pipe in twins
        )
    torch.testing.assert_close(many[..., :128], few, rtol=1e-4, atol=1e-5)
    assert not many[..., 128:].any()


def test_the_wide_transformer_computes_the_same_in_values_and_in_the_gradient_of_its_input(twins):
    narrow, wide = twins
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(2, 9, 128, generator=generator)
    padded = torch.nn.functional.pad(text, (0, 4096 - 128))
    latents = torch.randn(2, 16, 3, 8, 8, generator=generator, requires_grad=True)
    outputs = []
    for pipe, embeds in ((narrow, text), (wide, padded)):
        velocity = pipe.transformer.double()(latents.double(), torch.tensor([900.0, 31.0]), embeds.double())
        (slope,) = torch.autograd.grad(velocity.sample.square().sum(), latents)
        outputs.append((velocity.sample, slope))
    for small, large in zip(*outputs, strict=True):
        torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-5)
