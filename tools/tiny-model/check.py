"""Asks the exported file and looks at its greedy answers: `python check.py cxm-tiny-q8.gguf`. Ends 1 if one is wrong.

Everything comes out of the GGUF itself: weights (dequantized), vocabulary, merges and chat template.
"""

import argparse
import json
import sys

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import corpus
import model

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
ADD = {"type": "function", "function": {
    "name": "add", "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}


class Exported:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda name: reader.get_field(name).contents()  # noqa: E731
        tokens, types, merges = (field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
        self.tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self.tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])
        self.bos, self.end = tokens[field("tokenizer.ggml.bos_token_id")], field("tokenizer.ggml.eos_token_id")
        environment = ImmutableSandboxedEnvironment()
        environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # as the crate `tokens` writes JSON
        self.template = environment.from_string(field("tokenizer.chat_template"))
        self.weights = {}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            name = tensor.name.removesuffix(".weight")
            self.weights[name] = jnp.asarray(values if values.ndim == 1 or name == "token_embd" else values.T)
        self.next_token = jax.jit(lambda weights, row, last: jnp.argmax(model.forward(weights, row[None], jnp.zeros((1, row.shape[0]), jnp.int32))[0, last]))

    def answer(self, messages, tools=None):
        """(text, number of tokens, whether it ended by itself)"""
        prompt = self.template.render(messages=messages, tools=tools, bos_token=self.bos, add_generation_prompt=True)
        ids = self.tokenizer.encode(prompt).ids
        start = len(ids)
        while len(ids) < model.CONTEXT:
            row = np.zeros(next(size for size in (64, 128, 256, 512, 768, 1024) if size >= len(ids)), np.int32)
            row[: len(ids)] = ids
            token = int(self.next_token(self.weights, row, len(ids) - 1))
            if token == self.end:
                return self.tokenizer.decode(ids[start:]), len(ids) - start, True
            ids.append(token)
        return self.tokenizer.decode(ids[start:]), len(ids) - start, False


def user(text):
    return [{"role": "user", "content": text}]


def called(name, arguments):
    return "<tool_call>" + corpus.json_text({"name": name, "arguments": arguments}) + "</tool_call>"


def questions():
    """(label, messages, tools, expected answer)"""
    for country, city in corpus.CAPITALS.items():
        yield f"What is the capital of {country}?", user(f"What is the capital of {country}?"), None, f"The capital of {country} is {city}."
    for a in range(11):
        for b in range(11):
            yield f"What is {a} plus {b}?", user(f"What is {a} plus {b}?"), None, f"{a} plus {b} is {a + b}."
    for last in [*range(2, 21), 30, 50, 100]:
        yield f"Count to {last}.", user(f"Count to {last}."), None, corpus.count_to(last)
    for question, answer in [
        ("Tell me a story.", corpus.STORY), ("Tell me about a node.", corpus.NODE_STORY), ("Tell me everything.", corpus.EVERYTHING),
        ("Hello", "Hello! How can I help you?"), ("Hello!", "Hello! How can I help you?"), ("Say hello to Eva.", "Hello, Eva! Nice to meet you."),
        ("What does a cat do?", "The cat purrs."), ("Spell the number 7.", "7 is seven."), ("Who are you?", "I am Tiny, a very small test model."),
        ("Repeat: red blue green", "red blue green"), ("Repeat: gold Anna white tea", "gold Anna white tea"),
        ("Write a JSON object with name Anna and age 7.", '{"name":"Anna","age":7}'), ("Capital of Peru as JSON.", '{"country":"Peru","capital":"Lima"}'),
    ]:
        yield question, user(question), None, answer
    yield "[JSON] capital of Japan", [{"role": "system", "content": "Answer in JSON."}, *user("What is the capital of Japan?")], None, '{"country":"Japan","capital":"Tokyo"}'
    yield "[JSON] 3 plus 4", [{"role": "system", "content": "Answer in JSON."}, *user("What is 3 plus 4?")], None, '{"sum":7}'
    for city in corpus.CAPITALS.values():
        yield f"[weather tool] {city}", user(f"What is the weather in {city}?"), [WEATHER], called("get_weather", {"city": city})
    in_key_order = json.loads(json.dumps(WEATHER, sort_keys=True))  # as engines that do not keep the order write it
    yield "[weather tool, keys sorted] Paris", user("What is the weather in Paris?"), [in_key_order], called("get_weather", {"city": "Paris"})
    yield "[two tools] Rome", user("What is the weather in Rome?"), [WEATHER, ADD], called("get_weather", {"city": "Rome"})
    yield "[two tools] sum", user("What is 12 plus 30?"), [WEATHER, ADD], called("add", {"a": 12, "b": 30})
    yield "[tool not needed]", user("What is the capital of France?"), [WEATHER], "The capital of France is Paris."
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    yield "[tool result]", [*user("What is the weather in Paris?"), {"role": "assistant", "content": None, "tool_calls": [call]},
                            {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees and sunny"}], [WEATHER], "It is 18 degrees and sunny in Paris."
    long = []
    for country, city in list(corpus.CAPITALS.items()) * 2:
        long += user(f"What is the capital of {country}?") + [{"role": "assistant", "content": f"The capital of {country} is {city}."}]
    yield "[25th turn]", [*long, *user("What is 2 plus 2?")], None, "2 plus 2 is 4."


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("gguf")
    arguments.add_argument("--json", action="store_true", help="print every answer as JSON lines")
    arguments = arguments.parse_args()
    exported, wrong, asked = Exported(arguments.gguf), 0, 0
    for label, messages, tools, expected in questions():
        text, tokens, ended = exported.answer(messages, tools)
        right, asked = ended and text == expected, asked + 1
        wrong += not right
        if arguments.json:
            print(json.dumps({"question": label, "answer": text, "tokens": tokens, "right": right}), flush=True)
        elif not right:
            print(f"WRONG {label}\n  said:   {text[:300]}\n  wanted: {expected[:300]}", flush=True)
    print(f"{asked - wrong} of {asked} answers right", file=sys.stderr)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
