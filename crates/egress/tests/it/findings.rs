//! What a gate found: named assertions, and its row in the table that `scripts/test` prints.

use std::collections::BTreeMap;
use std::io::Write as _;

/// The outcome of one gate.
pub struct Findings {
    gate: &'static str,
    /// How many cases were tried.
    pub count: u64,
    /// What was seen where an assertion broke for the first time; none where it held.
    checks: BTreeMap<&'static str, Option<String>>,
}

impl Findings {
    pub fn new(gate: &'static str) -> Self {
        Self { gate, count: 0, checks: BTreeMap::new() }
    }

    /// Notes one assertion; it held only if it held every time.
    pub fn check(&mut self, name: &'static str, held: bool, seen: impl std::fmt::Display) {
        let first = self.checks.entry(name).or_default();
        if !held && first.is_none() {
            *first = Some(seen.to_string());
        }
    }

    fn broken(&self) -> Vec<(&str, &str)> {
        self.checks.iter().filter_map(|(name, seen)| Some((*name, seen.as_deref()?))).collect()
    }

    /// Every assertion held.
    pub fn must_hold(&self) {
        let broken = self.broken();
        self.record("clean", if broken.is_empty() { "held" } else { "BROKEN" });
        assert!(!self.checks.is_empty() && broken.is_empty(), "gate {}: {broken:#?}", self.gate);
    }

    /// The named assertion caught the known-bad variant.
    #[cfg(feature = "sabotage")]
    pub fn must_break(&self, name: &'static str, variant: &str) {
        let caught = matches!(self.checks.get(name), Some(Some(_)));
        let text = if caught { format!("{variant}: {name}") } else { format!("{variant} NOT CAUGHT") };
        self.record("bad", &text);
        assert!(caught, "gate {} did not catch `{variant}` in `{name}`: {:#?}", self.gate, self.broken());
    }

    fn record(&self, kind: &str, text: &str) {
        let Some(folder) = cxmpute_runtime::config::env_var("CXMPUTE_GATE_ROWS") else { return };
        let path = std::path::Path::new(&folder).join(format!("{}.{kind}", self.gate));
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{}\t{}\t{text}\t", self.gate, self.count).unwrap();
    }
}
