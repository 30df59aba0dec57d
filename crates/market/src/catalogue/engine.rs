//! The engines that entries name, and sets of them.

use std::fmt;

macro_rules! engines {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A program that serves models on a node.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Engine { $($(#[$doc])* $variant,)* }

        impl Engine {
            /// Every engine.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name, as it stands in the catalogue, in desired state and in what nodes report.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

engines! {
    /// `cxmpute-engine`, which comes with every node.
    Builtin = "builtin",
    /// The server of llama.cpp.
    LlamaServer = "llama-server",
    /// Ollama, with its own library of models.
    Ollama = "ollama",
    /// vLLM.
    Vllm = "vllm",
    /// espeak-ng, speech.
    EspeakNg = "espeak-ng",
    /// A server of kokoro voices.
    Kokoro = "kokoro",
    /// A server of XTTS voices.
    Xtts = "xtts",
    /// pocketsphinx, recognition of speech.
    Pocketsphinx = "pocketsphinx",
    /// A whisper server.
    Whisper = "whisper",
    /// tesseract, recognition of text in images.
    Tesseract = "tesseract",
    /// The node's own fetcher of pages; present where the owner has opted in.
    Scrape = "scrape",
    /// A container of the image that the entry pins; present where the owner has opted in.
    Docker = "docker",
    /// An OpenAI-compatible server that the owner runs and names in the node's configuration.
    External = "external",
}

impl Engine {
    /// The engine with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|engine| engine.name() == name)
    }

    /// Whether it serves only the models that its owner gave it: nobody can send one there.
    #[must_use]
    pub const fn keeps_own_models(self) -> bool {
        matches!(self, Self::External)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineSet(u16);

impl EngineSet {
    /// The set with this engine, too.
    #[must_use]
    pub const fn with(self, engine: Engine) -> Self {
        Self(self.0 | 1 << engine as u16)
    }

    /// Whether an engine is in it.
    #[must_use]
    pub const fn has(self, engine: Engine) -> bool {
        self.0 & (1 << engine as u16) != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Engine> for EngineSet {
    fn from_iter<I: IntoIterator<Item = Engine>>(engines: I) -> Self {
        engines.into_iter().fold(Self::default(), Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_found_by_its_name_and_has_a_place_in_sets() {
        for (n, engine) in Engine::ALL.iter().copied().enumerate() {
            assert_eq!(Engine::from_name(engine.name()), Some(engine));
            let others: EngineSet = Engine::ALL.iter().copied().filter(|other| *other != engine).collect();
            assert!(!others.has(engine) && others.with(engine).has(engine), "{n}");
            assert!(others.and(EngineSet::default().with(engine)).is_empty());
        }
        assert_eq!(Engine::from_name("Ollama"), None);
    }
}
