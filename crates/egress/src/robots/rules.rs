//! The rules of one robots.txt for one agent.

/// Rules that are kept; a file of half a megabyte could hold a hundred thousand.
const RULES_LIMIT: usize = 5000;
/// Longest pattern that is kept, in bytes.
const PATTERN_LIMIT_BYTES: usize = 1024;
/// What one question may cost, in bytes compared. A file of half a megabyte without stars costs less than an eighth of it
/// with any path; one that is made to cost more counts as a no.
const STEPS_LIMIT: usize = 4 * 1024 * 1024;

/// What a robots.txt allows one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those that decide first are first.
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    pattern: String,
}

impl Rules {
    /// Reads the groups that name `product` (in lower case), or, if none does, those for everybody.
    #[must_use]
    pub fn parse(text: &[u8], product: &str) -> Self {
        let text = String::from_utf8_lossy(text);
        let (mut ours, mut everybodys) = (Vec::new(), Vec::new());
        let (mut for_us, mut for_all, mut named) = (false, false, false);
        let mut in_names = false;
        for line in text.trim_start_matches('\u{feff}').split(['\r', '\n']) {
            let line = line.split('#').next().unwrap_or_default();
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            match key.as_str() {
                "user-agent" => {
                    if !in_names {
                        (for_us, for_all) = (false, false);
                    }
                    in_names = true;
                    for_all |= value == "*";
                    if names(value, product) {
                        (for_us, named) = (true, true);
                    }
                }
                "allow" | "disallow" => {
                    in_names = false;
                    if value.is_empty() || value.len() > PATTERN_LIMIT_BYTES {
                        continue;
                    }
                    let rule = Rule { allow: key == "allow", pattern: normal(value) };
                    if for_us && ours.len() < RULES_LIMIT {
                        ours.push(rule.clone());
                    }
                    if for_all && everybodys.len() < RULES_LIMIT {
                        everybodys.push(rule);
                    }
                }
                // Sitemaps and what others invented belong to no group and end none.
                _ => {}
            }
        }
        let mut rules = if named { ours } else { everybodys };
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.pattern.len(), rule.allow)));
        Self { rules }
    }

    /// Whether a path with its query may be fetched: the longest pattern that matches decides, and of two equally
    /// long ones the one that allows. Rules that cost too much to ask allow nothing.
    #[must_use]
    pub fn allow(&self, path: &str) -> bool {
        if path == "/robots.txt" {
            return true;
        }
        let path = normal(path);
        let mut steps = STEPS_LIMIT;
        for rule in &self.rules {
            match matches(rule.pattern.as_bytes(), path.as_bytes(), &mut steps) {
                Some(false) => {}
                Some(true) => return rule.allow,
                None => return false,
            }
        }
        true
    }

    /// Memory that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rules.iter().map(|rule| size_of::<Rule>() + rule.pattern.capacity()).sum()
    }
}

/// Whether a `User-agent` line names the product: its leading letters are the product token, whatever follows.
fn names(value: &str, product: &str) -> bool {
    let end = value.find(|c: char| !c.is_ascii_alphabetic() && c != '-' && c != '_').unwrap_or(value.len());
    !product.is_empty() && value[..end].eq_ignore_ascii_case(product)
}

/// Percent-encoding in one form: letters, digits, `-._~` bare, everything else that was encoded in upper case, bytes
/// beyond ASCII encoded.
fn normal(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let encoded = (byte == b'%').then(|| hex(bytes.get(at + 1), bytes.get(at + 2))).flatten();
        let (value, was_encoded) = encoded.map_or((byte, false), |value| (value, true));
        at += if was_encoded { 3 } else { 1 };
        let bare = value.is_ascii_alphanumeric() || b"-._~".contains(&value);
        if value.is_ascii() && (bare || !was_encoded) {
            out.push(char::from(value));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(value >> 4)]));
            out.push(char::from(HEX[usize::from(value & 15)]));
        }
    }
    out
}

