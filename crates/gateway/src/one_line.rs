//! JSON for events of a stream: one line, whatever a client takes for the end of one.

use std::io::{self, Write};

use serde::Serialize;

/// Writes JSON in which nothing looks like the end of a line: several clients split streams at U+0085, U+2028 and
/// U+2029, too, and would take the rest of such an event for another one.
pub fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // The types of `wire` are always JSON, and writing into a vector does not fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(out, OneLine));
}

struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // The first bytes of those three characters; most texts hold neither.
        if !fragment.bytes().any(|byte| matches!(byte, 0xc2 | 0xe2)) {
            return writer.write_all(fragment.as_bytes());
        }
        for part in fragment.split_inclusive(['\u{85}', '\u{2028}', '\u{2029}']) {
            let Some(last) = part.chars().next_back() else { continue };
            match last {
                '\u{85}' | '\u{2028}' | '\u{2029}' => {
                    writer.write_all(&part.as_bytes()[..part.len() - last.len_utf8()])?;
                    write!(writer, "\\u{:04x}", u32::from(last))?;
                }
                _ => writer.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_ends_a_line() {
        let said = "a\u{2028}b\u{2029}\u{85}c \u{e9} \u{e2} \n\r\0\u{2027}\u{84}";
        let mut out = Vec::new();
        write_json(&mut out, said);
        let line = String::from_utf8(out).unwrap();
        assert!(!line.contains(['\n', '\r', '\0', '\u{2028}', '\u{2029}', '\u{85}']), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), said);
    }
}
