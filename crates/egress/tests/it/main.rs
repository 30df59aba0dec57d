//! The gates F1 to F4 of the security reference, section 10, and the proxy. Real sockets; what is public is staged.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

mod address_corpus;
mod bombs;
mod findings;
mod manners;
mod proxy;
mod redirects;
mod resolver;
mod secured;
mod site;
mod stage;
