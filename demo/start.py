"""Initial weights of the demo model from which it learns faster than from the library's."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from transformers import UMT5EncoderModel

# Which neighbour a block's first and second head look at, as (frames, rows, columns) away.
NEIGHBOURS = {
    0: [(0, 0, -1)],
    1: [(0, -1, 0)],
    2: [(-1, 0, 0), (1, 0, 0)],
    3: [(0, 0, 1)],
    4: [(0, 1, 0)],
}
# How much a word looks at those before and after it, by head: logits by distance in words. Wan's own
# attention to the text knows no order, so whose colour a colour is must be known to the words themselves.
WORDS = [{-1: 4.0, -2: 3.0, -3: 1.0}, {1: 3.5, 2: 3.5, 3: 3.0, 4: 3.0, 5: 2.5}]


@torch.no_grad()
def words_know_their_neighbours(encoder: UMT5EncoderModel) -> None:
    """Set heads that look at `WORDS`, and leave the feed-forward layer out for good.

    Zero weights on both its sides have no gradient. Taught, it grew to thousands of times what it is added
    to, which the norm behind it forgives, and no word knew its neighbours any more.
    """
    attention, feed_forward = (part for part in encoder.encoder.block[0].layer)
    bias = attention.SelfAttention.relative_attention_bias.weight.zero_()
    for head, distances in enumerate(WORDS):
        for distance, logit in distances.items():
            bias[abs(distance) + (len(bias) // 2 if distance > 0 else 0), head] = logit
    for layer in ("wi_0", "wi_1", "wo"):
        getattr(feed_forward.DenseReluDense, layer).weight.zero_()


@torch.no_grad()
def head_start(transformer: WanTransformer3DModel, strength: float = 5.0) -> None:
    """Set neighbours to look at, and blocks that do nothing yet.

    - Heads of `NEIGHBOURS` have a constant query and key on the fastest rotary frequencies, the key turned
      by the offset. Those of other frames look there less sharply: what moves is beside its old place.
    - Blocks start as the identity, gates open (adaLN-Zero, Peebles & Xie 2023).
    """
    rope = transformer.rope
    speed = torch.atan2(rope.freqs_sin[1], rope.freqs_cos[1]).float()
    head = transformer.config.attention_head_dim
    for index, block in enumerate(transformer.blocks):
        for number, (frame, row, column) in enumerate(NEIGHBOURS.get(index, ())):
            pairs = 1 if frame else 2
            axes = ((0, frame, 3), (rope.t_dim, row, pairs), (rope.t_dim + rope.h_dim, column, pairs))
            for start, offset, count in axes:
                angle = offset * speed[start : start + 2 * count : 2]
                place = slice(number * head + start, number * head + start + 2 * count)
                query = torch.tensor([1.0, 0.0]).repeat(count)
                key = torch.stack([angle.cos(), -angle.sin()], 1).flatten()
                block.attn1.to_q.bias[place] = strength * query
                block.attn1.to_k.bias[place] = strength * key
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            last.weight.zero_()
            last.bias.zero_()
        block.scale_shift_table.zero_()[:, [2, 5]] = 1.0
    for module in (transformer.condition_embedder.time_proj, transformer.proj_out):
        module.weight.zero_()
        module.bias.zero_()
