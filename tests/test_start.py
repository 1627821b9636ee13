"""What the demo transformer starts from: neighbours are looked at, and nothing is changed yet."""

import pytest
import torch
from transformers import UMT5EncoderModel

from demo.start import NEIGHBOURS
from demo.train import MODEL, build_pipeline
from demo.training import attention

GRID = (3, 5, 5)


@pytest.fixture(scope="module")
def pipeline():
    return build_pipeline(0)


@pytest.fixture(scope="module")
def transformer(pipeline):
    return pipeline.transformer


@pytest.mark.parametrize(
    ("block", "head", "offset"),
    [(block, head, offset) for block, heads in NEIGHBOURS.items() for head, offset in enumerate(heads)],
)
def test_a_head_looks_most_at_the_neighbour_it_is_given(transformer, monkeypatch, block, head, offset):
    seen = {}

    def watch(query, key, value, *_, **__):
        seen["weights"] = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return torch.nn.functional.softmax(query @ key.mT, -1) @ value

    latents = torch.zeros(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2])
    rotary = transformer.rope(latents)
    tokens = torch.randn(1, 75, 256, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    with torch.no_grad():
        transformer.blocks[block].attn1(tokens, rotary_emb=rotary)
    middle = (1, 2, 2)
    place = torch.arange(75).view(GRID)
    looked_at = seen["weights"][0, head, place[middle]].view(GRID)
    assert looked_at.argmax() == place[tuple(m + o for m, o in zip(middle, offset, strict=True))]
    assert looked_at.max() > 2 * looked_at.median()


def test_untrained_blocks_change_nothing(transformer):
    generator = torch.Generator().manual_seed(2)
    tokens, text = torch.randn(1, 75, 256, generator=generator), torch.randn(1, 4, 256, generator=generator)
    rotary = transformer.rope(torch.zeros(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]))
    with torch.no_grad():
        for block in transformer.blocks:
            assert torch.equal(block(tokens, text, torch.zeros(1, 6, 256), rotary), tokens)


def test_the_attention_that_is_compiled_for_training_is_torchs():
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 2, 7, 16, generator=generator) for _ in range(3))
    mask = torch.randn(2, 1, 7, 7, generator=generator)
    torchs = torch.nn.functional.scaled_dot_product_attention
    for options in ({}, {"attn_mask": mask}, {"scale": 1.0}):
        torch.testing.assert_close(
            attention(query, key, value, **options), torchs(query, key, value, **options)
        )


def words(tokenizer, encoder, caption):
    tokens = tokenizer(caption, return_tensors="pt")
    with torch.no_grad():
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    return dict(zip(tokenizer.convert_ids_to_tokens(tokens.input_ids[0]), states, strict=True))


@pytest.mark.parametrize("trained", [False, True])
def test_a_word_knows_its_neighbours(pipeline, trained):
    """The same words in another order: a shape knows its colour, so the model can tell who is left."""
    encoder = UMT5EncoderModel.from_pretrained(MODEL / "text_encoder") if trained else pipeline.text_encoder
    first = words(pipeline.tokenizer, encoder, "red triangle left green circle")
    second = words(pipeline.tokenizer, encoder, "green triangle left red circle")
    for word in ("red", "green", "triangle", "circle"):
        assert torch.cosine_similarity(first[word].float(), second[word].float(), 0) < 0.97, word
