"""A real CogVideoXPipeline of toy size with random weights, the 2B's or the 5B's kind."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline
from diffusers import CogVideoXTransformer3DModel as Transformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

TEXT = 24  # text tokens of a call, padding included
HEADS, HEAD_WIDTH = 2, 16
SIZE = {"num_frames": 9, "height": 32, "width": 48}
GRID = (3, 2, 3)
# "circle" and "square" are in no vocabulary whole, as many words are not in T5's own.
PIECES = "▁a ▁the ▁red ▁blue ▁cir cle ▁squ are ▁moves ▁to ▁right ▁while ▁stays ▁still ▁ , .".split()
# The schedule of the published models: 3 in the 2B's config, 1 in the 5B's.
SNR_SHIFT = {"2b": 3.0, "5b": 1.0}


def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words behind a Unigram model and "▁", as T5 has them; the end of text is a token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    scores = [(piece, -1.0) for piece in PIECES] + [(letter, -9.0) for letter in letters]
    pieces = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *scores], unk_id=2))
    pieces.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def scheduler_options(size: str) -> dict[str, Any]:
    """Keyword arguments of the published models' schedulers."""
    return {
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": SNR_SHIFT[size],
        "timestep_spacing": "trailing",
    }


def build(size: str = "2b", **changes: Any) -> CogVideoXPipeline:
    """Positions are added to the embeddings in the 2B, and rotate queries and keys in the 5B."""
    torch.manual_seed(1)
    words = tokenizer()
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_heads=2, num_layers=1, dropout_rate=0.0
        )
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = Transformer(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_WIDTH,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 32,
            "num_layers": 4,
            "max_text_seq_length": TEXT,
            "use_rotary_positional_embeddings": size == "5b",
        }
        | changes
    )
    # Random weights give almost even attention; louder ones give maps whose gradients can be compared.
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.attn1.to_q.weight, std=0.5)
        torch.nn.init.normal_(block.attn1.to_k.weight, std=0.5)
    scheduler = CogVideoXDDIMScheduler(**scheduler_options(size))
    pipeline = CogVideoXPipeline(words, encoder.eval(), vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
