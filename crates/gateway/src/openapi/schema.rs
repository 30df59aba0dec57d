//! Schemas of the types: what is read (missing and null mean the same, further fields are dropped) and what is written
//! (closed, and a field that is left out is never null).

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{bounds, errors};
use crate::router::operation::SchemaOf;

const COMPONENTS: &str = "#/components/schemas/";
/// Where references of requests point until it is known which names are taken by answers.
const INPUTS: &str = "#/inputs/";

/// Collects the schemas of a document.
pub struct Schemas {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

impl Schemas {
    /// No schemas.
    pub fn new() -> Self {
        let settings = SchemaSettings::draft2020_12();
        let path = |path: &str| path.trim_start_matches('#').trim_end_matches('/').to_owned();
        let mut read = settings.clone().for_deserialize();
        read.definitions_path = path(INPUTS).into();
        let mut written = settings.for_serialize();
        written.definitions_path = path(COMPONENTS).into();
        Self { read: read.into_generator(), written: written.into_generator() }
    }

    /// The schema of a body that is read.
    pub fn read(&mut self, of: SchemaOf) -> Value {
        let mut schema = of(&mut self.read).to_value();
        rename(&mut schema);
        schema
    }

    /// The schema of a body that is written.
    pub fn written(&mut self, of: SchemaOf) -> Value {
        let mut schema = of(&mut self.written).to_value();
        close(&mut schema);
        schema
    }

    /// All schemas by name.
    pub fn finish(mut self) -> Map<String, Value> {
        self.assemble().0
    }

    /// Bounds whose field is in no schema.
    #[cfg(test)]
    pub fn unmet_bounds(mut self) -> Vec<String> {
        self.assemble().1
    }

    fn assemble(&mut self) -> (Map<String, Value>, Vec<String>) {
        let mut all = Map::new();
        for (name, mut schema) in self.written.take_definitions(true) {
            close(&mut schema);
            all.insert(name, schema);
        }
        for (name, mut schema) in self.read.take_definitions(true) {
            rename(&mut schema);
            forget_nothing(&mut schema);
            all.insert(input_name(&name), schema);
        }
        errors::complete_shapes(&mut all);
        let unmet = bounds::apply(&mut all);
        all.sort_keys();
        (all, unmet)
    }
}

/// Types that are read and written have two schemas; the one that is read says so in its name, unless the type does.
fn input_name(name: &str) -> String {
    let says_so = name.ends_with("Request") || name.ends_with("Input") || name.starts_with("Seed");
    if says_so { name.to_owned() } else { format!("{name}Input") }
}

/// Points references at the final names.
fn rename(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get_mut("$ref")
                && let Some(name) = target.strip_prefix(INPUTS)
            {
                *target = format!("{COMPONENTS}{}", input_name(name));
            }
            fields.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

/// A default of null says nothing.
fn forget_nothing(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("default") == Some(&Value::Null) {
                fields.remove("default");
            }
            fields.values_mut().for_each(forget_nothing);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_nothing),
        _ => {}
    }
}

/// Answers hold the described fields and no others; a field that may be left out is left out instead of null.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("default");
            let required: Vec<String> = fields
                .get("required")
                .and_then(Value::as_array)
                .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default();
            if let Some(Value::Object(properties)) = fields.get_mut("properties") {
                let optional = properties.iter_mut().filter(|(name, _)| !required.contains(name));
                optional.for_each(|(_, schema)| never_null(schema));
                fields.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn never_null(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let null = Value::String("null".to_owned());
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|kind| *kind != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&null));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            fields.remove("anyOf");
            fields.extend(only);
        }
    }
}
