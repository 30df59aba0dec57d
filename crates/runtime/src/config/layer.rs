//! The layers as one tree: each node knows its key and its value in every layer. `read.rs` turns it into the wanted type.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::Value;

use super::error::{ConfigError, Origin, closest, edits};
use super::fault::Fault;

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
pub(super) enum Given<'a> {
    /// Text from the environment or a flag: read as what the key wants.
    Text(Origin, &'a str),
    Value(Origin, &'a Value),
    Nothing,
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

    pub(super) fn child(&self, name: &str) -> Self {
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

    pub(super) fn item(&self, index: usize, value: &'a Value, origin: &Origin) -> Self {
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

    pub(super) fn given(&self) -> Given<'a> {
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
    pub(super) fn is_present(&self, siblings: &[&str], parent: &Node<'_>) -> bool {
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
    pub(super) fn locate(&self, fault: Fault) -> Fault {
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

    pub(super) fn wrong(&self, expected: impl Into<String>) -> Fault {
        self.locate(Fault::Bare { expected: expected.into() })
    }

    pub(super) fn check_keys(&self, fields: &'static [&'static str]) -> Result<(), Fault> {
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
    pub(super) fn check_section(&self) -> Result<(), Fault> {
        match self.given() {
            Given::Value(_, Value::Table(_)) | Given::Nothing => Ok(()),
            Given::Text(..) | Given::Value(..) => Err(self.wrong("a section with keys")),
        }
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = BTreeSet::new();
        for layer in [self.default, self.file, self.flag] {
            if let Some(table) = layer.and_then(Value::as_table) {
                keys.extend(table.keys().cloned());
            }
        }
        keys.into_iter().collect()
    }
}