fn hex(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high?)? << 4 | digit(low?)?)
}

/// Whether the path begins with the pattern; `*` stands for anything, a last `$` for the end. Going back only to the
/// last star keeps the time at pattern times path. `None` once the steps that are left are used up.
fn matches(pattern: &[u8], path: &[u8], steps: &mut usize) -> Option<bool> {
    let (pattern, to_the_end) = match pattern.strip_suffix(b"$") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        *steps = steps.checked_sub(1)?;
        if p == pattern.len() {
            if !to_the_end || t == path.len() {
                return Some(true);
            }
        } else if pattern[p] == b'*' {
            back = Some((p + 1, t));
            p += 1;
            continue;
        } else if path.get(t) == Some(&pattern[p]) {
            (p, t) = (p + 1, t + 1);
            continue;
        }
        match back {
            Some((after, from)) if from < path.len() => {
                back = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str, path: &str) -> bool {
        Rules::parse(text.as_bytes(), "cxmpute-scrape").allow(path)
    }

    #[test]
    fn the_longest_rule_decides_and_a_tie_allows() {
        let text = "user-agent: *\ndisallow: /a\nallow: /a/b\nallow: /c\ndisallow: /c\n";
        assert!(!allows(text, "/a") && !allows(text, "/abc") && allows(text, "/a/b/c"));
        assert!(allows(text, "/c") && allows(text, "/d"));
        assert!(allows("", "/") && allows("User-agent: *\nDisallow:\n", "/"));
        assert!(
            !allows("User-agent: *\nDisallow: /", "/x")
                && allows("User-agent: *\nDisallow: /", "/robots.txt")
        );
    }

    #[test]
    fn our_own_group_goes_before_everybodys() {
        let text = "User-Agent: other\nUser-agent: Cxmpute-Scrape/2.0 # us\nDisallow: /us\n\nUser-agent: *\nDisallow: /\n\
                    User-agent: cxmpute-scrape\nSitemap: /s\nDisallow: /too\n";
        assert!(!allows(text, "/us") && !allows(text, "/too") && allows(text, "/others"));
        assert!(allows("User-agent: cxmpute-scraper\nDisallow: /", "/"));
        assert!(!allows("user-agent: *\r\ndisallow: /x\r\n", "/x"));
        assert!(allows(
            "user-agent: cxmpute-scrape\nuser-agent: b\nallow: /\nuser-agent: *\ndisallow: /",
            "/x"
        ));
    }

    #[test]
    fn stars_and_ends_are_understood() {
        let text =
            "user-agent: *\ndisallow: /*.php$\ndisallow: /x*y*z\ndisallow: /%7Ejoe\ndisallow: /\u{e4}\n";
        assert!(!allows(text, "/index.php") && allows(text, "/index.php?a") && allows(text, "/index.phps"));
        assert!(!allows(text, "/a.php.php") && !allows(text, "/x-y-z-") && allows(text, "/x-z-y"));
        assert!(!allows(text, "/~joe/") && !allows(text, "/%7ejoe") && !allows(text, "/%C3%A4"));
    }

    #[test]
    fn a_hostile_pattern_costs_little() {
        let text = format!("user-agent: *\ndisallow: /{}b\n", "*a".repeat(400));
        assert!(allows(&text, &format!("/{}", "a".repeat(8000))));
    }

    #[test]
    fn a_hostile_file_costs_little_and_allows_nothing() {
        let rules: String = (0..400).map(|n| format!("disallow: /*{}b{n}\n", "a".repeat(1000 - n))).collect();
        let text = format!("user-agent: *\n{rules}");
        let begun = std::time::Instant::now();
        assert!(!allows(&text, &format!("/{}", "a".repeat(8000))));
        assert!(begun.elapsed() < std::time::Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(allows(&text, "/short"), "an honest path is asked to the end");
    }
}
