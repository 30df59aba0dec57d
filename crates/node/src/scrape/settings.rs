//! What the owner allows.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cxmpute_egress::judge::{Class, Domains, Nearby, Network, Permission, classify};
use cxmpute_egress::pace::Pacer;
use cxmpute_egress::{Connector, Fetcher, Limits, Policy};
use cxmpute_runtime::Clock;
use nix::sys::socket::SockaddrStorage;
use serde::{Deserialize, Serialize};

/// How the engine calls itself towards hosts; robots.txt files name it `cxmpute-scrape`.
pub const AGENT: &str = concat!("Mozilla/5.0 (compatible; cxmpute-scrape/", env!("CARGO_PKG_VERSION"), ")");
/// Longest wait for a host's turn: twenty pages of one host, one a second, and some of another request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked which networks this machine is in.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The shortest prefixes that are taken for a network around this machine.
const LEAST_PREFIX_V4: u8 = 16;
/// The same of IPv6.
const LEAST_PREFIX_V6: u8 = 48;

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
    /// Addresses that are never fetched. This machine's own are added, and the networks that it is in.
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
    /// What may be asked, given the addresses of this machine and the networks that it is in.
    #[must_use]
    pub fn policy(&self, own: Vec<Network>, nearby: Nearby) -> Policy {
        Policy {
            allowed: self.allow_addresses.clone(),
            refused: self.refuse_addresses.iter().copied().chain(own).collect(),
            nearby,
            domains: Domains::new(&self.allow_domains, &self.deny_domains),
            ..Policy::default()
        }
    }

    /// The fetcher that keeps to it; `nearby` is filled.
    #[must_use]
    pub fn fetcher(&self, clock: Clock, nearby: &Nearby) -> Fetcher {
        let interfaces = interfaces();
        nearby.set(networks(&interfaces));
        let own = interfaces.into_iter().map(|(address, _)| Network::of(address)).collect();
        let connector = Connector::new(self.policy(own, nearby.clone()));
        let pacer = Pacer::new(Duration::from_millis(self.host_gap_ms), PATIENCE);
        Fetcher::new(connector, Limits::default(), AGENT, clock).paced(pacer)
    }
}

/// Looks again and again which networks this machine is in.
pub async fn watch(nearby: Nearby) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        nearby.set(networks(&interfaces()));
    }
}

/// The public addresses of this machine with the masks of their networks: what listens there is not the internet. The others
/// are refused anyway, unless the owner allows them.
fn interfaces() -> Vec<(IpAddr, Option<IpAddr>)> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the addresses of this machine cannot be read");
            return Vec::new();
        }
    };
    let ip = |address: &SockaddrStorage| -> Option<IpAddr> {
        let v4 = address.as_sockaddr_in().map(|found| found.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|found| found.ip().into()))
    };
    interfaces
        .filter_map(|interface| {
            Some((ip(interface.address.as_ref()?)?, interface.netmask.as_ref().and_then(ip)))
        })
        .filter(|(address, _)| classify(*address) == Class::Public)
        .collect()
}

/// The networks of these addresses. A mask that spans a continent is that of a tunnel and tells nothing of what is near.
fn networks(interfaces: &[(IpAddr, Option<IpAddr>)]) -> Vec<Network> {
    let of = |(address, mask): &(IpAddr, Option<IpAddr>)| {
        let whole = mask.and_then(|mask| Network::with_mask(*address, mask));
        let least = if address.is_ipv4() { LEAST_PREFIX_V4 } else { LEAST_PREFIX_V6 };
        whole.filter(|network| network.prefix() >= least).unwrap_or(Network::of(*address))
    };
    interfaces.iter().map(of).collect()
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
        let policy = section.policy(vec!["8.8.8.8".parse().unwrap()], Nearby::default());
        let code = |url: &str| policy.target(url).err().map(|refusal| refusal.code());
        assert_eq!(code("https://x.bad.example.com/"), Some("domain_refused"));
        assert_eq!(code("http://127.0.0.1:8080/"), None);
        assert_eq!(code("http://93.184.216.34/"), Some("address_infrastructure"));
        assert_eq!(code("http://8.8.8.8/"), Some("address_infrastructure"));
        assert_eq!(code("http://10.0.0.1/"), Some("address_private"));
    }

    #[test]
    fn the_network_of_an_interface_is_near_and_half_the_world_is_not() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let of = |address: &str, mask: Option<&str>| {
            let networks = networks(&[(ip(address), mask.map(ip))]);
            networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("2a01:db80:1:2::5", Some("ffff:ffff:ffff:ffff::")), "2a01:db80:1:2::5/64");
        assert_eq!(of("93.184.216.34", Some("255.255.255.0")), "93.184.216.34/24");
        for (address, mask) in [("93.184.216.34", Some("0.0.0.0")), ("93.184.216.34", None)] {
            assert_eq!(of(address, mask), "93.184.216.34/32");
        }
        assert_eq!(of("2a01:db80:1:2::5", Some("fe00::")), "2a01:db80:1:2::5/128");
        assert_eq!(of("2a01:db80:1:2::5", Some("255.255.255.0")), "2a01:db80:1:2::5/128");
    }
}
