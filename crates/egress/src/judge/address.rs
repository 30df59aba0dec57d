//! What an address is, from the special-purpose registries of IANA (RFC 6890 and its successors).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The public internet: the only class that is fetched without an owner's permission.
    Public,
    /// This machine: 127.0.0.0/8, `::1`.
    Loopback,
    /// "This network" or unspecified: 0.0.0.0/8, `::`; systems connect it to themselves.
    Unspecified,
    /// Private use: 10/8, 172.16/12, 192.168/16, fc00::/7, fec0::/10.
    Private,
    /// The link: 169.254/16, fe80::/10.
    LinkLocal,
    /// Behind a carrier's translation, also used by tailnets: 100.64/10.
    Shared,
    /// A tailnet's own range: fd7a:115c:a1e0::/48.
    Tailnet,
    /// An address on which clouds answer with credentials.
    Metadata,
    /// More than one receiver: multicast, broadcast.
    Multicast,
    /// For documentation.
    Documentation,
    /// For benchmarks: 198.18/15, 2001:2::/48.
    Benchmark,
    /// Reserved, for protocols, or outside what is handed out.
    Reserved,
    /// Infrastructure that the operator or owner named as off limits.
    Infrastructure,
    /// An address on which this program itself listens.
    OwnListener,
}

impl Class {
    /// The stable code of a refusal for this reason.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Public => "address_public",
            Self::Loopback => "address_loopback",
            Self::Unspecified => "address_unspecified",
            Self::Private => "address_private",
            Self::LinkLocal => "address_link_local",
            Self::Shared => "address_shared",
            Self::Tailnet => "address_tailnet",
            Self::Metadata => "address_metadata",
            Self::Multicast => "address_multicast",
            Self::Documentation => "address_documentation",
            Self::Benchmark => "address_benchmark",
            Self::Reserved => "address_reserved",
            Self::Infrastructure => "address_infrastructure",
            Self::OwnListener => "address_own_listener",
        }
    }

    /// The end of the sentence "the address is refused: it is …".
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "this machine itself",
            Self::Unspecified => "unspecified",
            Self::Private => "in a private network",
            Self::LinkLocal => "local to a link",
            Self::Shared => "in a carrier's shared range",
            Self::Tailnet => "in a tailnet",
            Self::Metadata => "a cloud's metadata service",
            Self::Multicast => "no single receiver",
            Self::Documentation => "reserved for documentation",
            Self::Benchmark => "reserved for benchmarks",
            Self::Reserved => "reserved",
            Self::Infrastructure => "off limits by configuration",
            Self::OwnListener => "a listener of this program",
        }
    }
}

/// Metadata services of clouds and of Tailscale (SR27).
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(100, 100, 100, 100),
];
/// The same over IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// What this address is. An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP) is what
/// the carried one is, unless the form itself is refused.
#[must_use]
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => Class::Private,
        [100, 64..=127, ..] => Class::Shared,
        [169, 254, ..] => Class::LinkLocal,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Documentation,
        [198, 18 | 19, ..] => Class::Benchmark,
        [224..=239, ..] | [255, 255, 255, 255] => Class::Multicast,
        // Protocol assignments, the anycast of retired 6to4 relays, and what is left for the future.
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    let carried = |high: u16, low: u16| classify_v4(v4(high, low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // Mapped: the system connects to the IPv4 address. NAT64: a gateway does.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
        _ if address == METADATA_V6 => Class::Metadata,
        [0xfd7a, 0x115c, 0xa1e0, ..] => Class::Tailnet,
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Class::Private,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Class::Documentation,
        [0x2001, 2, 0, ..] => Class::Benchmark,
        // Teredo: the server's address in the open, the client's with its bits turned.
        [0x2001, 0, high, low, _, _, hidden_high, hidden_low] => {
            worse(carried(high, low), carried(!hidden_high, !hidden_low))
        }
        // The rest of 2001::/23 is for protocols.
        [0x2001, 1..=0x01ff, ..] => Class::Reserved,
        // 6to4, and ISATAP: an interface identifier that names an IPv4 address to tunnel to.
        [0x2002, high, low, ..] | [0x2000..=0x3fff, _, _, _, 0 | 0x0200, 0x5efe, high, low] => {
            carried(high, low)
        }
        [0x2000..=0x3fff, ..] => Class::Public,
        // Everything that is not global unicast: IPv4-compatible, translated, local NAT64, discard, segment routing.
        _ => Class::Reserved,
    }
}

