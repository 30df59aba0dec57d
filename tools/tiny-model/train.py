"""Trains the test model on one CPU. `python train.py --out BUILD` writes BUILD/tokenizer.json and BUILD/weights.npz."""

import argparse
import json
import random
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus
import model

SPECIAL = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
SEED = 7
PROMPT_WEIGHT = 0.05  # questions are hardly predictable; the loss is about answers
SHORT_ANSWER = 16  # tokens; up to here an answer's tokens count fully
LONG_ANSWER_WEIGHT = 0.25  # least weight of a token of a long answer
ENDING = 3  # the last tokens of an answer: of a sum its digit, of a count the decision to stop
ENDING_WEIGHT = 2.0


def train_tokenizer(generator):
    """Byte-level BPE. Digits are left out of the merges, so that every number is spelt digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (re.sub(r"[0-9]|<\|\w+\|>", "\n", corpus.render(corpus.conversation(generator, long_answers=0.02))) for _ in range(6000))
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=model.VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert tokenizer.get_vocab_size() == model.VOCABULARY
    return tokenizer


class Batches:
    """Rows of whole conversations packed end to end. A conversation longer than the row is cut at a random place."""

    def __init__(self, tokenizer, generator):
        self.tokenizer, self.random = tokenizer, generator
        self.assistant, self.end = tokenizer.token_to_id("<|assistant|>"), tokenizer.token_to_id("<|end|>")

    def document(self, length):
        long = length >= 512
        turns = corpus.conversation(self.random, long_answers=0.3 if long else 0.12, exchanges=30 if long and self.random.random() < 0.4 else 3)
        ids = [0] + self.tokenizer.encode(corpus.render(turns)).ids
        weights = [PROMPT_WEIGHT] * len(ids)
        for first, last in self.answers(ids):
            # A short answer must not drown among stories, and where to stop is the hardest part of counting.
            weights[first : last + 1] = [max(LONG_ANSWER_WEIGHT, min(1.0, (SHORT_ANSWER / (last + 1 - first)) ** 0.5))] * (last + 1 - first)
            ending = max(first, last + 1 - ENDING)
            weights[ending : last + 1] = [ENDING_WEIGHT] * (last + 1 - ending)
        start = self.random.randrange(len(ids) - length) if len(ids) > length + 1 and self.random.random() < 0.6 else 0
        return ids[start:], weights[start:]

    def answers(self, ids):
        """(first, last) position of each answer; the last is its <|end|>."""
        first = None
        for place, token in enumerate(ids):
            if token == self.assistant:
                first = place + 1
            elif token == self.end and first is not None:
                yield first, place
                first = None

    def next(self, rows, length):
        tokens, weights, documents = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length + 1), np.float32), np.zeros((rows, length + 1), np.int32)
        for row in range(rows):
            filled, number = 0, 0
            while filled < length + 1:
                ids, importance = self.document(length)
                room = min(len(ids), length + 1 - filled)
                if filled and room < len(ids) and room < 40:
                    documents[row, filled:] = -1  # too little room to learn from: padding, weight 0
                    break
                piece = slice(filled, filled + room)
                tokens[row, piece], weights[row, piece], documents[row, piece] = ids[:room], importance[:room], number
                weights[row, filled] = 0.0  # the first token of a document cannot be predicted
                filled, number = filled + room, number + 1
        return tokens, weights, documents


def loss(weights, tokens, importance, documents):
    logits = model.forward(weights, tokens[:, :-1], documents[:, :-1])
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return (cost * importance[:, 1:]).sum() / importance[:, 1:].sum()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--steps", type=int, default=2600)
    arguments.add_argument("--long-share", type=float, default=0.15, help="share of the steps, at the end, with full-length rows")
    arguments = arguments.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    tokenizer = train_tokenizer(random.Random(SEED))
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    batches = Batches(tokenizer, random.Random(SEED + 1))
    weights = model.initial_weights(SEED)
    print("parameters", sum(w.size for w in jax.tree.leaves(weights)), "story", len(tokenizer.encode(corpus.STORY).ids), "everything", len(tokenizer.encode(corpus.EVERYTHING).ids), flush=True)

    peak, steps, long_from = 3e-3, arguments.steps, int(arguments.steps * (1 - arguments.long_share))
    # Warm up, hold, then fall to almost nothing over the last 45 % of the steps.
    schedule = optax.join_schedules([optax.linear_schedule(0, peak, 100), optax.constant_schedule(peak), optax.linear_schedule(peak, 3e-5, int(steps * 0.45))], [100, int(steps * 0.55)])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, *batch):
        cost, gradient = jax.value_and_grad(loss)(weights, *batch)
        update, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, update), state, cost

    started, started_cpu, smooth, history = time.time(), time.process_time(), None, []
    for number in range(steps):
        rows, length = (8, 256) if number < long_from else (2, model.CONTEXT)
        weights, state, cost = step(weights, state, *map(jnp.asarray, batches.next(rows, length)))
        smooth = float(cost) if smooth is None else 0.95 * smooth + 0.05 * float(cost)
        if number % 50 == 0 or number == steps - 1:
            history.append((number, round(smooth, 4)))
            print(number, f"loss {smooth:.4f} wall {time.time() - started:.0f}s cpu {time.process_time() - started_cpu:.0f}s", flush=True)
        if number % 250 == 249 or number == steps - 1:
            np.savez(arguments.out / "weights.npz", **weights)
    (arguments.out / "history.json").write_text(json.dumps({"steps": steps, "seed": SEED, "loss": history, "cpu_s": round(time.process_time() - started_cpu), "wall_s": round(time.time() - started)}))


if __name__ == "__main__":
    main()
