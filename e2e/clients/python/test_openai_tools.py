"""Tools, parallel tools and shapes of the output, through the official client and its own helpers."""

import json

import openai
import pytest
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Oslo?"}]
# The token that ends an answer of the tiny model. It likes to end after one call, so parallel calls need a bias.
END = "5"
HELLO = [{"role": "user", "content": "Hello"}]
ANNA = [{"role": "user", "content": "Write a JSON object with name Anna and age 7."}]


class Person(BaseModel):
    name: str
    age: int


def named(name):
    return {"type": "function", "function": {"name": name}}


def check_call(call, tools):
    assert call.type == "function"
    assert call.id
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    arguments = json.loads(call.function.arguments)
    schema = declared[call.function.name]
    assert set(arguments) == set(schema["required"])
    kinds = {"string": str, "integer": int}
    for name, value in arguments.items():
        assert isinstance(value, kinds[schema["properties"][name]["type"]])
    return arguments


# Tools


def test_the_model_calls_a_tool_when_the_question_needs_it(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=ASK_WEATHER, tools=[WEATHER], temperature=0)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert check_call(call, [WEATHER]) == {"city": "Oslo"}


def test_a_conversation_goes_on_after_the_tool_has_answered(client, chat_model):
    first = client.chat.completions.create(model=chat_model, messages=ASK_WEATHER, tools=[WEATHER], temperature=0)
    call = first.choices[0].message.tool_calls[0]
    messages = [
        *ASK_WEATHER,
        first.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"},
    ]
    second = client.chat.completions.create(model=chat_model, messages=messages, tools=[WEATHER], temperature=0)
    assert second.choices[0].finish_reason == "stop"
    assert "18 degrees and sunny" in second.choices[0].message.content


def test_a_question_that_needs_no_tool_gets_text(client, chat_model):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=chat_model, messages=question, tools=[WEATHER], temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None
    assert "Paris" in answer.choices[0].message.content


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_required_forces_a_call_whatever_the_question(client, chat_model, temperature):
    answer = client.chat.completions.create(
        model=chat_model, messages=HELLO, tools=[WEATHER, ADD], tool_choice="required", temperature=temperature, seed=3, max_tokens=300
    )
    (choice,) = answer.choices
    assert choice.finish_reason in ("tool_calls", "length")
    if choice.finish_reason == "tool_calls":
        assert choice.message.tool_calls
        for call in choice.message.tool_calls:
            check_call(call, [WEATHER, ADD])


