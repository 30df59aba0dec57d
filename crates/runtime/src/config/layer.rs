//! The layers as one serde deserializer: each node knows its key and its value in every layer.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use toml::Value;

use super::error::{ConfigError, Origin, closest, edits};

/// What all nodes of one load share.
pub(super) struct Context<'a> {
    file: Option<&'a Path>,
    prefix: &'a str,
    environment: BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(file: Option<&'a Path>, prefix: &'a str, environment: Vec<(String, String)>) -> Self {
        Self {
            file,
            prefix,
            environment: environment.into_iter().collect(),
            used: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// A variable with our prefix that no key asked for and that is at most two letters away from one that does, with
    /// that one.
    pub(super) fn misspelt_variable(&self) -> Option<(String, String)> {
        let used = self.used.borrow();
        let known = self.known.borrow();
        let unused = self.environment.keys().filter(|name| !used.contains(*name) && !known.contains(*name));
        unused
            .flat_map(|name| known.iter().map(move |known| (name, known)))
            .find_map(|(name, known)| (edits(name, known) <= 2).then(|| (name.clone(), known.clone())))
    }
}

/// One key, or one section, in all layers.
#[derive(Clone)]
pub(super) struct Node<'a> {
    context: &'a Context<'a>,
    key: String,
    /// Name of the environment variable; `None` inside arrays, which have no names.
    variable: Option<String>,
    default: Option<&'a Value>,
    file: Option<&'a Value>,
    flag: Option<&'a Value>,
}

