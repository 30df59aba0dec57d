//! How a route is called, in three languages. The address is this machine's until the reader puts in another one.

use serde_json::Value;

use crate::router::operation::{Content, Place};
use crate::router::{Access, Route};

/// Where the samples call.
pub const HOST: &str = "https://HOST";

/// A call in one language.
#[derive(Debug)]
pub struct Sample {
    /// Its name.
    pub language: &'static str,
    /// The text.
    pub text: String,
}

/// The samples of a route. Routes for nodes have none: their requests are signed by the provider program.
#[must_use]
pub fn of_route(route: &Route) -> Vec<Sample> {
    if route.access == Access::Node {
        return Vec::new();
    }
    let sample = |language, text| Sample { language, text };
    let mut all = vec![sample("curl", curl(route))];
    if let Some((python, node)) = official(route) {
        all.push(sample("Python", python));
        all.push(sample("Node", node));
    } else {
        all.push(sample("Python", python(route)));
        all.push(sample("Node", node(route)));
    }
    all
}

fn address(route: &Route) -> String {
    let prefix = if route.prefixed { "/api/v1" } else { "" };
    let mut path = crate::openapi::published_path(route.path);
    let mut query = Vec::new();
    for parameter in route.operation.parameters {
        match parameter.place {
            Place::Path => path = path.replace(&format!("{{{}}}", parameter.name), parameter.example),
            Place::Query => query.push(format!("{}={}", parameter.name, parameter.example)),
            Place::Header => {}
        }
    }
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    format!("{HOST}{prefix}{path}{query}")
}

fn body(route: &Route) -> Option<Value> {
    serde_json::from_str(route.operation.request?.example).ok()
}

fn curl(route: &Route) -> String {
    let mut lines = vec![match route.method.as_str() {
        "GET" => format!("curl {}", quoted(&address(route))),
        method => format!("curl -X {method} {}", address(route)),
    }];
    if route.access == Access::Key {
        lines.push("  -H \"Authorization: Bearer $CXMPUTE_API_KEY\"".to_owned());
    }
    if let Some(body) = body(route) {
        lines.push("  -H 'Content-Type: application/json'".to_owned());
        let text = format!("{body:#}").replace('\'', "'\\''").replace('\n', "\n  ");
        lines.push(format!("  -d '{text}'"));
    }
    lines.join(" \\\n")
}

fn quoted(address: &str) -> String {
    if address.contains(['?', '&']) { format!("'{address}'") } else { address.to_owned() }
}

/// With the official clients of OpenAI, where they know the route.
fn official(route: &Route) -> Option<(String, String)> {
    let streams = route.operation.answers.iter().any(|answer| matches!(answer.content, Content::Events(_)));
    let (python_call, node_call) = match route.operation.id {
        "createChatCompletion" => ("chat.completions.create", "chat.completions.create"),
        "createCompletion" => ("completions.create", "completions.create"),
        "createResponse" => ("responses.create", "responses.create"),
        "createEmbedding" => ("embeddings.create", "embeddings.create"),
        "listModels" => ("models.list", "models.list"),
        "getModel" => ("models.retrieve", "models.retrieve"),
        _ => return None,
    };
    let mut python = format!(
        "import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"{HOST}/api/v1\", api_key=os.environ[\"CXMPUTE_API_KEY\"])\n"
    );
    let mut node = format!(
        "import OpenAI from \"openai\";\n\nconst client = new OpenAI({{ baseURL: \"{HOST}/api/v1\", apiKey: process.env.CXMPUTE_API_KEY }});\n"
    );
    match body(route) {
        Some(Value::Object(fields)) => {
            let more = if streams { "    stream=True,\n" } else { "" };
            let given: String =
                fields.iter().map(|(name, value)| format!("    {name}={},\n", pythonic(value))).collect();
            let read = match streams {
                true if route.operation.id == "createChatCompletion" => {
                    "for chunk in answer:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or \"\", end=\"\")"
                }
                true => "for chunk in answer:\n    print(chunk.choices[0].text, end=\"\")",
                false => "print(answer.usage)",
            };
            python.push_str(&format!("answer = client.{python_call}(\n{given}{more})\n{read}"));
            let more = if streams { "  stream: true,\n" } else { "" };
            let given: String = fields.iter().map(|(name, value)| format!("  {name}: {value},\n")).collect();
            let read = match streams {
                true if route.operation.id == "createChatCompletion" => {
                    "for await (const chunk of answer) {\n  process.stdout.write(chunk.choices[0]?.delta?.content ?? \"\");\n}"
                }
                true => {
                    "for await (const chunk of answer) {\n  process.stdout.write(chunk.choices[0].text);\n}"
                }
                false => "console.log(answer.usage);",
            };
            node.push_str(&format!("const answer = await client.{node_call}({{\n{given}{more}}});\n{read}"));
        }
        _ => {
            let argument = match route.operation.parameters.first() {
                Some(parameter) => format!("\"{}\"", parameter.example),
                None => String::new(),
            };
            python.push_str(&format!("print(client.{python_call}({argument}))"));
            node.push_str(&format!("console.log(await client.{node_call}({argument}));"));
        }
    }
    Some((python, node))
}

fn pythonic(value: &Value) -> String {
    value.to_string().replace(":true", ":True").replace(":false", ":False").replace(":null", ":None")
}

fn python(route: &Route) -> String {
    let mut text = String::from(if route.access == Access::Key { "import os\n" } else { "" });
    text.push_str(&format!(
        "import requests\n\nanswer = requests.{}(\n    \"{}\",\n",
        route.method.as_str().to_lowercase(),
        address(route)
    ));
    if route.access == Access::Key {
        text.push_str("    headers={\"Authorization\": f\"Bearer {os.environ['CXMPUTE_API_KEY']}\"},\n");
    }
    if let Some(body) = body(route) {
        text.push_str(&format!("    json={},\n", format!("{body:#}").replace('\n', "\n    ")));
    }
    text.push_str(")\nprint(answer.json())");
    text
}

fn node(route: &Route) -> String {
    let mut options = Vec::new();
    if route.method != http::Method::GET {
        options.push(format!("  method: \"{}\",\n", route.method));
    }
    match (route.access == Access::Key, body(route)) {
        (true, _) => {
            options
                .push("  headers: { Authorization: `Bearer ${process.env.CXMPUTE_API_KEY}` },\n".to_owned());
        }
        (false, Some(body)) => {
            options.push("  headers: { \"Content-Type\": \"application/json\" },\n".to_owned());
            let text = format!("{body:#}").replace('\n', "\n  ");
            options.push(format!("  body: JSON.stringify({text}),\n"));
        }
        (false, None) => {}
    }
    let options = match options.is_empty() {
        true => String::new(),
        false => format!(", {{\n{}}}", options.concat()),
    };
    format!("const answer = await fetch(\"{}\"{options});\nconsole.log(await answer.json());", address(route))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::ROUTES;

    #[test]
    fn every_route_but_those_for_nodes_has_three_samples() {
        for route in ROUTES {
            let wanted = if route.access == Access::Node { 0 } else { 3 };
            assert_eq!(of_route(route).len(), wanted, "{}", route.path);
        }
        let chat = of_route(&ROUTES[0]);
        assert!(chat[0].text.contains("Bearer $CXMPUTE_API_KEY") && chat[1].text.contains("stream=True"));
    }
}
