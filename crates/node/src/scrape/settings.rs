//! What the owner allows.

use std::path::PathBuf;
use std::time::Duration;

use cxmpute_egress::judge::{Domains, Network, Permission};
use cxmpute_egress::pace::Pacer;
use cxmpute_egress::{Connector, Fetcher, Limits, Policy};
use cxmpute_runtime::Clock;
use serde::{Deserialize, Serialize};

/// How the engine calls itself towards hosts; robots.txt files name it `cxmpute-scrape`.
pub const AGENT: &str = concat!("Mozilla/5.0 (compatible; cxmpute-scrape/", env!("CARGO_PKG_VERSION"), ")");
/// Longest wait for a host's turn: twenty pages of one host, one a second, and some of another request.
const PATIENCE: Duration = Duration::from_secs(30);

/// `[scrape]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScrapeSection {
    /// Whether this machine fetches pages for others. Off unless the owner says so (NR50).
    pub enabled: bool,
    /// URLs in one day (UTC); 0 is none.
    pub daily_urls: u64,
    /// Only these domains and what is below them; all when empty.
    pub allow_domains: Vec<String>,
    /// Never these domains and what is below them.
    pub deny_domains: Vec<String>,
    /// Addresses that are fetched although they are not public, such as an own intranet: `10.0.0.0/8` or
    /// `127.0.0.1:8080`. Whoever may use this node may then read what lies there.
    pub allow_addresses: Vec<Permission>,
    /// Addresses that are never fetched. This machine's own are added.
    pub refuse_addresses: Vec<Network>,
    /// Least time between two requests to one host, in milliseconds.
    pub host_gap_ms: u64,
    /// Requests at a time.
    pub slots: u16,
    /// Whether pages may be rendered in a browser, where one is installed.
    pub render: bool,
    /// The browser; `chromium` on the path when absent.
    pub browser: Option<PathBuf>,
    /// The user that the browser runs as when the node runs as root.
    pub browser_user: String,
    /// Most memory of the browser and all its processes, in MiB.
    pub browser_memory_mib: u64,
}

impl Default for ScrapeSection {
    fn default() -> Self {
        Self {
            enabled: false,
            daily_urls: 5000,
            allow_domains: Vec::new(),
            deny_domains: Vec::new(),
            allow_addresses: Vec::new(),
            refuse_addresses: Vec::new(),
            host_gap_ms: 1000,
            slots: 4,
            render: true,
            browser: None,
            browser_user: "nobody".into(),
            browser_memory_mib: 2048,
        }
    }
}

impl ScrapeSection {
    /// What may be asked, given the addresses of this machine.
    #[must_use]
    pub fn policy(&self, own: Vec<Network>) -> Policy {
        Policy {
            allowed: self.allow_addresses.clone(),
            refused: self.refuse_addresses.iter().copied().chain(own).collect(),
            domains: Domains::new(&self.allow_domains, &self.deny_domains),
            ..Policy::default()
        }
    }

    /// The fetcher that keeps to it.
    #[must_use]
    pub fn fetcher(&self, clock: Clock) -> Fetcher {
        let connector = Connector::new(self.policy(own_addresses()));
        let pacer = Pacer::new(Duration::from_millis(self.host_gap_ms), PATIENCE);
        Fetcher::new(connector, Limits::default(), AGENT, clock).paced(pacer)
    }
}

/// The public addresses of this machine: what listens there is not the internet. The others are refused anyway, unless
/// the owner allows them.
fn own_addresses() -> Vec<Network> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the addresses of this machine cannot be read");
            return Vec::new();
        }
    };
    let ip = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|found| found.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|found| found.ip().into()))
    };
    interfaces
        .filter_map(ip)
        .filter(|address| cxmpute_egress::judge::classify(*address) == cxmpute_egress::judge::Class::Public)
        .map(Network::of)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scraping_is_off_until_the_owner_says_so() {
        let section: ScrapeSection = toml::from_str("").unwrap();
        assert!(!section.enabled && section == ScrapeSection::default());
        let text = "enabled = true\nallow_domains = [\"example.com\"]\nallow_addresses = [\"127.0.0.1:80\", \"10.0.0.0/8\"]\n";
        let section: ScrapeSection = toml::from_str(text).unwrap();
        let again: ScrapeSection = serde_json::from_str(&serde_json::to_string(&section).unwrap()).unwrap();
        assert_eq!(again, section);
        assert!(toml::from_str::<ScrapeSection>("allow_addresses = [\"everything\"]").is_err());
    }

    #[test]
    fn the_owners_wishes_reach_the_judge() {
        let section = ScrapeSection {
            deny_domains: vec!["bad.example.com".into()],
            allow_addresses: vec!["127.0.0.1:8080".parse().unwrap()],
            refuse_addresses: vec!["93.184.216.0/24".parse().unwrap()],
            ..ScrapeSection::default()
        };
        let policy = section.policy(vec!["8.8.8.8".parse().unwrap()]);
        let code = |url: &str| policy.target(url).err().map(|refusal| refusal.code());
        assert_eq!(code("https://x.bad.example.com/"), Some("domain_refused"));
        assert_eq!(code("http://127.0.0.1:8080/"), None);
        assert_eq!(code("http://93.184.216.34/"), Some("address_infrastructure"));
        assert_eq!(code("http://8.8.8.8/"), Some("address_infrastructure"));
        assert_eq!(code("http://10.0.0.1/"), Some("address_private"));
    }
}
