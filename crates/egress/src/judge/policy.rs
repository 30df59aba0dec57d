//! What is allowed, as a value.

use std::net::{IpAddr, SocketAddr};

use super::{Class, Domains, Nearby, Network, Permission, Refusal, classify};

/// Ports that are fetched by default (NR52).
const PORTS: [u16; 2] = [80, 443];

/// What may be asked. The default: the public internet on ports 80 and 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Ports that may be asked.
    pub ports: Vec<u16>,
    /// What an owner allows on purpose although it is not public.
    pub allowed: Vec<Permission>,
    /// What is never asked, whatever else is allowed: an operator's infrastructure, a machine's own addresses.
    pub refused: Vec<Network>,
    /// The networks that this machine is in: what is there is an owner's and no internet, unless it is allowed on purpose.
    pub nearby: Nearby,
    /// Where this program listens; never asked. An unspecified address stands for this machine on that port.
    pub own: Vec<SocketAddr>,
    /// Which names are wanted.
    pub domains: Domains,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ports: PORTS.to_vec(),
            allowed: Vec::new(),
            refused: Vec::new(),
            nearby: Nearby::default(),
            own: Vec::new(),
            domains: Domains::default(),
        }
    }
}

/// An address that was judged and may be connected to. Only [`Policy`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged(SocketAddr);

impl Judged {
    /// Where to connect.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        self.0
    }

    /// An address that nobody judged: what the known-bad variants use.
    #[cfg(feature = "sabotage")]
    pub(crate) const fn unjudged(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl Policy {
    /// Judges one address.
    ///
    /// # Errors
    /// It is not public and not allowed, or it is off limits.
    pub fn address(&self, address: SocketAddr) -> Result<Judged, Refusal> {
        // A mapped address is connected to as what it means.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let refuse = |class| Err(Refusal::Address { address, class });
        let class = classify(address.ip());
        if self.own.iter().any(|own| is_own(*own, address, class)) {
            return refuse(Class::OwnListener);
        }
        if self.refused.iter().any(|network| network.contains(address.ip())) {
            return refuse(Class::Infrastructure);
        }
        if self.allowed.iter().any(|permission| permission.allows(address, &self.ports)) {
            return Ok(Judged(address));
        }
        if class != Class::Public {
            return refuse(class);
        }
        if self.nearby.contains(address.ip()) {
            return refuse(Class::Infrastructure);
        }
        if !self.ports.contains(&address.port()) {
            return Err(Refusal::Port(address.port()));
        }
        Ok(Judged(address))
    }

    /// Judges all addresses of a name. One refused address refuses the name: whoever mixes a private address among
    /// public ones hopes that the other one is judged.
    ///
    /// # Errors
    /// One of them is refused.
    pub fn addresses(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
        port: u16,
    ) -> Result<Vec<Judged>, Refusal> {
        addresses.into_iter().map(|address| self.address(SocketAddr::new(address, port))).collect()
    }

    /// Whether a URL may name this port at all; the address decides whether it may name it there.
    #[must_use]
    pub fn knows_port(&self, port: u16) -> bool {
        self.ports.contains(&port) || self.allowed.iter().any(|permission| permission.port() == Some(port))
    }
}

fn is_own(own: SocketAddr, address: SocketAddr, class: Class) -> bool {
    if own.port() != address.port() {
        return false;
    }
    let this_machine = matches!(class, Class::Loopback | Class::Unspecified);
    own.ip().to_canonical() == address.ip() || (own.ip().is_unspecified() && this_machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(policy: &Policy, address: &str) -> Result<SocketAddr, &'static str> {
        policy.address(address.parse().unwrap()).map(Judged::address).map_err(|refusal| refusal.code())
    }

    #[test]
    fn a_permission_opens_what_it_names_and_own_listeners_stay_closed() {
        let policy = Policy {
            allowed: vec!["127.0.0.0/8".parse().unwrap(), "127.0.0.1:8080".parse().unwrap()],
            own: vec!["0.0.0.0:443".parse().unwrap()],
            refused: vec!["93.184.216.0/24".parse().unwrap()],
            ..Policy::default()
        };
        assert!(judge(&policy, "127.0.0.1:80").is_ok() && judge(&policy, "127.0.0.1:8080").is_ok());
        assert_eq!(judge(&policy, "127.0.0.2:8080"), Err("address_loopback"));
        assert_eq!(judge(&policy, "127.0.0.1:443"), Err("address_own_listener"));
        assert_eq!(judge(&policy, "93.184.216.34:80"), Err("address_infrastructure"));
        assert_eq!(judge(&policy, "8.8.8.8:8080"), Err("port_refused"));
        assert!(judge(&policy, "8.8.8.8:443").is_ok());
    }

    #[test]
    fn what_lies_around_this_machine_is_no_internet_unless_it_is_allowed() {
        let policy = Policy { allowed: vec!["[2a01:db80:1:2::7]:443".parse().unwrap()], ..Policy::default() };
        let here = ["[2a01:db80:1:2::9]:80", "[2a01:db80:1:2::7]:443", "[2a01:db80:1:3::9]:80"];
        let codes = || here.map(|address| judge(&policy, address).err());
        assert_eq!(codes(), [None, None, None]);
        policy.nearby.set(vec!["2a01:db80:1:2::/64".parse().unwrap()]);
        assert_eq!(codes(), [Some("address_infrastructure"), None, None]);
        // It moves on.
        policy.nearby.set(vec!["2a01:db80:1:3::/64".parse().unwrap()]);
        assert_eq!(codes(), [None, None, Some("address_infrastructure")]);
    }

    #[test]
    fn a_mapped_address_is_judged_and_connected_to_as_what_it_means() {
        let policy = Policy::default();
        assert_eq!(judge(&policy, "[::ffff:127.0.0.1]:80"), Err("address_loopback"));
        assert_eq!(judge(&policy, "[::ffff:8.8.8.8]:80"), Ok("8.8.8.8:80".parse().unwrap()));
    }

    #[test]
    fn one_refused_address_refuses_them_all() {
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let policy = Policy::default();
        assert_eq!(policy.addresses(addresses(&["8.8.8.8", "2001:4860::1"]), 80).unwrap().len(), 2);
        assert!(policy.addresses(addresses(&["8.8.8.8", "10.0.0.1"]), 80).is_err());
    }
}
