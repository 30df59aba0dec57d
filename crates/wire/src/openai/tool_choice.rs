//! Which of the declared tools the model may, must or must not call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `tool_choice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// In general.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// `tool_choice` as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// No call; the model does not hear of the tools.
    None,
    /// As the model likes.
    Auto,
    /// At least one call.
    Required,
}

/// `tool_choice` as an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function to call.
    pub function: NamedFunction,
}

/// A function by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedFunction {
    /// Name of a declared function.
    pub name: String,
}

/// `function_call`, the old form of [`ToolChoice`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FunctionChoice {
    /// In general.
    Mode(ToolMode),
    /// This one.
    Named(NamedFunction),
}

impl ToolChoice {
    /// Whether no call is allowed.
    #[must_use]
    pub fn forbids(&self) -> bool {
        matches!(self, Self::Mode(ToolMode::None))
    }

    /// Whether the output must be a call: of the named function, or of any.
    #[must_use]
    pub fn forces(&self) -> bool {
        matches!(self, Self::Mode(ToolMode::Required) | Self::Named(_))
    }

    /// The one function that must be called.
    #[must_use]
    pub fn named(&self) -> Option<&str> {
        match self {
            Self::Named(tool) => Some(&tool.function.name),
            Self::Mode(_) => None,
        }
    }
}

impl From<FunctionChoice> for ToolChoice {
    fn from(old: FunctionChoice) -> Self {
        match old {
            FunctionChoice::Mode(mode) => Self::Mode(mode),
            FunctionChoice::Named(function) => Self::Named(NamedTool { kind: "function".into(), function }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_alike() {
        for (text, forces, forbids, named) in [
            (r#""none""#, false, true, None),
            (r#""auto""#, false, false, None),
            (r#""required""#, true, false, None),
            (r#"{"type":"function","function":{"name":"f"}}"#, true, false, Some("f")),
        ] {
            let choice: ToolChoice = serde_json::from_str(text).unwrap();
            assert_eq!((choice.forces(), choice.forbids(), choice.named()), (forces, forbids, named));
            assert_eq!(serde_json::to_string(&choice).unwrap(), text);
        }
        assert!(serde_json::from_str::<ToolChoice>(r#""maybe""#).is_err());
        let old: FunctionChoice = serde_json::from_str(r#"{"name":"f"}"#).unwrap();
        assert_eq!(ToolChoice::from(old).named(), Some("f"));
    }
}
