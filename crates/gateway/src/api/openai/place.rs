//! Where in a body an error is: from the line and column that the JSON reader names to the path that a person
//! recognises, such as `messages[2].content`.

/// One step down.
enum Step {
    Field(String),
    Item(usize),
}

/// The path of the value at a position of well-formed JSON; empty for the whole. `inside` is for errors that the reader
/// tells only after it has closed the object around the value.
pub fn path_at(bytes: &[u8], line: usize, column: usize, inside: bool) -> String {
    let start = match line.checked_sub(2) {
        None => 0,
        Some(skip) => {
            let mut ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            ends.nth(skip).map_or(0, |(at, _)| at + 1)
        }
    };
    let mut until = (start + column).min(bytes.len());
    if inside && bytes[..until].last() == Some(&b'}') {
        until -= 1;
    }
    let mut path: Vec<Step> = Vec::new();
    let mut wants_key = false;
    let mut at = 0;
    while at < until {
        match bytes[at] {
            b'"' => {
                let begin = at;
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if let (true, Some(Step::Field(name))) = (wants_key, path.last_mut()) {
                    *name = bytes
                        .get(begin..=at)
                        .and_then(|text| serde_json::from_slice(text).ok())
                        .unwrap_or_default();
                    wants_key = false;
                }
            }
            b'{' => {
                path.push(Step::Field(String::new()));
                wants_key = true;
            }
            b'[' => {
                path.push(Step::Item(0));
                wants_key = false;
            }
            b'}' | b']' => {
                path.pop();
                wants_key = false;
            }
            b',' => match path.last_mut() {
                Some(Step::Item(item)) => *item += 1,
                Some(Step::Field(_)) => wants_key = true,
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    print(&path)
}

fn print(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if name.is_empty() => {}
            Step::Field(name) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(name.chars().take(64));
            }
            Step::Item(item) => text.push_str(&format!("[{item}]")),
        }
    }
    text
}

/// A name below a path.
pub fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What the reader wanted, in words for people; it never repeats what was sent.
pub fn wanted(error: &str) -> Option<String> {
    let (_, rest) = error.rsplit_once(", expected ")?;
    let rest = rest.rsplit_once(" at line ").map_or(rest, |(rest, _)| rest);
    Some(match rest {
        "f64" | "f32" => "a number".to_owned(),
        "u64" | "u32" | "usize" => "a whole number, 0 or more".to_owned(),
        "i64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "a text".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        _ if rest.starts_with("struct ") => "an object".to_owned(),
        // The names of the values that a closed set has.
        _ if rest.starts_with('`') || rest.starts_with("one of `") => rest.to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_become_paths() {
        let body = b"{\"a\":1,\n \"b\":[{\"c\":\"x,{\"},\n{\"d\\u0065\":7}], \"f\":{\"g\":[1,[2]]}}";
        for (needle, path) in
            [("1,\n", "a"), ("\"x,{\"", "b[0].c"), ("7}", "b[1].de"), ("2]]", "f.g[1][0]"), ("}}", "f")]
        {
            let at = body.windows(needle.len()).position(|window| window == needle.as_bytes()).unwrap() + 1;
            let line = body[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            let begin = body[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            assert_eq!(path_at(body, line, at - begin, false), path, "{needle}");
        }
    }

    #[test]
    fn what_was_wanted_is_said_without_what_was_sent() {
        for (error, words) in [
            ("invalid type: string \"canary\", expected f64 at line 1 column 9", Some("a number")),
            (
                "invalid value: integer `-1`, expected u64 at line 1 column 9",
                Some("a whole number, 0 or more"),
            ),
            (
                "unknown variant `canary`, expected one of `a`, `b`, `c` at line 1 column 9",
                Some("one of `a`, `b`, `c`"),
            ),
            ("unknown variant `canary`, expected `a` or `b`", Some("`a` or `b`")),
            ("data did not match any variant of untagged enum Content", None),
        ] {
            assert_eq!(wanted(error).as_deref(), words, "{error}");
        }
    }
}
