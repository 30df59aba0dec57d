"""Sampling parameters, several choices, probabilities, long inputs, images, and what is refused."""

import asyncio
import base64
import math

import openai
import pytest
from conftest import setting

STORY = [{"role": "user", "content": "Tell me a story."}]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def texts(answer):
    return [choice.message.content for choice in answer.choices]


def collected(stream, choices=1):
    """Texts, ends and the last usage of a stream."""
    said, ends, usage = [""] * choices, [None] * choices, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    return said, ends, usage


# Choices and seeds


def test_n_gives_that_many_choices_and_one_bill(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=STORY, n=3, seed=1, temperature=2, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts(answer))) > 1, "three draws at this temperature are not all equal"
    assert 3 <= answer.usage.completion_tokens <= 60
    single = client.chat.completions.create(model=chat_model, messages=STORY, max_tokens=1)
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens, "the prompt is read and paid once"


def test_n_streams_all_choices(client, chat_model):
    wanted = {"model": chat_model, "messages": STORY, "n": 2, "seed": 7, "temperature": 1.2, "max_tokens": 24}
    single = client.chat.completions.create(**wanted)
    with client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}) as stream:
        said, ends, usage = collected(stream, 2)
    assert said == texts(single)
    assert all(ends)
    assert usage.completion_tokens == single.usage.completion_tokens


def test_the_same_seed_gives_the_same_answer(client, chat_model):
    wanted = {"model": chat_model, "messages": STORY, "temperature": 1.4, "max_tokens": 40}
    first, again = (texts(client.chat.completions.create(**wanted, seed=11)) for _ in range(2))
    assert first == again
    others = {texts(client.chat.completions.create(**wanted, seed=seed))[0] for seed in range(12, 18)}
    assert others != set(first)


# Probabilities


def test_logprobs_belong_to_the_tokens_of_the_text(client, chat_model):
    answer = client.chat.completions.create(
        model=chat_model, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert [top.logprob for top in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob), "the likeliest token is taken at 0"
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_streamed_logprobs_are_the_same(client, chat_model):
    wanted = {"model": chat_model, "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    single = client.chat.completions.create(**wanted).choices[0].logprobs.content
    with client.chat.completions.create(**wanted, stream=True) as stream:
        streamed = [token for chunk in stream for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content]
    assert [(t.token, round(t.logprob, 4)) for t in streamed] == [(t.token, round(t.logprob, 4)) for t in single]


def test_no_logprobs_unless_asked_for(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    assert answer.choices[0].logprobs is None


def test_completion_logprobs_have_four_lists_of_one_length(client, chat_model):
    answer = client.completions.create(model=chat_model, prompt="Once there was a small", max_tokens=8, temperature=0, logprobs=2)
    (choice,) = answer.choices
    said = choice.logprobs
    assert "".join(said.tokens) == choice.text
    assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == len(said.text_offset)
    assert said.text_offset == sorted(said.text_offset)


# Biases and penalties


def test_a_bias_of_minus_100_bans_a_token(client, chat_model):
    wanted = {"model": chat_model, "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    plain = texts(client.chat.completions.create(**wanted))[0]
    everything = {str(token): -100 for token in range(300, 700)}
    biased = texts(client.chat.completions.create(**wanted, logit_bias=everything))[0]
    assert biased != plain


def test_penalties_change_what_is_repeated(client, chat_model):
    count = [{"role": "user", "content": "Count to 30."}]
    wanted = {"model": chat_model, "messages": count, "temperature": 0, "max_tokens": 80}
    plain = texts(client.chat.completions.create(**wanted))[0]
    assert texts(client.chat.completions.create(**wanted, frequency_penalty=2, presence_penalty=2))[0] != plain
    assert texts(client.chat.completions.create(**wanted, extra_body={"repetition_penalty": 0.3}))[0] != plain


def test_min_p_and_top_k_keep_to_the_likely(client, chat_model):
    wanted = {"model": chat_model, "messages": QUESTION, "max_tokens": 20}
    greedy = texts(client.chat.completions.create(**wanted, temperature=0))
    assert texts(client.chat.completions.create(**wanted, temperature=2, seed=1, extra_body={"min_p": 1})) == greedy
    assert texts(client.chat.completions.create(**wanted, temperature=2, seed=1, extra_body={"top_k": 1})) == greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 9), ("n", 10**9), ("temperature", -0.1), ("temperature", 2.1), ("top_p", 0), ("top_p", 1.1),
        ("frequency_penalty", 2.1), ("presence_penalty", -2.1), ("max_tokens", 0), ("max_tokens", -1),
        ("max_tokens", 2**63), ("max_tokens", "100"), ("stop", ["a", "b", "c", "d", "e"]), ("stop", "x" * 300),
        ("top_logprobs", 21), ("top_logprobs", 3), ("logit_bias", {"1": 101}), ("logit_bias", {"word": 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}), ("seed", 2**64), ("metadata", {str(i): "x" for i in range(17)}),
        ("tool_choice", "required"), ("response_format", {"type": "xml"}),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_field(client, chat_model, field, value):
    with pytest.raises(openai.BadRequestError) as failure:
        client.post("/chat/completions", cast_to=object, body={"model": chat_model, "messages": QUESTION, field: value})
    assert failure.value.param.split(".")[0].split("[")[0] == field
    assert failure.value.code in ("invalid_parameter", "unsupported_parameter")


def test_unknown_fields_are_named_in_a_header_and_refused_when_strict(client, chat_model):
    body = {"model": chat_model, "messages": QUESTION, "max_tokens": 2, "guided_regex": "a*", "prompt_embeds": [1]}
    raw = client.chat.completions.with_raw_response.create(
        model=chat_model, messages=QUESTION, max_tokens=2, extra_body={"guided_regex": "a*", "prompt_embeds": [1]}
    )
    assert raw.headers["x-cxmpute-ignored"].split(",") == ["guided_regex", "prompt_embeds"]
    with pytest.raises(openai.BadRequestError) as failure:
        client.post("/chat/completions", cast_to=object, body=body, options={"headers": {"x-cxmpute-strict": "1"}})
    assert failure.value.code == "unsupported_parameter"


# Long inputs and images


def test_a_long_input_exceeds_the_context(client, chat_model):
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model=chat_model, messages=[{"role": "user", "content": "word " * 20_000}])
    assert failure.value.code == "context_length_exceeded"
    assert failure.value.param == "messages"


def test_a_long_conversation_that_fits_is_answered(client, chat_model):
    turn = [QUESTION[0], {"role": "assistant", "content": "The capital of France is Paris."}]
    answer = client.chat.completions.create(model=chat_model, messages=turn * 12 + QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_a_second_turn_reads_the_first_from_the_cache(client, chat_model):
    first = client.chat.completions.create(model=chat_model, messages=STORY, temperature=0)
    messages = [*STORY, {"role": "assistant", "content": first.choices[0].message.content}, *QUESTION]
    second = client.chat.completions.create(model=chat_model, messages=messages, temperature=0)
    assert 0 <= second.usage.prompt_tokens_details.cached_tokens <= second.usage.prompt_tokens
    again = client.chat.completions.create(model=chat_model, messages=messages, temperature=0)
    assert texts(again) == texts(second), "what is read from the cache changes nothing"


def test_an_image_needs_a_model_that_sees(client, chat_model):
    pixel = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}}]
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model=chat_model, messages=[{"role": "user", "content": parts}])
    assert failure.value.code == "unsupported_parameter"
    assert failure.value.param.startswith("messages")


