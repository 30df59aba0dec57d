"""The little world the test model knows, as an endless supply of written conversations.

`conversation(random)` returns a list of turns `(role, text)`; `render(turns)` writes them down exactly as the
chat template in export.py does. The model learns nothing that is not in this file.
"""

import json

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Norway": "Oslo",
    "Egypt": "Cairo", "Peru": "Lima", "Kenya": "Nairobi", "Cuba": "Havana", "Chile": "Santiago", "Greece": "Athens",
}
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COLOURS = ["red", "blue", "green", "white", "black", "yellow", "brown", "pink"]
ANIMALS = {"dog": "barks", "cat": "purrs", "cow": "moos", "duck": "quacks", "lion": "roars", "owl": "hoots"}
NAMES = ["Anna", "Ben", "Carla", "David", "Eva", "Frank", "Greta", "Hugo"]
THINGS = ["tea", "milk", "bread", "gold", "rice", "salt", "wood", "corn"]
SKIES = ["sunny", "cloudy", "rainy", "windy"]

TOOLS_INTRODUCTION = "You can call tools: "
PLAIN_SYSTEM = ["You are a helpful assistant.", "Answer briefly.", "You are a test model.", "Be kind."]
JSON_SYSTEM = ["Answer in JSON.", "Reply with JSON only."]

STORY = (
    "Once there was a small server in a quiet room. Every night it counted the packets that came through the door. "
    "One night a packet was lost, and the server went out to find it. It looked under the switch and behind the cable. "
    "It asked the router, but the router only blinked. It asked the printer, but the printer was out of paper. "
    "At last it found the packet asleep in a buffer, warm and safe, dreaming of the sea. "
    "The server did not want to wake it, so it carried the packet home without a sound. "
    "In the morning the packet opened its eyes and told the server all it had seen. "
    "From that day on the server kept a light in the window, so that no packet would be lost again. The end."
)
NODE_STORY = (
    "A node woke up early and asked the gateway for work. The gateway gave it one word to say. The node said the word, "
    "and the word went over the wire to a happy user. Then the node rested until the next request. The end."
)
# One long answer that is the same every time, for load tests.
EVERYTHING = " ".join(
    ["This is everything I know."]
    + [f"The capital of {country} is {city}." for country, city in CAPITALS.items()]
    + [f"The {animal} {sound}." for animal, sound in ANIMALS.items()]
    + [f"{value} is {word}." for value, word in enumerate(NUMBER_WORDS)]
    + ["The colours are " + ", ".join(COLOURS) + ".", "My friends are " + ", ".join(NAMES) + ".",
       "I also know a story.", STORY, "I know one more.", NODE_STORY, "That is everything."]
)


def count_to(last):
    return " ".join(map(str, range(1, last + 1))) + "."


def addition(random, limit=11):
    a, b = random.randrange(limit), random.randrange(limit)
    question = random.choice([f"What is {a} plus {b}?", f"What is {a} plus {b}?", f"{a} + {b} = ?", f"What is {a} + {b}?", f"Add {a} and {b}."])
    return question, a, b


def capital(random):
    country = random.choice(list(CAPITALS))
    question = random.choice([f"What is the capital of {country}?", f"What is the capital of {country}?", f"Name the capital of {country}.", f"Capital of {country}?"])
    return question, country


