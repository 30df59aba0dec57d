//! What a user can ask about an account: balance, key, single requests.

pub mod credits;
pub mod generation;
pub mod key;

use schemars::JsonSchema;
use serde::Serialize;

/// `{"data": …}`, as the marketplace fields have it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Answer")]
pub struct Data<T> {
    /// The object.
    pub data: T,
}
