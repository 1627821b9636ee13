"""Text embedders: a scene's sentence → a unit vector, to rank entries whose structure matches.

An embedder's name says which weights it has, so a store never compares vectors of two models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import TTOMError

if TYPE_CHECKING:
    from torch import Tensor, nn

CLIP = "openai/clip-vit-large-patch14"
SENTENCE = "sentence-transformers/all-MiniLM-L6-v2"


class Embedder(Protocol):
    """Sentences → float32 [n, d] of unit length; the same sentence always gives the same row."""

    name: str

    def __call__(self, sentences: list[str]) -> np.ndarray: ...


def text_embedder(choice: str, pipeline: Any = None) -> Embedder:
    """The embedder a user chose: "pipeline", "clip" or "sentence-transformers", or "KIND:MODEL".

    MODEL is a folder or a name on the Hugging Face Hub; "pipeline" is the text encoder of `pipeline`.
    TTOMError for anything else, and when a package or a model is missing.
    """
    kind, _, model = choice.partition(":")
    if kind == "pipeline" and not model:
        return PipelineEmbedder(pipeline)
    if kind == "clip":
        return ClipEmbedder(model or CLIP)
    if kind == "sentence-transformers":
        return SentenceEmbedder(model or SENTENCE)
    raise TTOMError(f"There is no embedder {choice!r}; use pipeline, clip or sentence-transformers.")


class PipelineEmbedder:
    """The mean over a sentence's tokens of a diffusers pipeline's own text encoder (T5 and its kin).

    Words the tokenizer does not know are left out, or they would make all sentences alike: a small one
    may not know "object". Each sentence goes alone, so that its vector never depends on its neighbours'
    lengths.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        encoder = getattr(pipeline, "text_encoder", None)
        if encoder is None or getattr(pipeline, "tokenizer", None) is None:
            raise TTOMError(
                "The pipeline has no text encoder to embed sentences with; load it whole, or use the "
                "embedder clip or sentence-transformers."
            )
        vocabulary = sorted(pipeline.tokenizer.get_vocab().items())
        self.name = f"pipeline-{identity(encoder, vocabulary)}"

    def __call__(self, sentences: list[str]) -> np.ndarray:
        import torch

        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        device = getattr(self.pipeline, "_execution_device", encoder.device)
        unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
        rows = []
        for sentence in sentences:
            known = [t for t in tokenizer(sentence, truncation=True).input_ids if t != unknown]
            ids = torch.tensor([known], device=device)
            with torch.no_grad():
                hidden = encoder(ids, torch.ones_like(ids)).last_hidden_state[0]
            real = [i for i, token in enumerate(known) if token not in special]
            rows.append(hidden[real or slice(None)].float().mean(0).cpu())
        return unit_rows(rows, encoder.config.hidden_size)


class ClipEmbedder:
    """CLIP's projected text features (Radford et al. 2021), of a model that transformers can load."""

    def __init__(self, model: str = CLIP) -> None:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.encoder = CLIPTextModelWithProjection.from_pretrained(model, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise TTOMError(
                f"The CLIP model {model!r} cannot be loaded; name a folder or a model that is downloaded."
            ) from error
        self.name = f"clip-{identity(self.encoder, sorted(self.tokenizer.get_vocab().items()))}"

    def __call__(self, sentences: list[str]) -> np.ndarray:
        import torch

        rows = []
        for sentence in sentences:
            limit = self.encoder.config.max_position_embeddings
            encoding = self.tokenizer(sentence, truncation=True, max_length=limit, return_tensors="pt")
            with torch.no_grad():
                rows.append(self.encoder(**encoding).text_embeds[0].float())
        return unit_rows(rows, self.encoder.config.projection_dim)


class SentenceEmbedder:
    """A model of the sentence-transformers package."""

    def __init__(self, model: str = SENTENCE) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise TTOMError(
                "The embedder sentence-transformers needs the package of that name; install it with "
                "`pip install sentence-transformers`, or use the embedder pipeline."
            ) from error
        try:
            self.encoder = SentenceTransformer(model, device="cpu", model_kwargs={"use_safetensors": True})
        except (OSError, ValueError) as error:
            raise TTOMError(
                f"The sentence-transformers model {model!r} cannot be loaded; name a folder or a model "
                "that is downloaded."
            ) from error
        self.name = f"sentence-{identity(self.encoder, sorted(self.encoder.tokenizer.get_vocab().items()))}"

    def __call__(self, sentences: list[str]) -> np.ndarray:
        rows = [self.encoder.encode(s, convert_to_tensor=True, show_progress_bar=False) for s in sentences]
        return unit_rows(rows, self.encoder.get_sentence_embedding_dimension())


def identity(encoder: nn.Module, vocabulary: Iterable[tuple[str, int]] = ()) -> str:
    """What an embedder's name says of its text encoder: class and weights.

    Of every parameter the start is hashed, as bfloat16, in which most are loaded.
    """
    import torch

    digest = hashlib.sha256(repr(list(vocabulary)).encode())
    for name, parameter in encoder.named_parameters():
        if parameter.is_meta:
            raise TTOMError(
                "The text encoder's weights are loaded piece by piece while it runs (sequential "
                "offloading), so it cannot be told which they are; use enable_model_cpu_offload() instead."
            )
        start = parameter.detach().flatten()[:16].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + start.numpy().tobytes())
    return f"{type(encoder).__name__.lower()}-{digest.hexdigest()[:16]}"


def unit_rows(rows: list[Tensor], width: int) -> np.ndarray:
    """Vectors [d] as rows of length 1, float32 [n, d]; TTOMError when one is not finite."""
    vectors = np.stack([row.cpu().numpy() for row in rows]) if rows else np.empty((0, width), np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise TTOMError("The text encoder gave no finite vector; load it in bfloat16 or float32.")
    return (vectors / lengths).astype(np.float32)
