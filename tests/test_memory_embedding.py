"""Embedders: real text encoders of toy size, their vectors and their names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ttom_core.errors import TTOMError
from ttom_core.memory.embedding import ClipEmbedder, Embedder, PipelineEmbedder, text_embedder

SENTENCES = [
    "<object A> moves to the right while <object B> stays still",
    "<object A> moves up",
    "two <object A> and three <object B>",
]


def save_clip(folder: Path, seed: int) -> str:
    """A CLIP text encoder of toy size with random weights, as `from_pretrained` wants it."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz<>"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["pipeline", "clip"])
def embedder(request: pytest.FixtureRequest, tiny_pipeline, tmp_path: Path) -> Embedder:
    if request.param == "pipeline":
        return text_embedder("pipeline", tiny_pipeline)
    return text_embedder(f"clip:{save_clip(tmp_path / 'clip', 0)}")


def test_vectors_are_of_unit_length(embedder: Embedder) -> None:
    vectors = embedder(SENTENCES)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, vectors.shape[1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert embedder([]).shape == (0, vectors.shape[1])


def test_a_sentence_has_one_vector_whatever_its_company(embedder: Embedder) -> None:
    together = embedder(SENTENCES)
    for sentence, vector in zip(SENTENCES, together, strict=True):
        assert np.array_equal(embedder([sentence])[0], vector)
    assert np.array_equal(embedder(SENTENCES[::-1]), together[::-1])


def test_other_sentences_have_other_vectors(embedder: Embedder) -> None:
    cosines = embedder(SENTENCES) @ embedder(SENTENCES).T
    assert (cosines[np.triu_indices(3, 1)] < 1 - 1e-4).all()


def test_long_sentences_are_cut_and_empty_ones_have_a_vector(embedder: Embedder) -> None:
    vectors = embedder(["moves up " * 500, ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_words_the_tokenizer_does_not_know_change_nothing(tiny_pipeline) -> None:
    """The demo's knows sixty words, and "object" is none of them."""
    embed = PipelineEmbedder(tiny_pipeline)
    bare, with_slot, other = embed(["moves to the right", "<object> moves to the right", "moves up"])
    assert np.array_equal(bare, with_slot)
    assert not np.array_equal(bare, other)


# ---- names ---------------------------------------------------------------------------------------


def test_a_name_tells_the_weights(tiny_pipeline, tmp_path: Path) -> None:
    first = ClipEmbedder(save_clip(tmp_path / "first", 0))
    same = ClipEmbedder(save_clip(tmp_path / "moved", 0))
    other = ClipEmbedder(save_clip(tmp_path / "other", 1))
    assert first.name == same.name
    assert first.name != other.name
    assert len({first.name, other.name, PipelineEmbedder(tiny_pipeline).name}) == 3


def test_the_precision_it_runs_in_does_not_change_the_name(tiny_pipeline) -> None:
    import copy
    from types import SimpleNamespace

    wide = copy.deepcopy(tiny_pipeline.text_encoder).bfloat16()
    parts = {"tokenizer": tiny_pipeline.tokenizer}
    names = {
        PipelineEmbedder(SimpleNamespace(text_encoder=encoder, **parts)).name
        for encoder in (wide, copy.deepcopy(wide).float())
    }
    assert len(names) == 1


# ---- what a user can get wrong -------------------------------------------------------------------


def test_an_unknown_embedder_is_refused() -> None:
    for choice in ("word2vec", "pipeline:other", ""):
        with pytest.raises(TTOMError, match="use pipeline, clip or sentence-transformers"):
            text_embedder(choice)


def test_a_pipeline_without_an_encoder_is_refused() -> None:
    with pytest.raises(TTOMError, match="no text encoder"):
        text_embedder("pipeline", None)


def test_a_model_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TTOMError, match="cannot be loaded") as error:
        text_embedder(f"clip:{tmp_path / 'nowhere'}")
    assert "\n" not in str(error.value)


def test_weights_in_a_pickle_are_never_opened(tmp_path: Path) -> None:
    folder = Path(save_clip(tmp_path / "pickled", 0))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(TTOMError, match="cannot be loaded"):
        text_embedder(f"clip:{folder}")


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None, reason="sentence-transformers is installed"
)
def test_a_missing_package_is_named() -> None:
    with pytest.raises(TTOMError, match="pip install sentence-transformers"):
        text_embedder("sentence-transformers")


def test_a_sentence_transformers_model(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    words = package.models.Transformer(save_clip(tmp_path / "words", 0))
    model = package.SentenceTransformer(modules=[words, package.models.Pooling(16)])
    model.save(str(tmp_path / "model"))
    vectors = text_embedder(f"sentence-transformers:{tmp_path / 'model'}")(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