@pytest.mark.parametrize("tool", [WEATHER, ADD], ids=["get_weather", "add"])
def test_a_named_tool_is_called(client, chat_model, tool):
    name = tool["function"]["name"]
    answer = client.chat.completions.create(
        model=chat_model, messages=HELLO, tools=[WEATHER, ADD], tool_choice=named(name), temperature=0, max_tokens=300
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop", "OpenAI ends a forced call with stop"
    (call,) = choice.message.tool_calls
    assert call.function.name == name
    check_call(call, [tool])


def test_none_forbids_calls(client, chat_model):
    answer = client.chat.completions.create(
        model=chat_model, messages=ASK_WEATHER, tools=[WEATHER], tool_choice="none", temperature=0
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_a_streamed_call_comes_in_parts_that_add_up(client, chat_model):
    wanted = {"model": chat_model, "messages": ASK_WEATHER, "tools": [WEATHER], "temperature": 0}
    single = client.chat.completions.create(**wanted).choices[0].message.tool_calls[0].function
    with client.chat.completions.create(**wanted, stream=True) as stream:
        chunks = list(stream)
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert {part.index for part in parts} == {0}
    assert parts[0].id and parts[0].type == "function"
    assert not any(part.id or part.function.name for part in parts[1:])
    assert parts[0].function.name == single.name
    assert "".join(part.function.arguments or "" for part in parts) == single.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_parallel_calls_come_in_one_answer_and_can_be_forbidden(client, chat_model):
    question = [{"role": "user", "content": "What is the weather in Oslo?"}]
    wanted = {
        "model": chat_model, "messages": question, "tools": [WEATHER, ADD], "tool_choice": "required",
        "temperature": 1, "max_tokens": 200, "logit_bias": {END: -20},
    }  # fmt: skip
    most = 0
    for seed in range(24):
        answer = client.chat.completions.create(**wanted, seed=seed)
        calls = answer.choices[0].message.tool_calls or []
        if answer.choices[0].finish_reason == "tool_calls":
            for call in calls:
                check_call(call, [WEATHER, ADD])
            assert len({call.id for call in calls}) == len(calls)
            most = max(most, len(calls))
        one = client.chat.completions.create(**wanted, seed=seed, parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or []) <= 1
        if most > 1:
            break
    assert most > 1, "no answer held two calls"


def test_the_clients_stream_helper_assembles_a_call(client, chat_model):
    with client.chat.completions.stream(model=chat_model, messages=ASK_WEATHER, tools=[WEATHER], temperature=0) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    (call,) = completion.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_an_empty_list_of_tools_asks_for_nothing(client, chat_model):
    """OpenAI refuses it; clients written for other servers send it, and there is nothing to get wrong."""
    plain = {"model": chat_model, "messages": HELLO, "temperature": 0, "max_tokens": 20}
    without = client.chat.completions.create(**plain).choices[0]
    answer = client.chat.completions.create(**plain, tools=[]).choices[0]
    assert (answer.message.content, answer.message.tool_calls) == (without.message.content, None)
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(**plain, tools=[], tool_choice="required")
    assert failure.value.param == "tool_choice"


def test_the_old_functions_work_as_tools_do(client, chat_model):
    answer = client.chat.completions.create(
        model=chat_model, messages=ASK_WEATHER, functions=[WEATHER["function"]], function_call="auto", temperature=0
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "get_weather"
    assert json.loads(choice.message.function_call.arguments) == {"city": "Oslo"}
    assert choice.message.tool_calls is None


def test_a_choice_that_names_no_declared_tool_is_refused(client, chat_model):
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model=chat_model, messages=HELLO, tools=[WEATHER], tool_choice=named("fly"))
    assert failure.value.param.startswith("tool_choice")


# Shapes


@pytest.mark.parametrize("temperature", [0, 2])
def test_a_strict_schema_shapes_the_answer(client, chat_model, temperature):
    answer = client.chat.completions.parse(
        model=chat_model, messages=ANNA, response_format=Person, temperature=temperature, seed=5, max_tokens=400
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Person)
    if temperature == 0:
        assert (message.parsed.name, message.parsed.age) == ("Anna", 7)


def test_a_streamed_schema_is_valid_at_the_end(client, chat_model):
    with client.chat.completions.stream(model=chat_model, messages=ANNA, response_format=Person, temperature=0) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert "content.delta" in kinds
    assert completion.choices[0].message.parsed == Person(name="Anna", age=7)


def test_a_schema_holds_against_every_question(client, chat_model):
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "legs": {"type": "integer", "minimum": 2, "maximum": 4},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
        },
        "required": ["kind", "legs", "names"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    for seed in range(4):
        answer = client.chat.completions.create(
            model=chat_model, messages=HELLO, response_format=shape, temperature=1.8, seed=seed, max_tokens=400
        )
        value = json.loads(answer.choices[0].message.content)
        assert value["kind"] in ("cat", "dog")
        assert 2 <= value["legs"] <= 4
        assert 1 <= len(value["names"]) <= 3 and all(len(name) <= 12 for name in value["names"])
        assert set(value) == {"kind", "legs", "names"}


def test_json_mode_gives_an_object(client, chat_model):
    answer = client.chat.completions.create(
        model=chat_model, messages=ANNA, response_format={"type": "json_object"}, temperature=0
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_a_broken_schema_is_refused_with_its_field(client, chat_model):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "elephant"}, "strict": True}}
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model=chat_model, messages=HELLO, response_format=shape)
    assert failure.value.param.startswith("response_format")


def test_strict_tools_parse_into_the_clients_types(client, chat_model):
    class GetWeather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description="The weather in a city.")
    answer = client.chat.completions.parse(
        model=chat_model, messages=ASK_WEATHER, tools=[tool], tool_choice="required", temperature=0, max_tokens=300
    )
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Oslo")
