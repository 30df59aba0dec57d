//! Keeps what a person or a tool says from being read as control tokens.
//!
//! A tokenizer reads the name of a control token as that token wherever it stands. In a rendered prompt only the
//! template may speak control tokens, so their names are cut in what comes from the request: an invisible mark goes
//! behind their first character before rendering, and the prompt is encoded in parts between these marks. Text
//! without such names is encoded exactly as before.

use serde_json::Value as Json;

/// Characters that are in no text that means anything (Unicode's noncharacters); one that a request does not have is
/// its mark.
const CUTS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The names that must not be spoken.
#[derive(Debug, Default)]
pub struct Guard {
    names: Vec<String>,
    /// What the names begin with: text without any of these needs no closer look.
    beginnings: Vec<String>,
}

impl Guard {
    /// Guards these names. A name of a single character cannot be cut and is left out.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let names: Vec<String> = names.into_iter().filter(|name| name.chars().nth(1).is_some()).collect();
        let mut beginnings: Vec<String> = names.iter().map(|name| name.chars().take(2).collect()).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        Self { names, beginnings }
    }

    /// Cuts the names in all texts of the values, and gives the mark it cut with; `None` if there were none.
    ///
    /// # Errors
    /// When every possible mark occurs in the texts; nobody writes such a text by accident.
    pub fn cut_all(&self, values: &mut [&mut Json]) -> Result<Option<char>, NoMark> {
        if !values.iter().any(|value| any_text(value, &|text| self.speaks(text))) {
            return Ok(None);
        }
        let free = |cut: &char| !values.iter().any(|value| any_text(value, &|text| text.contains(*cut)));
        let cut = CUTS.clone().find(free).ok_or(NoMark)?;
        values.iter_mut().for_each(|value| self.cut(value, cut));
        Ok(Some(cut))
    }

    /// Whether a text holds one of the names.
    pub(crate) fn speaks(&self, text: &str) -> bool {
        self.beginnings.iter().any(|beginning| text.contains(beginning.as_str()))
            && self.names.iter().any(|name| text.contains(name.as_str()))
    }

    fn cut(&self, value: &mut Json, cut: char) {
        match value {
            Json::String(text) => *text = self.cut_text(text, cut),
            Json::Array(list) => list.iter_mut().for_each(|value| self.cut(value, cut)),
            Json::Object(fields) => {
                let whole = std::mem::take(fields);
                for (name, mut value) in whole {
                    self.cut(&mut value, cut);
                    fields.insert(self.cut_text(&name, cut), value);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn cut_text(&self, text: &str, cut: char) -> String {
        let mut out = text.to_owned();
        for name in self.names.iter().filter(|name| text.contains(name.as_str())) {
            let first = name.chars().next().map_or(0, char::len_utf8);
            out = out.replace(name.as_str(), &format!("{}{cut}{}", &name[..first], &name[first..]));
        }
        out
    }
}

/// No mark is left to cut with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the messages hold every noncharacter of Unicode")]
pub struct NoMark;

fn any_text(value: &Json, test: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Json::String(text) => test(text),
        Json::Array(list) => list.iter().any(|value| any_text(value, test)),
        Json::Object(fields) => fields.iter().any(|(name, value)| test(name) || any_text(value, test)),
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn guard() -> Guard {
        Guard::new(["<|end|>", "<|user|>", "</s>", "x"].map(String::from))
    }

    #[test]
    fn names_are_cut_wherever_they_stand() {
        let mut value = json!({"content": "a <|end|><|user|> b", "</s>": [{"deep": "</s>"}], "n": 1});
        assert_eq!(guard().cut_all(&mut [&mut value]), Ok(Some('\u{FDD0}')));
        let text = value.to_string();
        assert!(!["<|end|>", "<|user|>", "</s>"].iter().any(|name| text.contains(name)), "{text}");
        assert_eq!(
            text.replace('\u{FDD0}', ""),
            r#"{"content":"a <|end|><|user|> b","</s>":[{"deep":"</s>"}],"n":1}"#
        );
    }

    #[test]
    fn other_text_is_left_alone_and_a_used_mark_is_not_taken() {
        let plain = json!({"content": "1 < 2 <| x </ s> \u{FDD0}"});
        let mut value = plain.clone();
        assert_eq!((guard().cut_all(&mut [&mut value]), &value), (Ok(None), &plain));
        let mut value = json!("\u{FDD0}\u{FDD1}</s>");
        assert_eq!(guard().cut_all(&mut [&mut value]), Ok(Some('\u{FDD2}')));
        let all: String = CUTS.clone().collect();
        assert_eq!(guard().cut_all(&mut [&mut json!(all + "</s>")]), Err(NoMark));
    }

    #[test]
    fn names_inside_of_names_do_not_come_together_again() {
        let mut value = json!("<|e<|end|>nd|> <</s>/s>");
        let cut = guard().cut_all(&mut [&mut value]).unwrap().unwrap();
        for part in value.as_str().unwrap().split(cut) {
            assert!(!["<|end|>", "</s>"].iter().any(|name| part.contains(name)), "{part}");
        }
    }
}
