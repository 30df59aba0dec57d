//! L4 for speech, recordings, pictures and pages: the client leaves before a node accepted, after that, in the middle of the
//! node's answer, after the node failed, and after the end before it read it. What is priced by its input is paid once a node had accepted it, the
//! rest only when it was delivered; node, hold, bill and the next request are as the abort table says.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::MicroCredits;
use serde_json::Value;
use tokio::time::Instant;

use super::leaving::{Leave, RELEASED_WITHIN, Spans, heard, judge_books};
use crate::ground::until;
use crate::paths::settled;
use crate::services::Service;
use crate::settings::Setting;
use crate::stand_in::{Mood, Note, Script, StandIn, Step};
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// When the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The node has the work and said nothing yet.
    BeforeAccept,
    /// The node accepted and sent nothing yet.
    BeforeAnswer,
    /// Half of the answer was sent by the node.
    InTheMiddle,
    /// The node is done, the gateway may or may not be.
    AtTheEnd,
    /// The node accepted and failed; the gateway looks for another one.
    AfterAFault,
    /// All is settled, and nothing of it was read.
    AfterTheEnd,
}

const POINTS: [Point; 6] = [
    Point::BeforeAccept,
    Point::BeforeAnswer,
    Point::InTheMiddle,
    Point::AtTheEnd,
    Point::AfterAFault,
    Point::AfterTheEnd,
];

const LEAVES: [Leave; 3] = [Leave::Close, Leave::Reset, Leave::HalfClose];

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("L4-services");
    let world = World::plan(setting).services().start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("leaver@example.org", MicroCredits(1_000_000_000)).await?;
    let mut case = Case { world: &world, node: &node, account: &account, verdict: &mut verdict };
    let mut spans = Spans::default();
    for _ in 0..setting.counts.pick(2, 20) {
        for service in Service::ALL {
            for point in POINTS {
                // More faults among so few requests would open the node's breaker.
                let leaves = if point == Point::AfterAFault { 1 } else { LEAVES.len() };
                for leave in LEAVES.into_iter().take(leaves) {
                    let what = format!("{}: {leave:?} {point:?}", service.name());
                    case.leave(service, point, leave, &mut spans).await.context(what)?;
                }
            }
            case.next_is_good(service).await?;
            let complaint = world.money.complaint().await?;
            case.verdict.check(
                "the ledger explains every credit after each service",
                complaint.is_none(),
                format!("{}: {complaint:?}", service.name()),
            );
        }
    }
    spans.report(&mut verdict);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

struct Case<'a> {
    world: &'a World,
    node: &'a StandIn,
    account: &'a Account,
    verdict: &'a mut Verdict,
}

