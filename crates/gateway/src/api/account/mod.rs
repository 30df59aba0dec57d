//! What a user can ask about an account: balance, key, single requests.

pub mod credits;
pub mod generation;
pub mod key;

use serde::Serialize;

/// `{"data": …}`, as the marketplace fields have it.
#[derive(Debug, Serialize)]
pub struct Data<T> {
    /// The object.
    pub data: T,
}
