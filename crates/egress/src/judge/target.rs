//! A URL that may be asked, as far as the URL alone tells.

use std::net::{IpAddr, SocketAddr};

use url::Url;

use super::{Policy, Refusal};

/// Longest URL, in bytes; what the API takes as an URI (gateway.md section 9).
const URL_LIMIT_BYTES: usize = 8 * 1024;
/// Longest name of the DNS in text.
const NAME_LIMIT_BYTES: usize = 253;
/// Longest label of such a name.
const LABEL_LIMIT_BYTES: usize = 63;
/// Suffixes that only mean something in a local network (RFC 6761, RFC 6762, RFC 8375, and what routers use).
const LOCAL_SUFFIXES: [&str; 11] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "home.arpa",
    "onion",
];

/// Whom a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case, in ASCII, without a trailing dot.
    Name(String),
    /// An address, whatever its spelling was.
    Address(IpAddr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A URL that passed every check that needs no resolver. Only [`Policy::target`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: Url,
    host: Host,
    port: u16,
}

impl Target {
    /// The URL as it was understood: normalised, without a fragment.
    #[must_use]
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// Whom it names.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The port to connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is secured.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// `host` or `host:port`, as it stands in the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.url.port() {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }

    /// Whether two URLs share scheme, host and port: the bounds within which credentials may travel.
    #[must_use]
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.is_https(), &self.host, self.port) == (other.is_https(), &other.host, other.port)
    }

    /// A target that nobody judged: what a known-bad variant follows.
    #[cfg(feature = "sabotage")]
    pub(crate) fn unjudged(url: Url) -> Option<Self> {
        let host = match url.host()? {
            url::Host::Domain(name) => Host::Name(name.to_owned()),
            url::Host::Ipv4(address) => Host::Address(address.into()),
            url::Host::Ipv6(address) => Host::Address(address.into()),
        };
        let port = url.port_or_known_default()?;
        Some(Self { url, host, port })
    }
}

impl Policy {
    /// Judges a URL: its characters, scheme, user, host and port, and its address if the host is one.
    ///
    /// # Errors
    /// It may not be asked.
    pub fn target(&self, text: &str) -> Result<Target, Refusal> {
        if text.len() > URL_LIMIT_BYTES {
            return Err(Refusal::TooLong { limit_bytes: URL_LIMIT_BYTES });
        }
        check_text(text)?;
        let url = Url::parse(text).map_err(|error| Refusal::Syntax(error.to_string()))?;
        self.parsed(url)
    }

    /// Judges where a redirect of `from` leads.
    ///
    /// # Errors
    /// It may not be asked.
    pub fn redirected(&self, from: &Target, location: &str) -> Result<Target, Refusal> {
        if location.len() > URL_LIMIT_BYTES {
            return Err(Refusal::TooLong { limit_bytes: URL_LIMIT_BYTES });
        }
        check_characters(location)?;
        let url = from.url.join(location).map_err(|error| Refusal::Syntax(error.to_string()))?;
        // A relative location inherits what was judged; the whole is judged again as text, like any other URL.
        self.target(url.as_str())
    }

    fn parsed(&self, mut url: Url) -> Result<Target, Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Userinfo);
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.knows_port(port) {
            return Err(Refusal::Port(port));
        }
        let host = match url.host() {
            None => return Err(Refusal::Host(String::new())),
            Some(url::Host::Ipv4(address)) => Host::Address(address.into()),
            Some(url::Host::Ipv6(address)) => Host::Address(address.into()),
            Some(url::Host::Domain(name)) => Host::Name(self.name(name)?),
        };
        self.domains.judge(&host)?;
        match &host {
            Host::Address(address) => {
                self.address(SocketAddr::new(*address, port))?;
            }
            Host::Name(name) => {
                url.set_host(Some(name)).map_err(|error| Refusal::Syntax(error.to_string()))?;
            }
        }
        url.set_fragment(None);
        Ok(Target { url, host, port })
    }

    /// Checks a name and takes its trailing dot off.
    fn name(&self, name: &str) -> Result<String, Refusal> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let label_is_good = |label: &str| {
            let characters =
                label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            characters && !label.is_empty() && label.len() <= LABEL_LIMIT_BYTES
        };
        // No top-level domain begins with a digit; resolvers of the C library take some such names for addresses.
        let top = name.rsplit('.').next().unwrap_or_default();
        let top_is_good = top.starts_with(|c: char| c.is_ascii_alphabetic());
        if name.len() > NAME_LIMIT_BYTES || !top_is_good || !name.split('.').all(label_is_good) {
            return Err(Refusal::Host(name.to_owned()));
        }
        let ends_in = |suffix: &str| {
            name == suffix || name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
        };
        let local = !name.contains('.') || LOCAL_SUFFIXES.into_iter().any(ends_in);
        // Where an owner allows local addresses on purpose, local names may lead to them; the address decides.
        if local && self.allowed.is_empty() {
            return Err(Refusal::LocalName(name.to_owned()));
        }
        Ok(name.to_owned())
    }
}

