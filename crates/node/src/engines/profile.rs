//! What differs between engine servers: how one says that it is ready, which work it takes, how it is asked to end
//! (node.md section 7). How a server is started, as a process or in a container, is no part of it.

use std::time::Duration;

use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use nix::sys::signal::Signal;

/// Time between the polite signal and the hard one, where an engine needs no other.
pub const GRACE: Duration = Duration::from_secs(10);

/// One kind of engine server.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its name in plans and reports.
    pub name: &'static str,
    /// How it says that it takes work.
    pub ready: Ready,
    /// The only paths that it is ever asked for, beside the one of [`Ready`].
    pub work: &'static [WorkPath],
    /// How it ends.
    pub stop: Stop,
    /// Variables of our own environment that it may see, beside the few that every program needs.
    pub environment: &'static [&'static str],
    /// Whether its list of models tells the hash of the file that it loaded, and its word on it counts. Only our own
    /// engine's does.
    pub tells_digest: bool,
}

/// An answer that only a server that takes work gives.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Absolute path.
    pub path: &'static str,
    /// Its status then.
    pub status: u16,
    /// What its body holds then; anything when absent.
    pub body: Option<&'static str>,
}

/// How a server is asked to end.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The polite signal.
    pub signal: Signal,
    /// Time until its whole group is killed.
    pub grace: Duration,
}

/// The paths of the work of a kind of service.
#[must_use]
pub const fn work_of(kind: ServiceKind) -> &'static [WorkPath] {
    match kind {
        ServiceKind::Llm => &[WorkPath::ChatCompletions, WorkPath::Completions],
        ServiceKind::Embeddings => &[WorkPath::Embeddings],
        ServiceKind::Tts => &[WorkPath::Speech],
        ServiceKind::Stt => &[WorkPath::Transcription],
        ServiceKind::Vision => &[WorkPath::Read],
        ServiceKind::Image => &[WorkPath::Draw],
        ServiceKind::Scrape => &[WorkPath::Scrape],
    }
}

impl Ready {
    /// Whether this is the answer of a server that takes work.
    #[must_use]
    pub fn is(&self, status: u16, body: &[u8]) -> bool {
        let holds = |part: &str| body.windows(part.len()).any(|window| window == part.as_bytes());
        status == self.status && self.body.is_none_or(holds)
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::POLITE
    }
}

impl Stop {
    /// What most servers understand.
    pub const POLITE: Self = Self { signal: Signal::SIGTERM, grace: GRACE };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_have_to_fit() {
        let ready = Ready { path: "/health", status: 200, body: Some("\"ok\"") };
        for (status, body, fits) in [
            (200, "{\"status\":\"ok\"}", true),
            (200, "{\"status\":\"loading\"}", false),
            (200, "", false),
            (503, "{\"status\":\"ok\"}", false),
        ] {
            assert_eq!(ready.is(status, body.as_bytes()), fits, "{status} {body}");
        }
        assert!(Ready { body: None, ..ready }.is(200, b"") && !Ready { body: None, ..ready }.is(204, b""));
    }
}