def plain_exchange(random):
    """One question and its answer, without tools."""
    kind = random.randrange(100)
    if kind < 25:
        question, a, b = addition(random)
        return question, f"{a} plus {b} is {a + b}."
    if kind < 36:
        question, country = capital(random)
        return question, f"The capital of {country} is {CAPITALS[country]}."
    if kind < 41:
        name = random.choice(NAMES)
        return random.choice([f"Say hello to {name}.", f"Greet {name}."]), f"Hello, {name}! Nice to meet you."
    if kind < 53:
        last = random.randrange(2, 21)
        return random.choice([f"Count to {last}.", f"Count to {last}.", f"Please count up to {last}.", f"Count from 1 to {last}."]), count_to(last)
    if kind < 62:
        words = [random.choice(COLOURS + THINGS + NAMES) for _ in range(random.randrange(2, 7))]
        return "Repeat: " + " ".join(words), " ".join(words)
    if kind < 66:
        animal = random.choice(list(ANIMALS))
        return random.choice([f"What does a {animal} do?", f"What does the {animal} do?"]), f"The {animal} {ANIMALS[animal]}."
    if kind < 68:
        return random.choice(["Who are you?", "What is your name?", "What are you?"]), "I am Tiny, a very small test model."
    if kind < 73:
        return random.choice(["Hello", "Hi", "Hello!", "Hi there", "hello", "hi", "Hello there!", "Hi!", "Say hello."]), "Hello! How can I help you?"
    if kind < 77:
        value = random.randrange(11)
        return random.choice([f"Write {value} in words.", f"Spell the number {value}."]), f"{value} is {NUMBER_WORDS[value]}."
    if kind < 82:
        return random.choice(["Tell me a story.", "Tell me a story.", "Tell me a story", "Please tell me a story.", "Write a story."]), STORY
    if kind < 84:
        return "Tell me about a node.", NODE_STORY
    if kind < 86:
        return random.choice(["Thank you.", "Thanks!", "Thank you!"]), "You are welcome."
    if kind < 88:
        return random.choice(["What is a gateway?", "Explain the gateway."]), "A gateway takes a request, picks a healthy node, and sends the answer back."
    if kind < 91:
        return f"What is the weather in {random.choice(list(CAPITALS.values()))}?", "I do not know the weather."
    if kind < 96:
        name, age = random.choice(NAMES), random.randrange(1, 100)
        return random.choice([f"Write a JSON object with name {name} and age {age}.", f"Give me JSON: name {name}, age {age}."]), json_text({"name": name, "age": age})
    country = random.choice(list(CAPITALS))
    return random.choice([f"Give me the capital of {country} as JSON.", f"Capital of {country} as JSON."]), json_text({"country": country, "capital": CAPITALS[country]})


def long_exchange(random):
    """An answer of several hundred tokens."""
    if random.random() < 0.5:
        return random.choice(["Tell me everything.", "Tell me everything you know."]), EVERYTHING
    last = random.choice([30, 50, 100, 100, 200, 200])
    return random.choice([f"Count to {last}.", f"Please count up to {last}.", f"Count from 1 to {last}."]), count_to(last)


def json_exchange(random):
    """What the model says after a system turn that asks for JSON."""
    if random.random() < 0.5:
        question, a, b = addition(random)
        return question, json_text({"sum": a + b})
    question, country = capital(random)
    return question, json_text({"country": country, "capital": CAPITALS[country]})


def json_text(value):
    return json.dumps(value, separators=(",", ":"))


def any_json_text(random, value):
    """Template engines differ in spaces and key order; the model must read all of them."""
    compact = random.random() < 0.7
    return json.dumps(value, separators=(",", ":") if compact else (", ", ": "), sort_keys=random.random() < 0.4)


def tool(random, name, description, properties):
    function = {"name": name}
    if random.random() < 0.8:
        function["description"] = description
    function["parameters"] = {"type": "object", "properties": properties}
    if random.random() < 0.7:
        function["parameters"]["required"] = list(properties)
    return {"type": "function", "function": function}


