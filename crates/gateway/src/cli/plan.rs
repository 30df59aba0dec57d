//! `cxmpute admin plan`: what the plan wants of each provision, and why. It reads the database and decides as the
//! gateway does; nothing is changed.

use std::fmt::Write as _;

use clap::Args;
use cxmpute_market::assign::{Board, Need, NodePlan, Offer, Verdict, plan};
use cxmpute_market::catalogue::Catalogue;
use cxmpute_runtime::Clock;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_store::{Db, ProvisionRow, ProvisionState};
use cxmpute_wire::{Bytes, MicroCredits, ServiceId, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::Output;
use super::catalogue::{size, wrapped};
use crate::catalogue;
use crate::config::Config;
use crate::fleet::{DEMAND_HOLDS, floors_since, offer_of};

/// Flags of `admin plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// Say for each service why it was chosen for this provision, or not.
    #[arg(long, value_name = "PROVISION")]
    explain: Option<String>,
}

/// Carries the command out.
pub async fn run(config: &Config, db: &Db, args: PlanArgs, output: &Output) -> anyhow::Result<()> {
    let catalogue = catalogue::load(&config.catalogue)?;
    let needs: Vec<Need> = catalogue.entries().iter().map(|entry| Need::from(&**entry)).collect();
    let downloads = config.catalogue.hub_downloads;
    let now = Clock::system().now();
    let demand = db.demand(Timestamp(now.0.saturating_sub_unsigned(DEMAND_HOLDS.0))).await?;
    let rows = db.list_provisions(None).await?;
    let online: Vec<&ProvisionRow> = rows.iter().filter(|row| row.state == ProvisionState::Online).collect();
    let floors = db.floors(floors_since(now)).await?;
    let offer = |row: &ProvisionRow| offer_of(row, floors.get(&row.id).cloned().unwrap_or_default());
    let offers: Vec<Offer> = online.iter().map(|row| offer(row)).collect();
    let Some(name) = args.explain else {
        let plans = plan(&needs, &offers, &demand, downloads, now);
        let lines: Vec<Line<'_>> = online
            .iter()
            .zip(&offers)
            .zip(&plans)
            .map(|((row, offer), plan)| Line::of(row, offer, plan))
            .collect();
        return output.show_all(&lines, Line::text);
    };
    let row = db.find_provision(&name).await?.ok_or_else(|| {
        ExitError::new(
            exit::OTHER,
            format!("No provision has the id `{name}`; `cxmpute admin provision list` names all."),
        )
    })?;
    let mut board = Board::new(&needs, downloads);
    board.ask(&demand);
    offers.iter().for_each(|offer| board.put(offer));
    let offer = offer(&row);
    let why = board.explain(&offer, now, true);
    let reasons: Vec<Reason<'_>> = chosen_first(&why, &catalogue);
    let mut head = head(&row, &offer);
    if matches!(row.state, ProvisionState::Suspended | ProvisionState::Retired) {
        let _ = write!(head, "\nIt is {} and gets nothing; this is what it would get.", row.state.as_str());
    }
    output.explain(&reasons, head, Reason::text)
}

/// What the plan says of one provision.
#[derive(Serialize)]
struct Line<'a> {
    provision: &'a str,
    services: Vec<&'a ServiceId>,
    starts: Vec<&'a ServiceId>,
    ends: Vec<&'a ServiceId>,
}

impl<'a> Line<'a> {
    fn of(row: &'a ProvisionRow, offer: &'a Offer, plan: &'a NodePlan) -> Self {
        let runs = |service: &ServiceId| offer.running.iter().any(|old| old.service == *service);
        let services: Vec<&ServiceId> = plan.services.iter().map(|planned| &planned.service).collect();
        Self {
            provision: row.id.as_str(),
            starts: services.iter().copied().filter(|service| !runs(service)).collect(),
            ends: offer
                .running
                .iter()
                .map(|old| &old.service)
                .filter(|old| !services.contains(old))
                .collect(),
            services,
        }
    }

    fn text(&self) -> String {
        let mut words = Vec::new();
        for service in &self.services {
            let sign = if self.starts.contains(service) { "+" } else { "" };
            words.push(format!("{sign}{service}"));
        }
        words.extend(self.ends.iter().map(|service| format!("-{service}")));
        let list = if words.is_empty() { "nothing fits".to_owned() } else { words.join(" ") };
        format!("{}\n    {}", self.provision, wrapped(&list, 76).join("\n    "))
    }
}

fn head(row: &ProvisionRow, offer: &Offer) -> String {
    let gpus: Vec<String> = offer.gpus.iter().map(|gpu| size(gpu.memory)).collect();
    let accelerators = if gpus.is_empty() { "none".to_owned() } else { gpus.join(", ") };
    let engines: Vec<&str> = offer.engines.iter().map(|(engine, _)| engine.name()).collect();
    let engines =
        if engines.is_empty() { "builtin".to_owned() } else { format!("builtin, {}", engines.join(", ")) };
    let (id, state, name) = (&row.id, row.state.as_str(), &row.name);
    let (memory, disk) = (size(offer.memory), size(offer.disk_free));
    let mut head = format!(
        "{id}  {state}  {name}\naccelerators {accelerators}; memory {memory}; free disk {disk}\nengines {engines}"
    );
    for line in learned(offer) {
        let _ = write!(head, "\n{line}");
    }
    head
}

