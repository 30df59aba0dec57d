//! Whose request it is by address: the peer of the connection, and where that is a configured proxy, the one for whom the
//! proxy speaks. Nothing else that a request says about addresses is believed.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use http::{HeaderMap, HeaderName, header};

use crate::config::{ForwardedHeader, ServerConfig};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The other end of the connection; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The client's address, where the connection is known.
#[must_use]
pub fn client_of(parts: &Parts, server: &ServerConfig) -> Option<IpAddr> {
    let peer = parts.extensions.get::<Peer>()?.0;
    Some(client_address(peer, &parts.headers, server))
}

/// The client's address. The header's hops are read from the right, where our own proxies wrote: the first that is no
/// trusted proxy is the client. What cannot be read ends the walk at the last hop that could, so a forged or broken
/// entry never becomes an address, and never hides the proxy that passed it on.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, server: &ServerConfig) -> IpAddr {
    let mut client = peer.to_canonical();
    #[cfg(feature = "sabotage")]
    if server.trusts_everybody {
        return forged(headers).unwrap_or(client);
    }
    if !server.trusts(client) {
        return client;
    }
    let name = match server.forwarded_header {
        ForwardedHeader::XForwardedFor => &X_FORWARDED_FOR,
        ForwardedHeader::Forwarded => &header::FORWARDED,
    };
    for line in headers.get_all(name).iter().rev() {
        // By bytes: what a client wrote on the left may be anything, and must not spoil what our proxy wrote on the right.
        for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
            let address = std::str::from_utf8(hop).ok().and_then(|hop| match server.forwarded_header {
                ForwardedHeader::XForwardedFor => address(hop),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            });
            let Some(address) = address else { return client };
            client = address;
            if !server.trusts(client) {
                return client;
            }
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::trim);
    let parsed = match bare {
        Some(inner) => inner.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())),
    };
    parsed.map(|address| address.to_canonical())
}

/// The `for` of one element of RFC 7239; obfuscated names are no addresses.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut named = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = named.next()?;
    if named.next().is_some() {
        return None;
    }
    let plain = value.strip_prefix('"').map_or(Some(value), |rest| rest.strip_suffix('"'))?;
    address(plain)
}

/// The known-bad rule of gate G9: whoever says an address is believed.
#[cfg(feature = "sabotage")]
fn forged(headers: &HeaderMap) -> Option<IpAddr> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let listed = text("x-forwarded-for").and_then(|line| address(line.split(',').next()?));
    listed
        .or_else(|| forwarded_for(text("forwarded")?.split(',').next()?))
        .or_else(|| address(text("x-real-ip")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(header: ForwardedHeader) -> ServerConfig {
        ServerConfig {
            trusted_proxies: ["10.0.0.0/8", "2001:db8:ffff::/48"]
                .iter()
                .map(|n| n.parse().unwrap())
                .collect(),
            forwarded_header: header,
            ..ServerConfig::default()
        }
    }

    fn of(peer: &str, header: ForwardedHeader, lines: &[(&str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        client_address(peer.parse().unwrap(), &headers, &server(header)).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_itself_whatever_it_says() {
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "x-user-id", "x-client-ip"] {
            for value in ["10.0.0.1", "1.2.3.4", "for=1.2.3.4", "1.2.3.4, 10.0.0.1"] {
                for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
                    assert_eq!(of("203.0.113.9", header, &[(name, value)]), "203.0.113.9", "{name}: {value}");
                }
            }
        }
    }

    #[test]
    fn hops_are_read_from_the_right_over_all_lines() {
        let xff = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
            of("10.0.0.1", ForwardedHeader::XForwardedFor, &lines)
        };
        assert_eq!(xff(&[]), "10.0.0.1");
        assert_eq!(xff(&["203.0.113.5"]), "203.0.113.5");
        assert_eq!(xff(&["6.6.6.6, 203.0.113.5"]), "203.0.113.5", "what the client wrote is not believed");
        assert_eq!(xff(&["6.6.6.6, 203.0.113.5, 10.9.9.9"]), "203.0.113.5");
        assert_eq!(xff(&["6.6.6.6", "203.0.113.5", "10.9.9.9 , 10.8.8.8"]), "203.0.113.5");
        assert_eq!(xff(&["10.2.2.2, 10.9.9.9"]), "10.2.2.2", "proxies all the way");
        assert_eq!(xff(&["203.0.113.5:4711"]), "203.0.113.5");
        assert_eq!(xff(&["2001:db8::7"]), "2001:db8::7");
        assert_eq!(xff(&["[2001:db8::7]"]), "2001:db8::7");
        assert_eq!(xff(&["[2001:db8::7]:443"]), "2001:db8::7");
        assert_eq!(xff(&["6.6.6.6, 2001:db8:ffff::1"]), "6.6.6.6", "a trusted proxy of IPv6");
        assert_eq!(xff(&["::ffff:203.0.113.5"]), "203.0.113.5");
        assert_eq!(xff(&["6.6.6.6, ::ffff:10.1.1.1"]), "6.6.6.6");
    }

    #[test]
    fn garbage_ends_the_walk_at_the_hop_before_it() {
        let garbage = [
            "unknown",
            "",
            " ",
            "203.0.113.5,",
            "1.2.3",
            "1.2.3.4.5",
            "[1.2.3.4]",
            "[2001:db8::7",
            "a\u{e9}",
            "_hidden",
            "203.0.113.5 10.0.0.2",
            "::1%eth0",
            "localhost",
            "for=1.2.3.4",
        ];
        for value in garbage {
            let lines = [("x-forwarded-for", value)];
            assert_eq!(of("10.0.0.1", ForwardedHeader::XForwardedFor, &lines), "10.0.0.1", "{value}");
            let behind = format!("6.6.6.6, {value}, 10.7.7.7");
            let lines = [("x-forwarded-for", behind.as_str())];
            assert_eq!(of("10.0.0.1", ForwardedHeader::XForwardedFor, &lines), "10.7.7.7", "{value}");
        }
    }

    #[test]
    fn only_the_configured_header_counts() {
        let lines =
            [("forwarded", "for=203.0.113.5"), ("x-real-ip", "5.5.5.5"), ("x-forwarded-for", "203.0.113.6")];
        assert_eq!(of("10.0.0.1", ForwardedHeader::XForwardedFor, &lines), "203.0.113.6");
        assert_eq!(of("10.0.0.1", ForwardedHeader::Forwarded, &lines), "203.0.113.5");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        let forwarded = |line: &str| of("10.0.0.1", ForwardedHeader::Forwarded, &[("forwarded", line)]);
        assert_eq!(forwarded("for=203.0.113.5;proto=https;by=10.0.0.1"), "203.0.113.5");
        assert_eq!(forwarded("For=\"[2001:db8::7]:4711\""), "2001:db8::7");
        assert_eq!(forwarded("for=6.6.6.6, for=203.0.113.5, proto=http;for=10.9.9.9"), "203.0.113.5");
        assert_eq!(forwarded("for=6.6.6.6, for=_gazonk"), "10.0.0.1");
        assert_eq!(forwarded("for=6.6.6.6, for=unknown, for=10.9.9.9"), "10.9.9.9");
        assert_eq!(forwarded("for=1.2.3.4;for=6.6.6.6"), "10.0.0.1");
        assert_eq!(forwarded("for=\"203.0.113.5"), "10.0.0.1");
        assert_eq!(forwarded("by=203.0.113.5"), "10.0.0.1");
    }
}
