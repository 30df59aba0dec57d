// Tools, shapes, choices, probabilities and aborts with the official OpenAI client for Node. See ../README.md.

import assert from "node:assert/strict";
import http from "node:http";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.CXMPUTE_BASE_URL, apiKey: process.env.CXMPUTE_API_KEY, maxRetries: 0, timeout: 60_000 });
const model = process.env.CXMPUTE_CHAT_MODEL;
const story = [{ role: "user", content: "Tell me a story." }];
const question = [{ role: "user", content: "What is the capital of France?" }];
const weather = [{ role: "user", content: "What is the weather in Oslo?" }];
const anna = [{ role: "user", content: "Write a JSON object with name Anna and age 7." }];
const Person = z.object({ name: z.string(), age: z.number().int() });
const getWeather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
  },
};

test("the model calls a tool and goes on after its answer", async () => {
  const first = await client.chat.completions.create({ model, messages: weather, tools: [getWeather], temperature: 0 });
  const [choice] = first.choices;
  assert.equal(choice.finish_reason, "tool_calls");
  const [call] = choice.message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
  const messages = [...weather, choice.message, { role: "tool", tool_call_id: call.id, content: "18 degrees and sunny" }];
  const second = await client.chat.completions.create({ model, messages, tools: [getWeather], temperature: 0 });
  assert.match(second.choices[0].message.content, /18 degrees and sunny/);
});

test("the client's runner calls the function and returns the last answer", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    messages: weather,
    temperature: 0,
    tools: [
      {
        type: "function",
        function: {
          ...getWeather.function,
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return "18 degrees and sunny";
          },
        },
      },
    ],
  });
  assert.match(await runner.finalContent(), /18 degrees and sunny/);
  assert.deepEqual(asked, ["Oslo"]);
});

test("a streamed call is assembled by the client", async () => {
  const stream = client.chat.completions.stream({ model, messages: weather, tools: [getWeather], temperature: 0 });
  const completion = await stream.finalChatCompletion();
  const [call] = completion.choices[0].message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
  assert.equal(completion.choices[0].finish_reason, "tool_calls");
});

test("a required call comes whatever the question", async () => {
  const answer = await client.chat.completions.create({
    model, messages: question, tools: [getWeather], tool_choice: "required", temperature: 0, max_tokens: 300,
  });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
});

for (const temperature of [0, 2]) {
  test(`a zod schema shapes the answer at temperature ${temperature}`, async () => {
    const answer = await client.chat.completions.parse({
      model, messages: anna, response_format: zodResponseFormat(Person, "person"), temperature, seed: 9, max_tokens: 400,
    });
    const { parsed } = answer.choices[0].message;
    if (temperature === 0) assert.deepEqual(parsed, { name: "Anna", age: 7 });
    else assert.equal(typeof parsed.name, "string");
  });
}

test("n choices, their seeds and their probabilities", async () => {
  const wanted = { model, messages: story, n: 2, seed: 4, temperature: 1.3, max_tokens: 12, logprobs: true, top_logprobs: 2 };
  const [first, again] = [await client.chat.completions.create(wanted), await client.chat.completions.create(wanted)];
  assert.deepEqual(first.choices.map((choice) => choice.index), [0, 1]);
  assert.deepEqual(first.choices.map((choice) => choice.message.content), again.choices.map((choice) => choice.message.content));
  for (const choice of first.choices) {
    assert.equal(choice.logprobs.content.map((token) => token.token).join(""), choice.message.content);
    assert.ok(choice.logprobs.content.every((token) => token.top_logprobs.length === 2 && token.logprob <= 0));
  }
});

test("a long input exceeds the context", async () => {
  const messages = [{ role: "user", content: "word ".repeat(20_000) }];
  await assert.rejects(client.chat.completions.create({ model, messages }), (failure) => {
    assert.ok(failure instanceof OpenAI.BadRequestError, String(failure));
    assert.equal(failure.code, "context_length_exceeded");
    return true;
  });
});

test("an aborted answer ends at once and the next one works", async () => {
  const abort = new AbortController();
  const stream = await client.chat.completions.create({ model, messages: story, stream: true }, { signal: abort.signal });
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) abort.abort();
  assert.ok(seen < 150, `${seen} chunks came after the abort`);
  const answer = await client.chat.completions.create({ model, messages: question, temperature: 0 });
  assert.match(answer.choices[0].message.content, /Paris/);
});

// Holds the only slot of a key for certain, by a request whose body does not end before it is told to; gives how to tell it. A
// stream would not do: a fast model has written all of it, and the buffers on the way have swallowed it, before it is read.
async function holdSlot(apiKey) {
  const headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/json", expect: "100-continue", connection: "close" };
  const request = http.request(`${process.env.CXMPUTE_BASE_URL}/chat/completions`, { method: "POST", headers });
  const answered = new Promise((resolve, reject) => request.on("response", resolve).on("error", reject));
  // The slot is taken before the body is read, and this is the gateway's word that it reads.
  const begun = new Promise((resolve) => request.on("continue", resolve));
  assert.equal(await Promise.race([begun, answered.then((early) => early.statusCode)]), undefined);
  // A body may be slow, but not slower than 1 KiB/s; space before JSON means nothing.
  const feeder = setInterval(() => request.write(" ".repeat(2048)), 1000);
  return async () => {
    clearInterval(feeder);
    request.end(JSON.stringify({ model, messages: question, max_tokens: 1 }));
    const answer = await answered;
    for await (const _ of answer);
    return answer.statusCode;
  };
}

test("429 is retried after the time it names", async () => {
  const apiKey = process.env.CXMPUTE_SINGLE_KEY;
  assert.ok(apiKey, "CXMPUTE_SINGLE_KEY is not set");
  const release = await holdSlot(apiKey);
  const seen = [];
  const patient = new OpenAI({
    baseURL: process.env.CXMPUTE_BASE_URL,
    apiKey,
    maxRetries: 5,
    fetch: async (url, init) => {
      const response = await fetch(url, init);
      seen.push({ status: response.status, at: performance.now(), wait: Number(response.headers.get("retry-after")) });
      if (response.status === 429) assert.equal(await release(), 200);
      return response;
    },
  });
  const answer = await patient.chat.completions.create({ model, messages: question, max_tokens: 1 });
  assert.equal(answer.choices.length, 1);
  assert.deepEqual(seen.map(({ status }) => status), [429, 200]);
  assert.ok(seen[1].at - seen[0].at >= seen[0].wait * 1000);
});
