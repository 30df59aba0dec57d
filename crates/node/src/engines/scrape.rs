//! The engine that fetches pages: this program itself as a child process on a unix socket. What it does is in
//! [`crate::scrape`]; here is how it is started.

use std::path::Path;

use cxmpute_runtime::confine::{Sockets, Terms};
use cxmpute_runtime::once::Sandbox;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::DesiredService;

use super::{AdapterError, Child, Endpoint, Profile, Ready, Server, Stop};
use crate::place;
use crate::scrape::ScrapeSection;
use crate::scrape::quota;
use crate::supervise::Surroundings;

/// Its name in plans.
pub const NAME: &str = "scrape";
/// The name of the service where the plan gives it no model.
const MODEL: &str = "scrape";

/// What it is as a server.
const PROFILE: Profile = Profile {
    name: NAME,
    ready: Ready { path: "/health", status: 200, body: None },
    work: &[WorkPath::Scrape],
    stop: Stop::POLITE,
    environment: &[],
    tells_digest: false,
};

/// The engine for a planned service.
///
/// # Errors
/// The owner has not switched scraping on (NR50), or the directory of the daily count cannot be made.
pub fn engine(around: &Surroundings, desired: &DesiredService) -> Result<Child, AdapterError> {
    let config = &around.config;
    let refused = |why: String| AdapterError::NoEngine(format!("{}: {why}", desired.service_id));
    if !config.scrape.enabled {
        return Err(refused("its owner has not set scrape.enabled".to_owned()));
    }
    let count = quota::file(&config.data_dir);
    let terms = terms(&config.scrape, &around.program, &count);
    if let Some(folder) = count.parent() {
        place::make_private(folder).map_err(|error| refused(format!("{}: {error}", folder.display())))?;
    }
    let model = if desired.model.is_empty() { MODEL.to_owned() } else { desired.model.clone() };
    let room = place::engine_room(&config.data_dir);
    let socket = place::socket_in(&room);
    let arguments =
        arguments(&config.scrape, &socket, &count, &model).map_err(|error| refused(error.to_string()))?;
    let slots = match u16::try_from(desired.slots) {
        Ok(planned) if planned > 0 => planned.min(config.scrape.slots),
        _ => config.scrape.slots,
    };
    let terms = Terms { hidden: super::private_places(config), room: Some(room.clone()), ..terms };
    let confiner = around.confiner.as_ref();
    let server = Server {
        profile: PROFILE,
        endpoint: Endpoint::Unix(socket.clone()),
        model,
        slots: slots.max(1),
        queue: 0,
        weight_bytes: 0,
        model_file: None,
    };
    Ok(Child {
        server,
        program: around.program.clone(),
        arguments,
        environment: Vec::new(),
        socket: Some(socket),
        room: Some(room),
        sandbox: confiner.map_or_else(Sandbox::default, |confiner| confiner.sandbox(&terms)),
    })
}

/// What it may have: the network, its count, and a place for its browsers, which it puts into namespaces of their own.
#[must_use]
pub fn terms(section: &ScrapeSection, program: &Path, count: &Path) -> Terms {
    let folder = |path: &Path| path.parent().map(Path::to_owned).filter(|folder| folder.is_absolute());
    let browser = section.browser.as_deref().and_then(folder);
    Terms {
        readable: folder(program).into_iter().chain(browser).collect(),
        writable: folder(count).into_iter().chain([std::env::temp_dir()]).collect(),
        network: true,
        sockets: Sockets::Interfaces,
        nests: true,
        ..Terms::default()
    }
}

fn arguments(
    section: &ScrapeSection,
    socket: &Path,
    count: &Path,
    model: &str,
) -> Result<Vec<String>, serde_json::Error> {
    let settings = serde_json::to_string(section)?;
    Ok(vec![
        "engine".to_owned(),
        "scrape".into(),
        "--while-stdin-open".into(),
        format!("--socket={}", socket.display()),
        format!("--settings={settings}"),
        format!("--count={}", count.display()),
        format!("--model={model}"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_hears_of_its_owners_settings_and_may_write_its_count_and_temporary_files() {
        let section = ScrapeSection { deny_domains: vec!["example.com".into()], ..ScrapeSection::default() };
        let (program, count) = (Path::new("/opt/x/cxmpute-provider"), Path::new("/d/scrape/count.json"));
        let said = arguments(&section, Path::new("/d/run/s.sock"), count, "scrape").unwrap().join(" ");
        assert!(
            said.contains("\"deny_domains\":[\"example.com\"]") && said.contains("--count=/d/scrape"),
            "{said}"
        );
        let terms = terms(&section, program, count);
        assert_eq!(terms.readable, [Path::new("/opt/x")]);
        assert_eq!(terms.writable, [Path::new("/d/scrape").to_owned(), std::env::temp_dir()]);
        assert!(terms.network && terms.nests);
    }
}