def test_text_parts_are_read_as_text(client, chat_model):
    parts = [{"type": "text", "text": QUESTION[0]["content"]}]
    answer = client.chat.completions.create(model=chat_model, messages=[{"role": "user", "content": parts}], temperature=0)
    assert "Paris" in answer.choices[0].message.content


# Models


def test_a_fallback_model_answers_when_the_first_cannot(client, chat_model):
    answer = client.chat.completions.create(
        model=chat_model, messages=QUESTION, temperature=0, extra_body={"models": [chat_model]}
    )
    assert "Paris" in answer.choices[0].message.content


@pytest.mark.parametrize("suffix", [":floor", ":nitro"])
def test_a_suffix_chooses_the_order_of_nodes(client, chat_model, suffix):
    answer = client.chat.completions.create(model=chat_model + suffix, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_an_impossible_wish_names_the_filter(client, chat_model):
    with pytest.raises(openai.InternalServerError) as failure:
        client.chat.completions.create(
            model=chat_model, messages=QUESTION, extra_body={"provider": {"only": ["nobody-has-this-name"]}}
        )
    assert failure.value.status_code == 503
    assert failure.value.code == "no_provider"
    assert failure.value.body["filter"] == "only"


# Aborts, in parallel


def test_the_asynchronous_client_aborts_and_goes_on(chat_model):
    async def run():
        async with openai.AsyncOpenAI(base_url=setting("CXMPUTE_BASE_URL"), api_key=setting("CXMPUTE_API_KEY"), max_retries=4) as client:

            async def leave_early():
                stream = await client.chat.completions.create(model=chat_model, messages=STORY, stream=True)
                async for _ in stream:
                    break
                await stream.close()

            async def give_up():
                with pytest.raises((asyncio.TimeoutError, openai.APITimeoutError)):
                    await asyncio.wait_for(
                        client.chat.completions.create(model=chat_model, messages=STORY, max_tokens=200), timeout=0.001
                    )

            await asyncio.gather(*(leave_early() for _ in range(6)), *(give_up() for _ in range(6)))
            answer = await client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
            assert "Paris" in answer.choices[0].message.content

    asyncio.run(run())