impl Case<'_> {
    async fn leave(&mut self, service: Service, point: Point, leave: Leave, spans: &mut Spans) -> Result<()> {
        self.verdict.count += 1;
        let what = format!("{}: {leave:?} {point:?}", service.name());
        self.node.learn(service.script(), play(service, point));
        self.node.set_mood(if point == Point::BeforeAccept { Mood::Blackhole } else { Mood::Willing });
        let place = self.node.notes().len();
        let request = service.request();
        let conversation = self.account.client.send_payload("POST", service.url(), Some(&request)).await?;
        let note = self.reach(service, point, place).await?;
        let left = Instant::now();
        let kept = leave.carry_out(conversation).await?;
        let mut over = left;
        if matches!(point, Point::BeforeAccept | Point::BeforeAnswer | Point::InTheMiddle) {
            let at = (self.node, place);
            over = spans.cancelled(self.verdict, at, (left, Duration::ZERO), &what).await?;
        }
        let of = (self.account, note.request_id.as_str());
        let row = spans.released(self.verdict, of, over, &what).await;
        drop(kept);
        self.node.set_mood(Mood::Willing);
        self.node.forget(service.script());
        let Some(row) = row else { return Ok(()) };
        self.judge(service, point, &what, &note, &row).await
    }

    /// Brings the request to the point at which its client leaves.
    async fn reach(&self, service: Service, point: Point, place: usize) -> Result<Note> {
        let half = (service.answer().len() / 2) as u64;
        let note = until("the node to come so far", Duration::from_secs(20), async || {
            let note = self.node.notes().get(place).cloned();
            Ok(note.filter(|note| match point {
                Point::BeforeAccept => true,
                Point::BeforeAnswer => note.accepted.is_some(),
                Point::InTheMiddle => note.accepted.is_some() && note.sent >= half,
                Point::AtTheEnd | Point::AfterAFault | Point::AfterTheEnd => note.finished.is_some(),
            }))
        })
        .await?;
        if matches!(point, Point::BeforeAnswer | Point::InTheMiddle | Point::AfterAFault) {
            heard(self.account).await?;
        }
        if point == Point::AfterTheEnd {
            settled(&self.account.client, &note.request_id, RELEASED_WITHIN).await?;
        }
        Ok(note)
    }

    /// Holds the bill against the abort table.
    async fn judge(
        &mut self,
        service: Service,
        point: Point,
        what: &str,
        note: &Note,
        row: &Value,
    ) -> Result<()> {
        let money = &self.world.money;
        let input = service.price_of_input(money)?;
        // Where nothing but what is delivered is paid, leaving is leaving, whoever had accepted.
        let gone = if input > 0 { "client_gone" } else { "client_gone_before_accept" };
        let outcome = row["outcome"].as_str().unwrap_or_default();
        let failed = row["attempts"][0]["code"] == "provider_protocol_error";
        let expected = match point {
            // Who is first, the client's leaving or the judgement of the answer, is open here as well.
            Point::AfterAFault if !failed => gone,
            Point::AfterAFault if outcome == "provider_failed" => outcome,
            Point::AfterAFault | Point::BeforeAccept => "client_gone_before_accept",
            Point::BeforeAnswer | Point::InTheMiddle => gone,
            // Who is first, the client's leaving or what the node said, is open; the bill follows what the record says.
            Point::AtTheEnd if [gone, "client_gone_before_accept"].contains(&outcome) => outcome,
            Point::AtTheEnd | Point::AfterTheEnd => "finished",
        };
        self.verdict.check("the record says how it ended", outcome == expected, format!("{what}: {row}"));
        let wanted = match expected {
            "finished" => service.price(money)?,
            "client_gone" => input,
            _ => 0,
        };
        let cost = self.world.cost_of(row)?;
        self.verdict.check(service.rule(), cost == wanted, format!("{what}: {row}, wanted {wanted}"));
        let paid = (cost, money.share(service.model(), cost)?);
        judge_books(self.verdict, money, &note.request_id, paid, what).await
    }

    /// A good request of the same kind works, to its end and at its price.
    async fn next_is_good(&mut self, service: Service) -> Result<()> {
        let reply = self.account.client.post(service.url(), &service.request()).await?;
        let request_id = reply.header("x-request-id").context("no request id")?.to_owned();
        let row = settled(&self.account.client, &request_id, RELEASED_WITHIN).await?;
        let right =
            service.is_good(&reply) && self.world.cost_of(&row)? == service.price(&self.world.money)?;
        let seen = format!("{}: {} {row}", service.name(), reply.status);
        self.verdict.check("the next good request works", right, seen);
        Ok(())
    }
}

/// What the node plays.
fn play(service: Service, point: Point) -> Script {
    let answer = service.answer();
    match point {
        // Before the acceptance nothing is played.
        Point::BeforeAccept | Point::BeforeAnswer => Script::of(vec![Step::Hold]),
        Point::InTheMiddle => {
            Script::of(vec![Step::Raw(answer[..answer.len().div_ceil(2)].to_vec().into()), Step::Hold])
        }
        Point::AfterAFault => Script::raw("[]"),
        Point::AtTheEnd | Point::AfterTheEnd => Script::raw(answer),
    }
}
