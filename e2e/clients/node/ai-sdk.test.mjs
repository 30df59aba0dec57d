// The Vercel AI SDK, unmodified, with its provider for OpenAI-compatible services and with its OpenAI provider.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const settings = { baseURL: process.env.CXMPUTE_BASE_URL, apiKey: process.env.CXMPUTE_API_KEY };
const chatModel = process.env.CXMPUTE_CHAT_MODEL;
const embeddingsModel = process.env.CXMPUTE_EMBEDDINGS_MODEL;
const withoutEmbeddings = embeddingsModel ? false : "CXMPUTE_EMBEDDINGS_MODEL is empty: no embeddings model is served here";
const compatible = createOpenAICompatible({ name: "cxmpute", ...settings, includeUsage: true, supportsStructuredOutputs: true });
const providers = { "OpenAI-compatible": compatible.chatModel(chatModel), OpenAI: createOpenAI(settings).chat(chatModel) };
const common = { temperature: 0, maxRetries: 0 };

for (const [name, model] of Object.entries(providers)) {
  test(`${name}: a text with usage`, async () => {
    const { text, finishReason, usage } = await generateText({ ...common, model, prompt: "What is the capital of France?" });
    assert.match(text, /Paris/);
    assert.equal(finishReason, "stop");
    assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
  });

  test(`${name}: a streamed text with usage at its end`, async () => {
    const result = streamText({ ...common, model, prompt: "Tell me a story." });
    const parts = [];
    for await (const part of result.textStream) parts.push(part);
    assert.ok(parts.length > 20);
    assert.equal(await result.finishReason, "stop");
    assert.ok((await result.usage).outputTokens > 20);
  });

  test(`${name}: a tool is called and its result used`, async () => {
    const cities = [];
    const { text, steps } = await generateText({
      ...common,
      model,
      prompt: "What is the weather in Oslo?",
      stopWhen: stepCountIs(3),
      tools: {
        get_weather: tool({
          description: "The weather in a city.",
          inputSchema: z.object({ city: z.string() }),
          execute: async ({ city }) => {
            cities.push(city);
            return "18 degrees and sunny";
          },
        }),
      },
    });
    assert.deepEqual(cities, ["Oslo"]);
    assert.equal(steps.length, 2);
    assert.match(text, /18 degrees/);
  });

  test(`${name}: a streamed tool call`, async () => {
    const result = streamText({
      ...common,
      model,
      prompt: "What is the weather in Oslo?",
      tools: { get_weather: tool({ description: "The weather in a city.", inputSchema: z.object({ city: z.string() }) }) },
    });
    const calls = await result.toolCalls;
    assert.deepEqual(calls.map((call) => [call.toolName, call.input]), [["get_weather", { city: "Oslo" }]]);
    assert.equal(await result.finishReason, "tool-calls");
  });

  test(`${name}: an object by schema, whole and streamed`, async () => {
    const wanted = {
      ...common,
      model,
      prompt: "Write a JSON object with name Anna and age 7.",
      output: Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) }),
    };
    assert.deepEqual((await generateText(wanted)).output, { name: "Anna", age: 7 });
    const streamed = streamText(wanted);
    let last;
    for await (const partial of streamed.partialOutputStream) last = partial;
    assert.deepEqual(last, { name: "Anna", age: 7 });
  });

  test(`${name}: an abort ends the stream`, async () => {
    const abort = new AbortController();
    const result = streamText({ ...common, model, prompt: "Tell me a story.", abortSignal: abort.signal });
    let seen = 0;
    for await (const _ of result.textStream) if (++seen === 3) abort.abort();
    assert.ok(seen < 150);
  });

  test(`${name}: an error is the SDK's own error with status and code`, async () => {
    const wrong = name === "OpenAI" ? createOpenAI(settings).chat("no-such-model") : compatible.chatModel("no-such-model");
    await assert.rejects(generateText({ ...common, model: wrong, prompt: "Hello" }), (failure) => {
      assert.equal(failure.statusCode, 404);
      assert.equal(JSON.parse(failure.responseBody).error.code, "model_not_found");
      return true;
    });
  });
}

test("embeddings, one and many", { skip: withoutEmbeddings }, async () => {
  const model = compatible.textEmbeddingModel ? compatible.textEmbeddingModel(embeddingsModel) : compatible.embeddingModel(embeddingsModel);
  const one = await embed({ model, value: "The cat purrs.", maxRetries: 0 });
  const many = await embedMany({ model, values: ["The cat purrs.", "A gateway takes a request."], maxRetries: 0 });
  assert.equal(many.embeddings.length, 2);
  assert.equal(one.embedding.length, many.embeddings[0].length);
  assert.ok(one.usage.tokens > 0);
});