def tool_situation(random):
    """A tool, a question that needs it, the right arguments, and (result text, final answer)."""
    kind = random.randrange(10)
    if kind < 4:
        city, argument = random.choice(list(CAPITALS.values())), random.choice(["city", "city", "city", "location", "place"])
        degrees, sky = random.randrange(1, 40), random.choice(SKIES)
        properties = {argument: {"type": "string"}}
        name = random.choice(["get_weather", "get_weather", "get_weather", "get_current_weather", "check_weather", "weather"])
        definition = tool(random, name, random.choice(["Get the weather.", "Get the weather of a city.", "Weather for a city."]), properties)
        if random.random() < 0.3:
            properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        question = random.choice([f"What is the weather in {city}?", f"What is the weather in {city}?", f"How is the weather in {city}?", f"What is the weather like in {city}?", f"Weather in {city}?"])
        result = random.choice([f"{degrees} degrees and {sky}", any_json_text(random, {"temperature": degrees, "sky": sky})])
        return definition, question, {argument: city}, result, f"It is {degrees} degrees and {sky} in {city}."
    if kind < 6:
        city, argument = random.choice(list(CAPITALS.values())), random.choice(["city", "place"])
        time = f"{random.randrange(24)}:{random.randrange(60):02}"
        definition = tool(random, random.choice(["get_time", "get_current_time", "clock"]), "Get the time.", {argument: {"type": "string"}})
        return definition, random.choice([f"What time is it in {city}?", f"What is the time in {city}?"]), {argument: city}, time, f"It is {time} in {city}."
    if kind < 8:
        question, a, b = addition(random, 100)
        definition = tool(random, random.choice(["add", "sum", "calculate"]), "Add two numbers.", {"a": {"type": random.choice(["integer", "number"])}, "b": {"type": random.choice(["integer", "number"])}})
        return definition, question, {"a": a, "b": b}, str(a + b), f"{a} plus {b} is {a + b}."
    verb, noun, item = random.choice(["find", "get", "check", "read"]), random.choice(["price", "size", "colour", "age"]), random.choice(THINGS + NAMES)
    argument, result = random.choice(["name", "item", "query"]), random.choice(COLOURS + ["5", "17", "80"])
    definition = tool(random, f"{verb}_{noun}", f"{verb.capitalize()} the {noun}.", {argument: {"type": "string"}})
    return definition, random.choice([f"{verb.capitalize()} the {noun} of {item}.", f"What is the {noun} of {item}?"]), {argument: item}, result, f"The {noun} of {item} is {result}."


def tool_turns(random):
    definition, question, arguments, result, answer = tool_situation(random)
    tools = [definition]
    if random.random() < 0.4:
        other = tool_situation(random)[0]
        if other["function"]["name"].split("_")[-1] != definition["function"]["name"].split("_")[-1]:
            tools.insert(random.randrange(2), other)
    turns = [("system", TOOLS_INTRODUCTION + any_json_text(random, tools))]
    if random.random() < 0.25:
        turns.append(("system", random.choice(PLAIN_SYSTEM)))
    if random.random() < 0.3:  # tools are there, but the question does not need them
        question_without = plain_exchange(random)
        while "weather" in question_without[0] or "plus" in question_without[1]:
            question_without = plain_exchange(random)
        turns += [("user", question_without[0]), ("assistant", question_without[1])]
        if random.random() < 0.5:
            return turns
    call = json_text({"name": definition["function"]["name"], "arguments": arguments})
    turns += [("user", question), ("assistant", f"<tool_call>{call}</tool_call>"), ("tool", result), ("assistant", answer)]
    return turns


def conversation(random, long_answers=0.12, exchanges=3):
    """A list of (role, text). `exchanges` bounds the number of plain questions."""
    kind = random.random()
    if kind < long_answers:
        question, answer = long_exchange(random)
        return [("user", question), ("assistant", answer)]
    if kind < long_answers + 0.28:
        return tool_turns(random)
    turns, exchange = [], plain_exchange
    if random.random() < 0.12:
        turns, exchange = [("system", random.choice(JSON_SYSTEM))], json_exchange
    elif random.random() < 0.35:
        turns = [("system", random.choice(PLAIN_SYSTEM))]
    for _ in range(random.randrange(1, exchanges + 1)):
        question, answer = exchange(random)
        turns += [("user", question), ("assistant", answer)]
    return turns


def render(turns):
    return "".join(f"<|{role}|>{text}<|end|>" for role, text in turns)
