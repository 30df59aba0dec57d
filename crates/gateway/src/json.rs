//! The one JSON reader (SR30): depth 64, no duplicate keys, no trailing data, typed integers.
//!
//! `serde_json` alone stops at depth 128 and keeps the last of duplicate keys silently, so a check runs over the bytes
//! before they become a type.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use cxmpute_wire::openai::fields::{Fields, Inner};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{ApiError, ApiResult};
use crate::limits;

/// Reads a body as `T`. Errors name the field where they can.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    check(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| data_error(&error))
}

/// How long a value is when it is printed. One that cannot be printed is longer than anything.
pub fn printed_length<T: serde::Serialize + ?Sized>(value: &T) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0 += text.len();
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).map_or(usize::MAX / 4, |()| length.0)
}

/// The check without the type.
pub fn check(bytes: &[u8]) -> ApiResult<()> {
    walk(bytes, Inner::Free).map(drop)
}

/// The check, and the fields that are not part of the schema.
///
/// # Errors
/// The bytes are not acceptable JSON.
pub fn check_fields(bytes: &[u8], fields: &'static Fields) -> ApiResult<Ignored> {
    walk(bytes, Inner::Object(fields))
}

fn walk(bytes: &[u8], inner: Inner) -> ApiResult<Ignored> {
    if bytes.is_empty() {
        return Err(ApiError::invalid_json("The body is empty; this route takes a JSON object."));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let ignored = RefCell::default();
    let strict = Strict { depth: 0, inner, place: &Place::Root, ignored: &ignored };
    strict.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|error| {
        ApiError::invalid_json(format!("The body is not acceptable JSON: {}.", cut(&error.to_string())))
    })?;
    Ok(Ignored { read: bytes.len(), ..ignored.into_inner() })
}

/// Fields outside the schema.
#[derive(Debug, Default)]
pub struct Ignored {
    /// Their paths, each once, lists without places (`messages[].x`); at most [`limits::IGNORED`].
    pub names: Vec<String>,
    /// The path of the first of them, lists with places (`messages[2].x`).
    pub first: Option<String>,
    /// Bytes of the body that was looked through.
    pub read: usize,
}

impl Ignored {
    /// Notes a field of a form.
    pub fn add(&mut self, name: &str) {
        if self.names.len() < limits::IGNORED && !self.names.iter().any(|known| known == name) {
            self.first.get_or_insert_with(|| name.to_owned());
            self.names.push(name.to_owned());
        }
    }

    fn note(&mut self, place: &Place<'_>, name: &str) {
        if self.names.len() >= limits::IGNORED {
            return;
        }
        let name: String = name.chars().take(64).collect();
        let path = place.print(&name, false);
        if self.names.contains(&path) {
            return;
        }
        self.first.get_or_insert_with(|| place.print(&name, true));
        self.names.push(path);
    }
}

/// Where the walk is; names and places of the way here.
#[derive(Clone, Copy)]
enum Place<'p> {
    Root,
    Field(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl Place<'_> {
    fn print(&self, name: &str, places: bool) -> String {
        let mut text = String::new();
        self.write(&mut text, places);
        if !text.is_empty() && !name.is_empty() {
            text.push('.');
        }
        text.push_str(name);
        text
    }

    fn write(&self, text: &mut String, places: bool) {
        match self {
            Self::Root => {}
            Self::Field(before, name) => {
                before.write(text, places);
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(name);
            }
            Self::Item(before, at) => {
                before.write(text, places);
                text.push_str(&if places { format!("[{at}]") } else { "[]".to_owned() });
            }
        }
    }
}

/// An error of a type that was given acceptable JSON: some field is wrong or missing.
pub fn data_error(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let named = text.strip_prefix("missing field `").or_else(|| text.strip_prefix("unknown field `"));
    let field = named.and_then(|rest| rest.split('`').next());
    let error =
        ApiError::new(cxmpute_wire::Code::InvalidParameter, format!("The body does not fit: {}.", cut(text)));
    match field {
        Some(field) => error.param(field),
        None => error,
    }
}

