//! Which names an owner wants or does not want to be asked.

use super::{Host, Refusal};

/// Domains that are allowed or denied. A domain stands for itself and everything below it; denying goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    allowed: Vec<String>,
    denied: Vec<String>,
}

impl Domains {
    /// Only `allowed` (everything when empty), never `denied`. `*.example.com` and `.example.com` mean `example.com`.
    #[must_use]
    pub fn new(allowed: &[String], denied: &[String]) -> Self {
        Self { allowed: all_plain(allowed), denied: all_plain(denied) }
    }

    /// Judges a host. An address is allowed only where no names are asked for, or where it is named itself.
    ///
    /// # Errors
    /// The owner does not want it.
    pub(super) fn judge(&self, host: &Host) -> Result<(), Refusal> {
        let text = host.to_string();
        let names = |domain: &String| {
            text == *domain || text.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        let wanted = self.allowed.is_empty() || self.allowed.iter().any(names);
        if wanted && !self.denied.iter().any(names) { Ok(()) } else { Err(Refusal::Domain(text)) }
    }
}

fn all_plain(domains: &[String]) -> Vec<String> {
    domains.iter().map(|domain| plain(domain)).collect()
}

fn plain(domain: &str) -> String {
    let domain = domain.trim().trim_start_matches("*.").trim_matches('.');
    // Owners write names as they read them; URLs carry them in ASCII.
    match url::Host::parse(domain) {
        Ok(host) => host.to_string(),
        Err(_) => domain.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_stands_for_what_is_below_it_and_for_nothing_beside_it() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let domains =
            Domains::new(&list(&["Example.com", "bücher.de", "8.8.8.8"]), &list(&["*.ads.example.com"]));
        let allows = |host: &str| domains.judge(&Host::Name(host.into())).is_ok();
        assert!(allows("example.com") && allows("www.example.com") && allows("xn--bcher-kva.de"));
        assert!(!allows("notexample.com") && !allows("example.com.evil.org") && !allows("example.org"));
        assert!(!allows("ads.example.com") && !allows("x.ads.example.com") && allows("loads.example.com"));
        assert!(domains.judge(&Host::Address("8.8.8.8".parse().unwrap())).is_ok());
        assert!(domains.judge(&Host::Address("8.8.4.4".parse().unwrap())).is_err());
        assert!(Domains::default().judge(&Host::Name("anything.org".into())).is_ok());
    }
}