/// The layer that wins for a key.
enum Given<'a> {
    /// Text from the environment or a flag: read as what the key wants.
    Text(Origin, &'a str),
    Value(Origin, &'a Value),
    Nothing,
}

/// An error on its way up; it learns its key and value at the first node it passes.
#[derive(Debug)]
pub(super) enum Fault {
    Bare { expected: String },
    Missing { field: &'static str },
    Located(Box<ConfigError>),
}

impl Fault {
    pub(super) fn into_error(self) -> ConfigError {
        match self {
            Fault::Located(error) => *error,
            Fault::Bare { expected } => ConfigError::Value {
                origin: Origin::Default,
                key: String::new(),
                given: "unusable".into(),
                expected,
            },
            Fault::Missing { field } => ConfigError::Missing { key: field.into(), variable: None },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Bare { expected } => f.write_str(expected),
            Fault::Missing { field } => write!(f, "missing {field}"),
            Fault::Located(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::Bare { expected: format!("something else ({message})") }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::Bare { expected: expected.to_string() }
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::Bare { expected: expected.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Fault::Missing { field }
    }
}

impl<'a> Node<'a> {
    pub(super) fn root(
        context: &'a Context<'a>,
        default: &'a Value,
        file: Option<&'a Value>,
        flag: &'a Value,
    ) -> Self {
        let variable = (!context.prefix.is_empty()).then(|| context.prefix.to_owned());
        Node { context, key: String::new(), variable, default: Some(default), file, flag: Some(flag) }
    }

    fn child(&self, name: &str) -> Self {
        fn get<'a>(layer: Option<&'a Value>, name: &str) -> Option<&'a Value> {
            layer.and_then(|value| value.as_table()).and_then(|table| table.get(name))
        }
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        let variable = self
            .variable
            .as_ref()
            .map(|variable| format!("{variable}_{}", name.to_uppercase().replace(['-', '.'], "_")));
        if let Some(variable) = &variable {
            self.context.known.borrow_mut().insert(variable.clone());
        }
        Node {
            context: self.context,
            key,
            variable,
            default: get(self.default, name),
            file: get(self.file, name),
            flag: get(self.flag, name),
        }
    }

    fn item(&self, index: usize, value: &'a Value, origin: &Origin) -> Self {
        let mut node = Node {
            context: self.context,
            key: format!("{}[{index}]", self.key),
            variable: None,
            default: None,
            file: None,
            flag: None,
        };
        match origin {
            Origin::File(_) => node.file = Some(value),
            Origin::Flag => node.flag = Some(value),
            Origin::Default | Origin::Environment(_) => node.default = Some(value),
        }
        node
    }

    fn exact_variable(&self) -> Option<(&'a str, &'a str)> {
        let (name, value) = self.context.environment.get_key_value(self.variable.as_ref()?)?;
        Some((name, value))
    }

    fn given(&self) -> Given<'a> {
        if let Some(value) = self.flag {
            return match value {
                Value::String(text) => Given::Text(Origin::Flag, text),
                value => Given::Value(Origin::Flag, value),
            };
        }
        if let Some((name, text)) = self.exact_variable() {
            self.context.used.borrow_mut().insert(name.to_owned());
            return Given::Text(Origin::Environment(name.to_owned()), text);
        }
        if let Some(value) = self.file {
            return Given::Value(
                Origin::File(self.context.file.map(Path::to_owned).unwrap_or_default()),
                value,
            );
        }
        match self.default {
            Some(value) => Given::Value(Origin::Default, value),
            None => Given::Nothing,
        }
    }

    /// Whether a struct with the field names `siblings` should read this field.
    fn is_present(&self, siblings: &[&str], parent: &Node<'_>) -> bool {
        if self.flag.is_some() || self.file.is_some() || self.default.is_some() {
            return true;
        }
        let Some(variable) = &self.variable else { return false };
        if self.context.environment.contains_key(variable) {
            return true;
        }
        // `X_DATA_DIR` makes the section `data` present only if no longer sibling (`data_dir`) claims it.
        let section = format!("{variable}_");
        let Some(parent) = &parent.variable else { return false };
        self.context.environment.keys().filter(|name| name.starts_with(&section)).any(|name| {
            !siblings.iter().any(|sibling| {
                let sibling = format!("{parent}_{}", sibling.to_uppercase());
                sibling.len() > variable.len()
                    && (*name == sibling || name.starts_with(&format!("{sibling}_")))
            })
        })
    }

    /// Puts key, value and origin into an error that has none yet.
    fn locate(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Located(_) => fault,
            Fault::Missing { field } => {
                let child = self.child(field);
                Fault::Located(Box::new(ConfigError::Missing { key: child.key, variable: child.variable }))
            }
            Fault::Bare { expected } => {
                let (origin, given) = match self.given() {
                    Given::Text(origin, text) => (origin, format!("{text:?}")),
                    Given::Value(origin, value) => (origin, value.to_string()),
                    Given::Nothing => (Origin::Default, "absent".to_owned()),
                };
                let given = if given.chars().count() > 80 {
                    format!("{}…", given.chars().take(80).collect::<String>())
                } else {
                    given
                };
                Fault::Located(Box::new(ConfigError::Value {
                    origin,
                    key: self.key.clone(),
                    given,
                    expected,
                }))
            }
        }
    }

    fn wrong(&self, expected: impl Into<String>) -> Fault {
        self.locate(Fault::Bare { expected: expected.into() })
    }

    fn check_keys(&self, fields: &'static [&'static str]) -> Result<(), Fault> {
        let file = Origin::File(self.context.file.map(Path::to_owned).unwrap_or_default());
        for (origin, layer) in [(file, self.file), (Origin::Flag, self.flag)] {
            let Some(table) = layer.and_then(Value::as_table) else { continue };
            if let Some(name) = table.keys().find(|name| !fields.contains(&name.as_str())) {
                let whole = |name: &str| match self.key.as_str() {
                    "" => name.to_owned(),
                    section => format!("{section}.{name}"),
                };
                return Err(Fault::Located(Box::new(ConfigError::UnknownKey {
                    origin,
                    key: whole(name),
                    closest: closest(name, fields.iter().copied()).map(whole),
                    known: fields.iter().map(|field| (*field).to_owned()).collect(),
                })));
            }
        }
        Ok(())
    }

    /// A table must not be replaced by something else in a layer above.
    fn check_section(&self) -> Result<(), Fault> {
        match self.given() {
            Given::Value(_, Value::Table(_)) | Given::Nothing => Ok(()),
            Given::Text(..) | Given::Value(..) => Err(self.wrong("a section with keys")),
        }
    }

    fn keys(&self) -> Vec<String> {
        let mut keys = BTreeSet::new();
        for layer in [self.default, self.file, self.flag] {
            if let Some(table) = layer.and_then(Value::as_table) {
                keys.extend(table.keys().cloned());
            }
        }
        keys.into_iter().collect()
    }
}

macro_rules! integers {
    ($($method:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let result = match self.given() {
                Given::Text(_, text) => match text.trim().parse::<i64>() {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => Err(Fault::Bare { expected: "a whole number".into() }),
                },
                Given::Value(_, Value::Integer(number)) => visitor.visit_i64(*number),
                Given::Value(..) | Given::Nothing => Err(Fault::Bare { expected: "a whole number".into() }),
            };
            result.map_err(|fault| self.locate(fault))
        }
    )*};
}

macro_rules! floats {
    ($($method:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number = match self.given() {
                Given::Text(_, text) => text.trim().parse::<f64>().ok(),
                Given::Value(_, Value::Float(number)) => Some(*number),
                // A person who writes 1 means 1.0.
                Given::Value(_, Value::Integer(number)) => number.to_string().parse().ok(),
                Given::Value(..) | Given::Nothing => None,
            };
            match number {
                Some(number) => visitor.visit_f64(number).map_err(|fault| self.locate(fault)),
                None => Err(self.wrong("a number")),
            }
        }
    )*};
}