/// Messages may quote what the client sent; 300 characters are enough to recognise it.
fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(300) {
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// Walks one value and keeps nothing of it but the keys of the objects it is in.
#[derive(Clone, Copy)]
struct Strict<'p> {
    depth: usize,
    /// What belongs here.
    inner: Inner,
    place: &'p Place<'p>,
    ignored: &'p RefCell<Ignored>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= limits::JSON_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {}", limits::JSON_DEPTH)));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = match self.inner {
            // A type could be read from a list as well, by position; that is no part of any schema.
            Inner::Object(_) => {
                return Err(A::Error::custom(format_args!(
                    "`{}` must be an object",
                    self.place.print("", true)
                )));
            }
            Inner::List(fields) => Inner::Object(fields),
            Inner::Free => Inner::Free,
        };
        let inner = Strict { inner, ..self.deeper()? };
        let mut at = 0;
        while items.next_element_seed(Strict { place: &Place::Item(self.place, at), ..inner })?.is_some() {
            at += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        /// Up to here comparing is faster than hashing.
        const FEW: usize = 16;
        let inner = self.deeper()?;
        let mut few: Vec<Key<'de>> = Vec::with_capacity(FEW / 2);
        let mut many: HashSet<Key<'de>> = HashSet::new();
        while let Some(key) = fields.next_key::<Key<'de>>()? {
            if few.contains(&key) || many.contains(&key) {
                return Err(A::Error::custom(format_args!("duplicate key `{}`", cut(&key.0))));
            }
            let below = match self.inner {
                Inner::Object(known) => known.find(&key.0).unwrap_or_else(|| {
                    self.ignored.borrow_mut().note(self.place, &key.0);
                    Inner::Free
                }),
                Inner::List(_) | Inner::Free => Inner::Free,
            };
            fields.next_value_seed(Strict {
                inner: below,
                place: &Place::Field(self.place, &key.0),
                ..inner
            })?;
            if few.len() < FEW {
                few.push(key);
            } else {
                many.insert(key);
            }
        }
        Ok(())
    }
}

/// A key, borrowed from the body where it holds no escapes.
#[derive(PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> Option<String> {
        check(body.as_bytes()).err().map(|error| error.message.clone().into_owned())
    }

    #[test]
    fn ordinary_bodies_pass() {
        for body in [r#"{"a":[1,2.5,-3,"x",null,true,{"a":1}],"b":{"a":2}}"#, "[]", "1e3", r#"{"A":1,"a":2}"#]
        {
            assert_eq!(code(body), None, "{body}");
        }
    }

    #[test]
    fn duplicate_keys_are_refused_however_written() {
        assert!(code(r#"{"a":1,"a":2}"#).unwrap().contains("duplicate key `a`"));
        assert!(code(r#"{"x":{"a":1,"\u0061":2}}"#).unwrap().contains("duplicate"));
        let many: Vec<String> = (0..40).map(|i| format!("\"k{i}\":0")).collect();
        assert_eq!(code(&format!("{{{}}}", many.join(","))), None);
        assert!(code(&format!("{{{},\"k39\":1}}", many.join(","))).unwrap().contains("k39"));
    }

    #[test]
    fn depth_stops_at_64() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(code(&nested(64)), None);
        assert!(code(&nested(65)).unwrap().contains("deeper"));
        assert!(code(&"[".repeat(1_000_000)).is_some());
    }

    #[test]
    fn fields_outside_the_schema_are_named_wherever_they_are() {
        use cxmpute_wire::openai::ChatRequest;
        use cxmpute_wire::openai::fields::Closed;
        let check = |body: &str| check_fields(body.as_bytes(), ChatRequest::FIELDS);
        let ignored = check(
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":1}}]},
                {"role":"user","x":{"y":1}},{"x":2}],"tools":[{"function":{"parameters":{"anything":{"goes":1}},"z":1}}],
                "metadata":{"own":"x"},"response_format":{"json_schema":{"schema":{"own":1},"q":1}},
                "stream_options":{"include_obfuscation":true},"provider":{"sort":{"up":1}},"guided_json":{"model":1}}"#,
        )
        .unwrap();
        assert_eq!(
            ignored.names,
            [
                "messages[].content[].cache_control",
                "messages[].x",
                "tools[].function.z",
                "response_format.json_schema.q",
                "stream_options.include_obfuscation",
                "provider.sort.up",
                "guided_json",
            ]
        );
        assert_eq!(ignored.first.as_deref(), Some("messages[0].content[0].cache_control"));
        let many: Vec<String> = (0..1000).map(|at| format!("\"x{at}\":1")).collect();
        assert_eq!(check(&format!("{{{}}}", many.join(","))).unwrap().names.len(), limits::IGNORED);
        for lists in [r#"["m",[]]"#, r#"{"messages":[["user","x"]]}"#, r#"{"stream_options":[true]}"#] {
            assert!(check(lists).unwrap_err().message.contains("must be an object"), "{lists}");
        }
        assert!(check(r#"{"messages":"x","tool_choice":"auto","stop":["a"],"models":["a"]}"#).is_ok());
    }

    #[test]
    fn broken_json_is_refused() {
        for body in ["", "{", "{} x", "{\"a\":1e400}", "\u{feff}{}", r#"{"a":"\ud800"}"#, "NaN", "{'a':1}"] {
            assert!(code(body).is_some(), "{body}");
        }
        assert!(check(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_missing_field_is_named() {
        #[derive(Debug, serde::Deserialize)]
        struct Wanted {
            #[expect(dead_code)]
            count: u32,
        }
        assert_eq!(read::<Wanted>(b"{}").unwrap_err().param.as_deref(), Some("count"));
        let error = read::<Wanted>(b"{\"count\":18446744073709551616}").unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
    }
}
