// The official OpenAI client for Node, unmodified, against a running gateway. See ../README.md for the variables.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const story = [{ role: "user", content: "Tell me a story." }];
const question = [{ role: "user", content: "What is the capital of France?" }];

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; e2e/clients/README.md lists what these tests need`);
  return value;
}

function clientWith(key) {
  return new OpenAI({ baseURL: setting("CXMPUTE_BASE_URL"), apiKey: key, maxRetries: 0, timeout: 60_000 });
}

const client = clientWith(setting("CXMPUTE_API_KEY"));
const poor = clientWith(setting("CXMPUTE_EMPTY_KEY"));
const stranger = clientWith("cxk_00000000000000000000000000000000");
const model = setting("CXMPUTE_CHAT_MODEL");
const embeddingsModel = process.env.CXMPUTE_EMBEDDINGS_MODEL;
const withoutEmbeddings = embeddingsModel ? false : "CXMPUTE_EMBEDDINGS_MODEL is empty: no embeddings model is served here";

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function assertAddsUp(usage) {
  assert.ok(usage.prompt_tokens > 0);
  assert.ok(usage.completion_tokens > 0);
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
}

function assertClose(left, right, tolerance) {
  assert.equal(left.length, right.length);
  assert.ok(left.length > 0);
  left.forEach((value, place) => assert.ok(Math.abs(value - right[place]) <= tolerance, `place ${place}: ${value} and ${right[place]}`));
}

function ends(chunks) {
  return chunks.map((chunk) => chunk.choices[0].finish_reason).filter(Boolean);
}

// Models

test("the list of models names the chat model", async () => {
  const ids = [];
  for await (const entry of client.models.list()) {
    assert.equal(entry.object, "model");
    ids.push(entry.id);
  }
  assert.ok(ids.includes(model));
});

test("one model can be retrieved", async () => {
  const entry = await client.models.retrieve(model);
  assert.equal(entry.id, model);
  assert.equal(entry.object, "model");
  assert.ok(entry.created > 0);
  assert.ok(entry.owned_by);
});

test("retrieving an unknown model is not found", async () => {
  await assert.rejects(client.models.retrieve("no-such-model"), (failure) => {
    assert.ok(failure instanceof OpenAI.NotFoundError, String(failure));
    assert.equal(failure.code, "model_not_found");
    return true;
  });
});

// Chat

test("a chat answer has text, usage and an end", async () => {
  const answer = await client.chat.completions.create({ model, messages: question, temperature: 0 });
  assert.equal(answer.object, "chat.completion");
  assert.match(answer.id, /^chatcmpl-/);
  assert.equal(answer.model, model);
  assert.equal(answer.choices.length, 1);
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assertAddsUp(answer.usage);
});

test("max_tokens ends an answer with length", async () => {
  const answer = await client.chat.completions.create({ model, messages: story, max_tokens: 5, temperature: 0 });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.ok(answer.usage.completion_tokens <= 5);
});

test("a stream with usage begins, flows, ends and reports", async () => {
  const chunks = await collect(
    await client.chat.completions.create({ model, messages: story, temperature: 0, stream: true, stream_options: { include_usage: true } }),
  );
  const report = chunks.at(-1);
  const answer = chunks.slice(0, -1);
  assert.deepEqual(new Set(chunks.map((chunk) => chunk.object)), new Set(["chat.completion.chunk"]));
  assert.equal(new Set(chunks.map((chunk) => `${chunk.id} ${chunk.created} ${chunk.model}`)).size, 1);
  assert.ok(answer.every((chunk) => chunk.choices.length === 1 && !chunk.usage));
  assert.equal(answer[0].choices[0].delta.role, "assistant");
  assert.ok(answer.filter((chunk) => chunk.choices[0].delta.content).length > 20);
  assert.deepEqual(ends(answer), ["stop"]);
  assert.equal(answer.at(-1).choices[0].finish_reason, "stop");
  assert.deepEqual(report.choices, []);
  assertAddsUp(report.usage);
  assert.ok(report.usage.completion_tokens > 20);
});

test("a stream without include_usage has no usage chunk", async () => {
  const chunks = await collect(await client.chat.completions.create({ model, messages: question, temperature: 0, stream: true }));
  assert.ok(chunks.every((chunk) => chunk.choices.length === 1 && !chunk.usage));
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

test("stream and single answer say the same", async () => {
  const single = await client.chat.completions.create({ model, messages: story, temperature: 0 });
  const chunks = await collect(
    await client.chat.completions.create({ model, messages: story, temperature: 0, stream: true, stream_options: { include_usage: true } }),
  );
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), single.choices[0].message.content);
  assert.equal(chunks.at(-1).usage.completion_tokens, single.usage.completion_tokens);
});

test("after an abandoned stream the next request works", async () => {
  const stream = await client.chat.completions.create({ model, messages: story, temperature: 0, stream: true });
  let seen = 0;
  for await (const _ of stream) {
    seen += 1;
    if (seen === 3) stream.controller.abort();
  }
  assert.ok(seen >= 3);
  const answer = await client.chat.completions.create({ model, messages: question, temperature: 0 });
  assert.equal(answer.choices[0].finish_reason, "stop");
});

// Completions

const prompt = { prompt: "Once there was a small", max_tokens: 16, temperature: 0 };

test("a completion continues the prompt", async () => {
  const answer = await client.completions.create({ model, ...prompt });
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.choices.length, 1);
  assert.ok(answer.choices[0].text);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  assertAddsUp(answer.usage);
  assert.ok(answer.usage.completion_tokens <= 16);
});

test("a completion stream says the same and reports usage", async () => {
  const single = await client.completions.create({ model, ...prompt });
  const chunks = await collect(await client.completions.create({ model, ...prompt, stream: true, stream_options: { include_usage: true } }));
  const report = chunks.at(-1);
  const answer = chunks.slice(0, -1);
  assert.equal(answer.map((chunk) => chunk.choices[0].text).join(""), single.choices[0].text);
  assert.deepEqual(ends(answer), [single.choices[0].finish_reason]);
  assert.deepEqual(report.choices, []);
  assert.equal(report.usage.completion_tokens, single.usage.completion_tokens);
});

// Embeddings

test("embeddings are the same as floats and as base64", { skip: withoutEmbeddings }, async () => {
  const floats = await client.embeddings.create({ model: embeddingsModel, input: "The cat purrs.", encoding_format: "float" });
  const byDefault = await client.embeddings.create({ model: embeddingsModel, input: "The cat purrs." }); // the client asks for base64
  assert.equal(floats.object, "list");
  assert.equal(floats.data[0].object, "embedding");
  assert.equal(floats.data[0].index, 0);
  assertClose(byDefault.data[0].embedding, floats.data[0].embedding, 1e-6);
  assert.ok(floats.data[0].embedding.some((value) => value !== 0));
  assert.ok(floats.usage.prompt_tokens > 0);
  assert.equal(floats.usage.total_tokens, floats.usage.prompt_tokens);
});

test("base64 embeddings are little-endian floats", { skip: withoutEmbeddings }, async () => {
  const packed = await client.embeddings.create({ model: embeddingsModel, input: "The cat purrs.", encoding_format: "base64" });
  const text = packed.data[0].embedding;
  assert.equal(typeof text, "string");
  const bytes = Buffer.from(text, "base64");
  const decoded = Array.from({ length: bytes.length / 4 }, (_, place) => bytes.readFloatLE(place * 4));
  const floats = await client.embeddings.create({ model: embeddingsModel, input: "The cat purrs.", encoding_format: "float" });
  assertClose(decoded, floats.data[0].embedding, 1e-6);
});

test("a batch of embeddings keeps its order", { skip: withoutEmbeddings }, async () => {
  const input = ["The cat purrs.", "A gateway takes a request.", "The cat purrs."];
  const batch = await client.embeddings.create({ model: embeddingsModel, input });
  assert.deepEqual(batch.data.map((item) => item.index), [0, 1, 2]);
  const [first, second, third] = batch.data.map((item) => item.embedding);
  assertClose(first, third, 1e-4);
  assert.ok(first.some((value, place) => Math.abs(value - second[place]) > 1e-3));
  const alone = await client.embeddings.create({ model: embeddingsModel, input: input[1] });
  assertClose(second, alone.data[0].embedding, 1e-4);
});

// Errors

test("a value of the wrong type is a bad request that names the field", async () => {
  await assert.rejects(client.chat.completions.create({ model, messages: question, temperature: "hot" }), (failure) => {
    assert.ok(failure instanceof OpenAI.BadRequestError, String(failure));
    assert.equal(failure.param, "temperature");
    assert.equal(failure.type, "invalid_request_error");
    assert.equal(failure.code, "invalid_parameter");
    return true;
  });
});

test("a request without messages is a bad request that names them", async () => {
  await assert.rejects(client.chat.completions.create({ model }), (failure) => {
    assert.ok(failure instanceof OpenAI.BadRequestError, String(failure));
    assert.equal(failure.param, "messages");
    return true;
  });
});

test("an unknown key is an authentication error", async () => {
  await assert.rejects(stranger.chat.completions.create({ model, messages: question }), (failure) => {
    assert.ok(failure instanceof OpenAI.AuthenticationError, String(failure));
    assert.equal(failure.code, "invalid_api_key");
    return true;
  });
});

for (const stream of [false, true]) {
  test(`a key without credits gets 402${stream ? " before a stream begins" : ""}`, async () => {
    await assert.rejects(poor.chat.completions.create({ model, messages: question, stream }), (failure) => {
      assert.ok(failure instanceof OpenAI.APIError, String(failure));
      assert.equal(failure.status, 402);
      assert.equal(failure.code, "insufficient_credits");
      return true;
    });
  });
}

test("chat with an unknown model is not found", async () => {
  await assert.rejects(client.chat.completions.create({ model: "no-such-model", messages: question }), (failure) => {
    assert.ok(failure instanceof OpenAI.NotFoundError, String(failure));
    assert.equal(failure.code, "model_not_found");
    return true;
  });
});