fn check_characters(text: &str) -> Result<(), Refusal> {
    // Parsers drop or turn these; two parsers that do it differently are how guards are passed.
    let before_query = text.split(['?', '#']).next().unwrap_or_default();
    let odd = text.chars().any(|c| c.is_control() || c == ' ' || c == '\u{a0}' || c == '\u{feff}');
    if odd || before_query.contains('\\') { Err(Refusal::Character) } else { Ok(()) }
}

/// What the parser would forgive and we do not.
fn check_text(text: &str) -> Result<(), Refusal> {
    check_characters(text)?;
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(Refusal::Syntax("it is not absolute".into()));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Refusal::Scheme(scheme.chars().take(20).collect()));
    }
    let authority = match rest.strip_prefix("//") {
        Some(rest) if !rest.starts_with('/') => rest.split(['/', '?', '#']).next().unwrap_or_default(),
        _ => return Err(Refusal::Syntax("two slashes and a host must follow the scheme".into())),
    };
    // The parser takes an empty user away before anybody can see it.
    if authority.contains('@') { Err(Refusal::Userinfo) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_what_was_judged() {
        let target = Policy::default().target("HTTPS://EXAMPLE.com.:443/a/../b?q=1#part").unwrap();
        assert_eq!(target.host(), &Host::Name("example.com".into()));
        assert_eq!((target.port(), target.authority().as_str()), (443, "example.com"));
        assert_eq!((target.url().path(), target.url().fragment()), ("/b", None));
    }

    #[test]
    fn a_redirect_is_judged_like_any_url() {
        let policy = Policy::default();
        let from = policy.target("https://example.com/a/b").unwrap();
        let to = |location: &str| policy.redirected(&from, location);
        assert_eq!(to("../c").unwrap().url().as_str(), "https://example.com/c");
        assert!(to("/x").unwrap().same_origin(&from));
        assert!(!to("http://example.com/").unwrap().same_origin(&from));
        for (location, code) in [
            ("//127.0.0.1/", "address_loopback"),
            ("http://2130706433/", "address_loopback"),
            ("file:///etc/passwd", "scheme_refused"),
            ("https://user@example.org/", "userinfo_refused"),
            ("https://example.org:22/", "port_refused"),
            ("\\\\127.0.0.1\\", "url_character"),
            ("//localhost/", "host_local"),
        ] {
            assert_eq!(to(location).unwrap_err().code(), code, "{location}");
        }
    }

    #[test]
    fn local_names_lead_somewhere_only_where_local_addresses_are_allowed() {
        let policy = Policy { allowed: vec!["10.0.0.0/8".parse().unwrap()], ..Policy::default() };
        assert!(policy.target("http://wiki.internal/").is_ok());
        assert_eq!(Policy::default().target("http://wiki.internal/").unwrap_err().code(), "host_local");
        assert_eq!(Policy::default().target("http://wiki/").unwrap_err().code(), "host_local");
        let long = format!("http://example.com/{}", "a".repeat(URL_LIMIT_BYTES));
        assert_eq!(Policy::default().target(&long).unwrap_err().code(), "url_too_long");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_judge_panic_and_what_passes_passes_again(text in "(https?://)?.{0,60}") {
            if let Ok(target) = Policy::default().target(&text) {
                let again = Policy::default().target(target.url().as_str()).unwrap();
                assert_eq!(again, target);
            }
        }

        #[test]
        fn no_spelling_of_a_loopback_address_passes(low in 0u32..0x0100_0000) {
            let address = 0x7f00_0000 | low;
            let octets = std::net::Ipv4Addr::from_bits(address).octets();
            for spelling in [
                format!("{address}"), format!("0x{address:x}"), format!("0{address:o}"),
                format!("{}.{}", octets[0], address & 0x00ff_ffff),
                format!("{}.{}.{}", octets[0], octets[1], address & 0xffff),
                format!("0x{:x}.0{:o}.{}.{}.", octets[0], octets[1], octets[2], octets[3]),
                format!("[::ffff:{:x}:{:x}]", address >> 16, address & 0xffff),
                format!("%31%32%37.{}.{}.{}", octets[1], octets[2], octets[3]),
            ] {
                let code = Policy::default().target(&format!("http://{spelling}/")).unwrap_err().code();
                assert_eq!(code, "address_loopback", "{spelling}");
            }
        }
    }
}
