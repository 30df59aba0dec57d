//! The scrape engine: it fetches pages for users, from this machine, through the guarded way out (`cxmpute-egress`). It
//! is a child process of the node (`cxmpute-provider engine scrape`), so that no page can hurt the node, and serves
//! HTTP/1 on a unix socket: `GET /health`, `GET /v1/models`, `POST /v1/scrape`.
//!
//! Rooms: [`settings`] (what the owner allows; off by default), [`request`] (the shapes), [`work`] (one request, URL by
//! URL), [`quota`] (the daily count), [`document`] (parsing under bounds), [`metadata`] and [`content`] (what is made
//! of a page, in a process of its own: [`convert`]), [`charset`], [`browser`] and [`cage`] (pages with scripts, in a network namespace whose only way out is
//! the guard), [`server`] (the socket).

pub mod browser;
pub mod cage;
pub mod charset;
pub mod content;
pub mod convert;
pub mod document;
pub mod metadata;
pub mod quota;
pub mod request;
pub mod server;
pub mod settings;
pub mod work;

pub use settings::ScrapeSection;
