//! Networks, and networks with a port, as an owner writes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address or a network such as `10.0.0.0/8` or `fd00::/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of exactly one address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// The network of an address whose interface has this mask. `None` where they are of different kinds.
    #[must_use]
    pub fn with_mask(address: IpAddr, mask: IpAddr) -> Option<Self> {
        let prefix = match (address, mask) {
            (IpAddr::V4(_), IpAddr::V4(mask)) => mask.to_bits().leading_ones(),
            (IpAddr::V6(_), IpAddr::V6(mask)) => mask.to_bits().leading_ones(),
            _ => return None,
        };
        Some(Self { address, prefix: u8::try_from(prefix).ok()? })
    }

    /// Bits that its addresses have in common.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is inside. IPv4 addresses written as IPv6 count as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither an address nor a network such as 10.0.0.0/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let whole = Self::of(address.parse::<IpAddr>().map_err(|_| wrong())?);
        let Some(prefix) = prefix else { return Ok(whole) };
        let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= whole.prefix).ok_or_else(wrong)?;
        Ok(Self { prefix, ..whole })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What an owner allows although it is not public: a network on the allowed ports (`192.168.7.0/24`), or one address
/// on one port (`127.0.0.1:8080`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    network: Network,
    port: Option<u16>,
}

impl Permission {
    /// The one port it opens, if it names one.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether it allows this address on this port, given the ports that are allowed anyway.
    #[must_use]
    pub fn allows(&self, address: SocketAddr, ports: &[u16]) -> bool {
        let port = self.port.map_or_else(|| ports.contains(&address.port()), |port| port == address.port());
        port && self.network.contains(address.ip())
    }
}

impl From<SocketAddr> for Permission {
    fn from(address: SocketAddr) -> Self {
        Self { network: Network::of(address.ip()), port: Some(address.port()) }
    }
}

impl FromStr for Permission {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let network = text.parse().map_err(|_| {
            format!("`{text}` is no network (10.0.0.0/8) and no address with a port (127.0.0.1:80)")
        })?;
        Ok(Self { network, port: None })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.network.address, port).fmt(f),
            None => self.network.fmt(f),
        }
    }
}

/// Both are read from and written to configurations as text.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(Network);
as_text!(Permission);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.255".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(!network.contains("10.2.0.0".parse().unwrap()));
        let all: Network = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()) && !all.contains("1.1.1.1".parse().unwrap()));
        for wrong in ["10.0.0.0/33", "10.0.0/8", "", "::1/129", "10.0.0.0/-1", "a"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_permission_with_a_port_opens_only_that_port() {
        let one: Permission = "127.0.0.1:8080".parse().unwrap();
        assert!(one.allows("127.0.0.1:8080".parse().unwrap(), &[80]));
        assert!(!one.allows("127.0.0.1:80".parse().unwrap(), &[80]));
        let many: Permission = "10.0.0.0/8".parse().unwrap();
        assert!(many.allows("10.9.9.9:80".parse().unwrap(), &[80]));
        assert!(!many.allows("10.9.9.9:22".parse().unwrap(), &[80]));
        assert_eq!((one.to_string().as_str(), many.to_string().as_str()), ("127.0.0.1:8080", "10.0.0.0/8"));
        assert!("[::1]:99999".parse::<Permission>().is_err());
    }
}
