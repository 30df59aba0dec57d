//! Where a file may come from, in the order in which it is asked for: the owner's mirrors, what the plan names (the control
//! plane, the operator's mirrors), the hub. Pure; files of this machine are looked for before.

use cxmpute_wire::control::DesiredFile;
use url::Url;

use super::digest::Digest;

/// What a source wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing.
    Open,
    /// The signature of this node: it is the control plane.
    Signature,
    /// The owner's token of the hub.
    HubToken,
}

/// One place that may have a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What is asked.
    pub url: Url,
    /// What it wants to see.
    pub pass: Pass,
}

impl Source {
    /// Its name in reports: the host.
    #[must_use]
    pub fn label(&self) -> String {
        let host = self.url.host_str().unwrap_or("?");
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// The bases that files are asked for at.
#[derive(Clone, Debug)]
pub struct Bases {
    /// The owner's mirrors.
    pub mirrors: Vec<String>,
    /// The hub; none when empty.
    pub hub: String,
    /// The control plane.
    pub api: String,
}

impl Bases {
    /// The sources of one file, in order, none twice.
    #[must_use]
    pub fn sources(&self, file: &DesiredFile, digest: Digest) -> Vec<Source> {
        let mirrors = self.mirrors.iter().map(|base| (mirror_url(base, file, digest), Pass::Open));
        let planned = file.urls.iter().map(|url| match url.starts_with('/') && !url.starts_with("//") {
            true => (format!("{}{url}", self.api.trim_end_matches('/')), Pass::Signature),
            false => (mirror_url(url, file, digest), Pass::Open),
        });
        let hub = self.hub_url(file).map(|url| (url, Pass::HubToken));
        let mut sources: Vec<Source> = Vec::new();
        for (text, pass) in mirrors.chain(planned).chain(hub) {
            match Url::parse(&text) {
                Ok(url) if sources.iter().all(|source| source.url != url) => {
                    sources.push(Source { url, pass })
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(text, %error, "a source of models is no URL"),
            }
        }
        sources
    }

    /// `BASE/OWNER/NAME/resolve/REVISION/FILE`.
    fn hub_url(&self, file: &DesiredFile) -> Option<String> {
        let hub = file.hub.as_deref().filter(|_| !self.hub.is_empty())?;
        let path = hub.file.as_deref()?;
        let plain =
            |text: &str| !text.is_empty() && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let revision = hub.revision.as_deref().unwrap_or("main");
        if !plain(&hub.repository) || !plain(path) || !plain(revision) {
            return None;
        }
        let base = self.hub.trim_end_matches('/');
        // A revision is one part of the path, even if it has a slash.
        Some(format!(
            "{base}/{}/resolve/{}/{}",
            escaped(&hub.repository),
            escaped(revision).replace('/', "%2F"),
            escaped(path)
        ))
    }
}

/// `{sha256}` and `{name}` stand for the file; a base without them has the layout of a store, `BASE/blobs/sha256-…`.
fn mirror_url(base: &str, file: &DesiredFile, digest: Digest) -> String {
    if base.contains("{sha256}") || base.contains("{name}") {
        return base.replace("{sha256}", &digest.to_string()).replace("{name}", &escaped(&file.name));
    }
    format!("{}/blobs/{}", base.trim_end_matches('/'), digest.file_name())
}

/// A path in which nothing ends it: no question mark, hash, percent sign or space.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte))
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::control::HubModel;

    use super::*;

    fn bases(mirrors: &[&str], hub: &str) -> Bases {
        let mirrors = mirrors.iter().map(|base| (*base).to_owned()).collect();
        Bases { mirrors, hub: hub.to_owned(), api: "http://127.0.0.1:80/".to_owned() }
    }

    fn file(urls: &[&str], hub: Option<(&str, Option<&str>, Option<&str>)>) -> DesiredFile {
        let hub = hub.map(|(repository, revision, file)| {
            let [revision, file] = [revision, file].map(|text| text.map(str::to_owned));
            Box::new(HubModel { repository: repository.into(), revision, file })
        });
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        DesiredFile { role: "model".into(), name: "a b/m#1.gguf".into(), sha256: None, size: None, urls, hub }
    }

    #[test]
    fn sources_are_asked_in_order_and_once() {
        let sum = Digest::of(b"x");
        let bases =
            bases(&["http://nas:8080/m/", "https://m.example/{name}?h={sha256}"], "https://hub.example/");
        let wanted = file(
            &["/api/v1/blobs/1", "http://nas:8080/m", "https://other.example"],
            Some(("o/n", Some("refs/pr/1"), Some("x/y z.gguf"))),
        );
        let found = bases.sources(&wanted, sum);
        let urls: Vec<&str> = found.iter().map(|source| source.url.as_str()).collect();
        assert_eq!(
            urls,
            [
                format!("http://nas:8080/m/blobs/sha256-{sum}"),
                format!("https://m.example/a%20b/m%231.gguf?h={sum}"),
                "http://127.0.0.1/api/v1/blobs/1".to_owned(),
                format!("https://other.example/blobs/sha256-{sum}"),
                "https://hub.example/o/n/resolve/refs%2Fpr%2F1/x/y%20z.gguf".to_owned(),
            ]
        );
        let passes: Vec<Pass> = found.iter().map(|source| source.pass).collect();
        assert_eq!(passes, [Pass::Open, Pass::Open, Pass::Signature, Pass::Open, Pass::HubToken]);
        assert_eq!(found[0].label(), "nas:8080");
    }

    #[test]
    fn a_hub_is_only_asked_for_what_it_can_name() {
        let sum = Digest::of(b"x");
        let count = |hub: &str, reference| bases(&[], hub).sources(&file(&[], Some(reference)), sum).len();
        assert_eq!(count("https://hub.example", ("o/n", None, Some("m.gguf"))), 1);
        assert_eq!(count("", ("o/n", None, Some("m.gguf"))), 0);
        assert_eq!(count("https://hub.example", ("o/n", None, None)), 0);
        assert_eq!(count("https://hub.example", ("o/n", None, Some("../m.gguf"))), 0);
        assert_eq!(count("https://hub.example", ("o/..", None, Some("m.gguf"))), 0);
    }
}
