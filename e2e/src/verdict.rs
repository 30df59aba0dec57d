//! What a gate found: named assertions, each held or broken, with what was seen.

use std::fmt::Display;
use std::io::Write as _;
use std::time::Duration;

use crate::settings;

/// One assertion of a gate.
#[derive(Clone, Debug)]
pub struct Check {
    /// The name by which a known-bad variant is expected to be caught.
    pub name: &'static str,
    /// Whether it held.
    pub held: bool,
    /// What was seen, for the reader of a failure.
    pub seen: String,
}

/// The outcome of one gate.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The id of the gate in the table, such as `L1`.
    pub gate: &'static str,
    /// How many times the thing was done.
    pub count: u64,
    checks: Vec<Check>,
    measured: Vec<String>,
}

impl Verdict {
    /// An empty verdict of a gate.
    #[must_use]
    pub fn new(gate: &'static str) -> Self {
        Self { gate, count: 0, checks: Vec::new(), measured: Vec::new() }
    }

    /// Notes one assertion. The same name may be noted often; it held only if it held every time.
    pub fn check(&mut self, name: &'static str, held: bool, seen: impl Display) {
        let seen = seen.to_string();
        match self.checks.iter_mut().find(|check| check.name == name) {
            Some(earlier) if earlier.held => {
                earlier.held = held;
                earlier.seen = seen;
            }
            Some(_) => {}
            None => self.checks.push(Check { name, held, seen }),
        }
    }

    /// Notes that two values must be equal.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &'static str, seen: &T, wanted: &T) {
        self.check(name, seen == wanted, format!("saw {seen:?}, wanted {wanted:?}"));
    }

    /// Reports the 99th percentile and the longest of some spans beside the figure that the rules name, whatever the
    /// assertions allow a loaded machine.
    pub fn measured(&mut self, what: &str, wanted: Duration, mut spans: Vec<Duration>) {
        spans.sort_unstable();
        let Some(longest) = spans.last() else { return };
        let p99 = spans[(spans.len() * 99).div_ceil(100) - 1];
        self.measured.push(format!(
            "{what}: p99 {p99:.1?}, longest {longest:.1?} of {} (rule {wanted:?})",
            spans.len()
        ));
    }

    /// The assertions that broke.
    #[must_use]
    pub fn broken(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| !check.held).collect()
    }

    /// Every assertion must have held. Writes the gate's row for the table of `scripts/test`.
    ///
    /// # Panics
    /// If an assertion broke, or if there was none.
    pub fn must_hold(&self) {
        assert!(!self.checks.is_empty(), "gate {} asserted nothing", self.gate);
        let broken = self.broken();
        self.record("clean", if broken.is_empty() { "held" } else { "BROKEN" });
        assert!(broken.is_empty(), "gate {} after {} runs: {broken:#?}", self.gate, self.count);
    }

    /// The named assertion must have broken: the known-bad variant was caught where the gate says.
    ///
    /// # Panics
    /// If that assertion held, or was never made.
    pub fn must_break(&self, name: &str, variant: &str) {
        let check = self.checks.iter().find(|check| check.name == name);
        let caught = check.is_some_and(|check| !check.held);
        self.record(
            "bad",
            &if caught { format!("{variant}: {name}") } else { format!("{variant} NOT CAUGHT") },
        );
        assert!(
            caught,
            "gate {} did not catch `{variant}` in `{name}` ({check:?}); a test that cannot fail is no gate. Others: {:#?}",
            self.gate,
            self.broken()
        );
    }

    fn record(&self, kind: &str, text: &str) {
        let Some(folder) = settings::variable("CXMPUTE_GATE_ROWS") else { return };
        let path = std::path::Path::new(&folder).join(format!("{}.{kind}", self.gate));
        let line = format!("{}\t{}\t{text}\t{}\n", self.gate, self.count, self.measured.join("; "));
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "the gate row {} could not be written: {written:?}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn an_assertion_that_broke_once_stays_broken() {
        let mut verdict = Verdict::new("T0");
        verdict.check("steady", true, "");
        verdict.check("steady", false, "the second time");
        verdict.check("steady", true, "");
        assert_eq!(verdict.broken().len(), 1);
        assert_eq!(verdict.broken()[0].seen, "the second time");
    }

    #[test]
    #[should_panic(expected = "no gate")]
    fn a_variant_that_slips_through_is_a_failure() {
        let mut verdict = Verdict::new("T0");
        verdict.check("steady", true, "");
        verdict.must_break("steady", "a harmless change");
    }
}
