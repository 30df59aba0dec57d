//! What an entry can do beyond the usual of its kind. A closed list: a word that nobody checks promises nothing.

use cxmpute_wire::ServiceKind;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident = $name:literal for $($kind:ident)|+,)*) => {
        /// Something an entry can do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Capability { $($(#[$doc])* $variant,)* }

        impl Capability {
            /// Every capability.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name, as it stands in the catalogue.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether entries of a kind may have it.
            #[must_use]
            pub const fn suits(self, kind: ServiceKind) -> bool {
                match self { $(Self::$variant => matches!(kind, $(ServiceKind::$kind)|+),)* }
            }
        }
    };
}

capabilities! {
    /// Calls tools.
    Tools = "tools" for Llm,
    /// Takes images beside text.
    Vision = "vision" for Llm,
    /// Output is held to a JSON schema.
    JsonSchema = "json_schema" for Llm,
    /// Gives the probabilities of its tokens.
    Logprobs = "logprobs" for Llm,
    /// Thinks before it answers.
    Reasoning = "reasoning" for Llm,
    /// Reads text in images.
    Ocr = "ocr" for Llm | Vision,
    /// Describes images.
    Caption = "caption" for Llm | Vision,
    /// Answers questions about images.
    Query = "query" for Llm | Vision,
    /// Finds things in images as boxes.
    Detect = "detect" for Llm | Vision,
    /// Finds things in images as points.
    Point = "point" for Llm | Vision,
    /// Runs the scripts of a page before it reads it.
    Render = "render" for Scrape,
}

impl Capability {
    /// The capability with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|capability| capability.name() == name)
    }
}