/// What the plan knows of this very machine beside what it has, in lines of 80 columns.
fn learned(offer: &Offer) -> Vec<String> {
    let mut lines = Vec::new();
    if !offer.held.is_empty() {
        let bytes = offer.held.iter().map(|file| file.size.0).sum();
        lines.push(format!("holds {} model files, {}", offer.held.len(), size(Bytes(bytes))));
    }
    let price = |(name, price): &(String, MicroCredits)| format!("{name} {}", price.to_credits());
    if !offer.least_prices.is_empty() {
        let list: Vec<String> = offer.least_prices.iter().map(price).collect();
        lines.extend(wrapped(&format!("least prices {} credits per million units", list.join(", ")), 80));
    }
    for floor in &offer.floors {
        let text = format!(
            "{} ran out of memory here and is planned with no less than {}",
            floor.service,
            size(floor.memory)
        );
        lines.extend(wrapped(&text, 80));
    }
    lines
}

/// One service and why.
struct Reason<'a> {
    service: &'a ServiceId,
    name: &'a str,
    why: &'a Verdict,
}

impl Serialize for Reason<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({
            "service": self.service, "name": self.name, "chosen": self.why.is_chosen(),
            "verdict": self.why.name(), "reason": self.why.to_string(),
        })
        .serialize(serializer)
    }
}

impl Reason<'_> {
    /// A sign, the service and the sentence, in 80 columns.
    fn text(&self) -> String {
        const NAME: usize = 29;
        let sign = if self.why.is_chosen() { '+' } else { '-' };
        let service = self.service.as_str();
        let mut lines = wrapped(&self.why.to_string(), 80 - NAME - 3);
        let mut text = String::new();
        if service.len() > NAME {
            let _ = write!(text, "{sign} {service}");
        } else {
            let first = if lines.is_empty() { String::new() } else { lines.remove(0) };
            let _ = write!(text, "{sign} {service:<NAME$} {first}");
        }
        for line in lines {
            let _ = write!(text, "\n{:1$}{line}", "", NAME + 3);
        }
        text
    }
}

fn chosen_first<'a>(why: &'a [(ServiceId, Verdict)], catalogue: &'a Catalogue) -> Vec<Reason<'a>> {
    let reason = |(service, why): &'a (ServiceId, Verdict)| {
        let name = catalogue.by_service(service).map_or("", |entry| &*entry.name);
        Reason { service, name, why }
    };
    let (mut reasons, rest): (Vec<_>, Vec<_>) = why.iter().map(reason).partition(|one| one.why.is_chosen());
    reasons.extend(rest);
    reasons
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cxmpute_market::assign::{Floor, Gpu, Held};
    use cxmpute_market::catalogue::Engine;
    use cxmpute_wire::{ProvisionId, UserId};

    use super::*;

    #[test]
    fn explanations_name_every_service_in_lines_of_80_columns() {
        let catalogue = Catalogue::shipped().unwrap();
        let needs: Vec<Need> = catalogue.entries().iter().map(|entry| Need::from(&**entry)).collect();
        let offer = Offer {
            provision: ProvisionId::from_tail("m"),
            owner: UserId::from_tail("o"),
            region: None,
            gpus: vec![Gpu { index: 0, memory: Bytes(8 << 30) }],
            memory: Bytes(16 << 30),
            disk_free: Bytes(20 << 30),
            engines: vec![(Engine::Ollama, vec!["llama3.2:1b".to_owned()])],
            allow: Vec::new(),
            deny: vec!["all-minilm".to_owned()],
            least_prices: Vec::new(),
            held: Vec::new(),
            floors: Vec::new(),
            running: Vec::new(),
        };
        let board = Board::new(&needs, false);
        let why = board.explain(&offer, Timestamp(0), true);
        let reasons = chosen_first(&why, &catalogue);
        assert_eq!(reasons.len(), catalogue.entries().len());
        let text: Vec<String> = reasons.iter().map(Reason::text).collect();
        let long: Vec<&str> =
            text.iter().flat_map(|text| text.lines()).filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{long:#?}");
        let all = text.join("\n");
        for said in ["+ llm:cxm-tiny ", "+ llm:llama3.2:1b ", "- embeddings:all-minilm ", "- tts:espeak-ng "]
        {
            assert!(all.contains(said), "{said}\n{all}");
        }
        assert!(all.contains("the owner's services.deny names it"), "{all}");
        let json = serde_json::to_value(&reasons[0]).unwrap();
        assert!(json["chosen"] == true && json["verdict"] == "added", "{json}");
        let plans = plan(&needs, std::slice::from_ref(&offer), &HashMap::new(), false, Timestamp(0));
        let chosen: Vec<&ServiceId> =
            reasons.iter().filter(|reason| reason.why.is_chosen()).map(|reason| reason.service).collect();
        let planned: Vec<&ServiceId> = plans[0].services.iter().map(|planned| &planned.service).collect();
        assert_eq!(chosen, planned, "the reasons are those of the plan");
    }

    #[test]
    fn what_was_learned_of_a_machine_is_told_with_its_plan() {
        let offer = Offer {
            provision: ProvisionId::from_tail("m"),
            owner: UserId::from_tail("o"),
            region: None,
            gpus: Vec::new(),
            memory: Bytes(16 << 30),
            disk_free: Bytes(20 << 30),
            engines: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            least_prices: vec![("llm".to_owned(), MicroCredits(200_000))],
            held: vec![Held { size: Bytes(3 << 30), ..Held::default() }],
            floors: vec![Floor { service: "llm:cxm-tiny".parse().unwrap(), memory: Bytes(5 << 30) }],
            running: Vec::new(),
        };
        let told = learned(&offer).join("\n");
        for said in [
            "holds 1 model files, 3.0 GiB",
            "least prices llm 0.200000",
            "llm:cxm-tiny ran out of memory",
            "5.0 GiB",
        ] {
            assert!(told.contains(said), "{said}: {told}");
        }
        assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
    }
}
