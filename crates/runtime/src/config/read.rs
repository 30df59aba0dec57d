//! The tree of layers as a serde deserializer.

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use toml::Value;

use super::error::Origin;
use super::fault::Fault;
use super::layer::{Given, Node};

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
