"""A small llama in JAX: RMS norms, rotary positions on interleaved pairs (the order GGUF stores), grouped-query
attention, SwiGLU, tied embeddings. Weights are a flat dictionary named as in the GGUF file, stored input-first."""

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY = 768
WIDTH = 128
LAYERS = 4
HEADS = 4
KV_HEADS = 2
FEED_FORWARD = 384
CONTEXT = 1024
HEAD = WIDTH // HEADS
ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5

MATRICES = {
    "attn_q": (WIDTH, HEADS * HEAD), "attn_k": (WIDTH, KV_HEADS * HEAD), "attn_v": (WIDTH, KV_HEADS * HEAD), "attn_output": (HEADS * HEAD, WIDTH),
    "ffn_gate": (WIDTH, FEED_FORWARD), "ffn_up": (WIDTH, FEED_FORWARD), "ffn_down": (FEED_FORWARD, WIDTH),
}


def initial_weights(seed):
    keys = iter(jax.random.split(jax.random.PRNGKey(seed), 1 + LAYERS * len(MATRICES)))
    weights = {"token_embd": 0.02 * jax.random.normal(next(keys), (VOCABULARY, WIDTH)), "output_norm": jnp.ones(WIDTH)}
    for layer in range(LAYERS):
        weights[f"blk.{layer}.attn_norm"] = weights[f"blk.{layer}.ffn_norm"] = jnp.ones(WIDTH)
        for name, shape in MATRICES.items():
            scale = 1 / np.sqrt(2 * LAYERS) if name in ("attn_output", "ffn_down") else 1.0
            weights[f"blk.{layer}.{name}"] = 0.05 * scale * jax.random.normal(next(keys), shape)
    return weights


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPSILON) * weight


def rotate(x):
    """x: batch, position, head, dimension."""
    frequencies = ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    angles = np.outer(np.arange(x.shape[1]), frequencies)[None, :, None, :]
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def forward(weights, tokens, documents):
    """Logits for every position; a token sees only earlier tokens of its own document."""
    batch, length = tokens.shape
    visible = jnp.tril(jnp.ones((length, length), bool))[None] & (documents[:, :, None] == documents[:, None, :])
    bias = jnp.where(visible, 0.0, -1e9)[:, None]
    x = weights["token_embd"][tokens]
    for layer in range(LAYERS):
        w = lambda name: weights[f"blk.{layer}.{name}"]  # noqa: B023, E731
        y = rms_norm(x, w("attn_norm"))
        q = rotate((y @ w("attn_q")).reshape(batch, length, HEADS, HEAD))
        k = rotate((y @ w("attn_k")).reshape(batch, length, KV_HEADS, HEAD))
        v = (y @ w("attn_v")).reshape(batch, length, KV_HEADS, HEAD)
        k, v = (jnp.repeat(a, HEADS // KV_HEADS, 2) for a in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(HEAD) + bias
        x = x + jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v).reshape(batch, length, -1) @ w("attn_output")
        y = rms_norm(x, w("ffn_norm"))
        x = x + (jax.nn.silu(y @ w("ffn_gate")) * (y @ w("ffn_up"))) @ w("ffn_down")
    return rms_norm(x, weights["output_norm"]) @ weights["token_embd"].T