macro_rules! texts {
    ($($method:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let result = match self.given() {
                Given::Text(_, text) => visitor.visit_str(text),
                Given::Value(_, Value::String(text)) => visitor.visit_str(text),
                Given::Value(..) | Given::Nothing => Err(Fault::Bare { expected: "text in quotes".into() }),
            };
            result.map_err(|fault| self.locate(fault))
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Fault;

    integers!(deserialize_i8, deserialize_i16, deserialize_i32, deserialize_i64);
    integers!(deserialize_u8, deserialize_u16, deserialize_u32, deserialize_u64);
    floats!(deserialize_f32, deserialize_f64);
    texts!(deserialize_str, deserialize_string, deserialize_char, deserialize_identifier);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.given() {
            Given::Text(_, text) => visitor.visit_str(text).map_err(|fault| self.locate(fault)),
            Given::Value(_, Value::Boolean(value)) => {
                visitor.visit_bool(*value).map_err(|fault| self.locate(fault))
            }
            Given::Value(_, Value::Integer(_)) => self.deserialize_i64(visitor),
            Given::Value(_, Value::Float(_)) => self.deserialize_f64(visitor),
            Given::Value(_, Value::String(_) | Value::Datetime(_)) => self.deserialize_str(visitor),
            Given::Value(_, Value::Array(_)) => self.deserialize_seq(visitor),
            Given::Value(_, Value::Table(_)) => self.deserialize_map(visitor),
            Given::Nothing => visitor.visit_none().map_err(|fault| self.locate(fault)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let value = match self.given() {
            Given::Text(_, text) => match text.trim() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            Given::Value(_, Value::Boolean(value)) => Some(*value),
            Given::Value(..) | Given::Nothing => None,
        };
        match value {
            Some(value) => visitor.visit_bool(value).map_err(|fault| self.locate(fault)),
            None => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let node = self.clone();
        visitor.visit_newtype_struct(self).map_err(|fault| node.locate(fault))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.given() {
            // Text lists are separated by commas.
            Given::Text(_, text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                let items = items.map(de::value::StrDeserializer::<Fault>::new);
                visitor.visit_seq(de::value::SeqDeserializer::new(items)).map_err(|fault| self.locate(fault))
            }
            Given::Value(origin, Value::Array(items)) => {
                let items = Items { node: self.clone(), origin, items: items.iter().enumerate() };
                visitor.visit_seq(items).map_err(|fault| self.locate(fault))
            }
            Given::Value(..) | Given::Nothing => Err(self.wrong("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.check_section()?;
        let children = self.keys().into_iter().map(|name| (name.clone(), self.child(&name))).collect();
        visitor.visit_map(Fields::new(children)).map_err(|fault| self.locate(fault))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.check_section()?;
        self.check_keys(fields)?;
        let children = fields
            .iter()
            .map(|field| ((*field).to_owned(), self.child(field)))
            .filter(|(_, child)| child.is_present(fields, &self))
            .collect();
        visitor.visit_map(Fields::new(children)).map_err(|fault| self.locate(fault))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let name = match self.given() {
            Given::Text(_, text) => text,
            Given::Value(_, Value::String(text)) => text.as_str(),
            Given::Value(..) | Given::Nothing => return Err(self.wrong(one_of(variants))),
        };
        if !variants.contains(&name) {
            return Err(self.wrong(one_of(variants)));
        }
        visitor.visit_enum(Word(name)).map_err(|fault| self.locate(fault))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct ignored_any
    }
}

fn one_of(variants: &[&str]) -> String {
    format!("one of {}", variants.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", "))
}

struct Items<'a, I> {
    node: Node<'a>,
    origin: Origin,
    items: I,
}

impl<'de, I: Iterator<Item = (usize, &'de Value)>> SeqAccess<'de> for Items<'de, I> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        match self.items.next() {
            None => Ok(None),
            Some((index, value)) => seed.deserialize(self.node.item(index, value, &self.origin)).map(Some),
        }
    }
}

struct Fields<'a> {
    rest: std::vec::IntoIter<(String, Node<'a>)>,
    value: Option<Node<'a>>,
}

impl<'a> Fields<'a> {
    fn new(children: Vec<(String, Node<'a>)>) -> Self {
        Self { rest: children.into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        match self.rest.next() {
            None => Ok(None),
            Some((name, node)) => {
                self.value = Some(node);
                seed.deserialize(de::value::StringDeserializer::<Fault>::new(name)).map(Some)
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        match self.value.take() {
            Some(node) => seed.deserialize(node),
            None => Err(Fault::Bare { expected: "a value after its key".into() }),
        }
    }
}

/// A unit variant of an enum.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let value = seed.deserialize(de::value::StrDeserializer::<Fault>::new(self.0))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Fault> {
        Err(Fault::Bare { expected: "a single word".into() })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Fault> {
        Err(Fault::Bare { expected: "a single word".into() })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Fault> {
        Err(Fault::Bare { expected: "a single word".into() })
    }
}