const fn v4(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

fn worse(one: Class, other: Class) -> Class {
    if one == Class::Public { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_every_range_are_where_the_registries_put_them() {
        let table: [(&str, Class); 62] = [
            ("0.0.0.0", Class::Unspecified),
            ("0.255.255.255", Class::Unspecified),
            ("1.0.0.0", Class::Public),
            ("9.255.255.255", Class::Public),
            ("10.0.0.0", Class::Private),
            ("10.255.255.255", Class::Private),
            ("11.0.0.0", Class::Public),
            ("100.63.255.255", Class::Public),
            ("100.64.0.0", Class::Shared),
            ("100.127.255.255", Class::Shared),
            ("100.128.0.0", Class::Public),
            ("100.100.100.100", Class::Metadata),
            ("100.100.100.200", Class::Metadata),
            ("126.255.255.255", Class::Public),
            ("127.0.0.0", Class::Loopback),
            ("127.255.255.255", Class::Loopback),
            ("168.63.129.16", Class::Metadata),
            ("168.63.129.15", Class::Public),
            ("169.253.255.255", Class::Public),
            ("169.254.0.0", Class::LinkLocal),
            ("169.254.169.254", Class::Metadata),
            ("172.15.255.255", Class::Public),
            ("172.16.0.0", Class::Private),
            ("172.31.255.255", Class::Private),
            ("172.32.0.0", Class::Public),
            ("192.0.0.255", Class::Reserved),
            ("192.0.1.0", Class::Public),
            ("192.0.2.1", Class::Documentation),
            ("192.88.99.1", Class::Reserved),
            ("192.167.255.255", Class::Public),
            ("192.168.0.0", Class::Private),
            ("192.169.0.0", Class::Public),
            ("198.17.255.255", Class::Public),
            ("198.18.0.0", Class::Benchmark),
            ("198.19.255.255", Class::Benchmark),
            ("198.20.0.0", Class::Public),
            ("198.51.100.7", Class::Documentation),
            ("203.0.113.7", Class::Documentation),
            ("223.255.255.255", Class::Public),
            ("224.0.0.0", Class::Multicast),
            ("240.0.0.0", Class::Reserved),
            ("255.255.255.255", Class::Multicast),
            ("::", Class::Unspecified),
            ("::1", Class::Loopback),
            ("::2", Class::Reserved),
            ("::7f00:1", Class::Reserved),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::ffff:8.8.8.8", Class::Public),
            ("::ffff:0:8.8.8.8", Class::Reserved),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("64:ff9b:1::8.8.8.8", Class::Reserved),
            ("100::1", Class::Reserved),
            ("2001:0:808:808::f7f7:f7f7", Class::Public),
            ("2001:0:808:808::80ff:fffe", Class::Loopback),
            ("2001:0:a00:1::f7f7:f7f7", Class::Private),
            ("2001:2::1", Class::Benchmark),
            ("2001:20::1", Class::Reserved),
            ("2001:4860:4860::8888", Class::Public),
            ("2002:7f00:1::", Class::Loopback),
            ("2002:808:808::1", Class::Public),
            ("2a00::5efe:10.0.0.1", Class::Private),
        ];
        for (text, class) in table {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn local_ranges_of_ipv6_are_told_apart() {
        let table = [
            ("fc00::1", Class::Private),
            ("fd7a:115c:a1e0::1", Class::Tailnet),
            ("fd7a:115c:a1e1::1", Class::Private),
            ("fd00:ec2::254", Class::Metadata),
            ("fe80::1", Class::LinkLocal),
            ("febf:ffff::1", Class::LinkLocal),
            ("fec0::1", Class::Private),
            ("ff02::1", Class::Multicast),
            ("2001:db8::1", Class::Documentation),
            ("3fff:fff::1", Class::Documentation),
            ("3fff:1000::1", Class::Public),
            ("4000::1", Class::Reserved),
            ("5f00::1", Class::Reserved),
            ("1fff::1", Class::Reserved),
        ];
        for (text, class) in table {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }
}
