//! L4 on every path: the client leaves before a node accepted, before any content, in the middle, and after the end before
//! it read that, on each kind of answer. Node, hold, bill and the next request are as the abort table says.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::MicroCredits;
use serde_json::Value;
use tokio::time::Instant;

use super::leaving::{LIMIT, Leave, RELEASED_WITHIN, Spans, heard, judge_books};
use crate::client::Conversation;
use crate::ground::until;
use crate::paths::{Path, settled};
use crate::settings::Setting;
use crate::stand_in::{Mood, Note, StandIn, Step};
use crate::verdict::Verdict;
use crate::ways::{Answer, Way};
use crate::world::{Account, World};

/// Tokens sent before a client leaves in the middle, and of whole answers.
const MIDDLE: u64 = 7;

/// The world's time for a reader that takes nothing; the product's default is 30 s.
const WRITE_STALL: Duration = Duration::from_secs(1);

/// Bytes that may sit in the sockets between gateway and client when a reader stalls, and the least that one event takes.
const SOCKET_BUFFERS: u64 = 6 << 20;
const EVENT_BYTES: u64 = 128;

/// Times that stand for "for ever".
const ENDLESS: u64 = 1_000_000;

/// When the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The node has the work and said nothing yet.
    BeforeAccept,
    /// The node accepted and sent nothing yet.
    BeforeContent,
    /// Some tokens were sent; of a stream they were read.
    InTheMiddle,
    /// The node is done, the gateway may or may not be.
    AtTheEnd,
    /// All is settled, and its end (of a whole answer, all of it) was not read.
    AfterTheEnd,
}

const POINTS: [Point; 5] =
    [Point::BeforeAccept, Point::BeforeContent, Point::InTheMiddle, Point::AtTheEnd, Point::AfterTheEnd];

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("L4-paths");
    let world = World::plan(setting).write_stall(WRITE_STALL).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("leaver@example.org", MicroCredits(1_000_000_000)).await?;
    let mut case = Case { world: &world, node: &node, account: &account, verdict: &mut verdict };
    let mut spans = Spans::default();
    for _ in 0..setting.counts.pick(1, 10) {
        for way in Way::ALL {
            for point in POINTS {
                for leave in [Leave::Reset, Leave::Close, Leave::HalfClose] {
                    let what = format!("{}: {leave:?} {point:?}", way.name);
                    case.leave(way, point, leave, &mut spans).await.context(what)?;
                }
            }
            if way.streamed() {
                let what = format!("{}: a reader that stalls", way.name);
                case.leave(way, Point::InTheMiddle, Leave::Stall, &mut spans).await.context(what)?;
            }
            case.next_is_good(way).await?;
            let complaint = world.money.complaint().await?;
            case.verdict.check(
                "the ledger explains every credit after each path",
                complaint.is_none(),
                format!("{}: {complaint:?}", way.name),
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
    async fn leave(&mut self, way: Way, point: Point, leave: Leave, spans: &mut Spans) -> Result<()> {
        self.verdict.count += 1;
        let what = format!("{}: {leave:?} {point:?}", way.name);
        let script = format!("{}-{point:?}-{}", way.name, leave == Leave::Stall);
        self.node.learn(&script, play(way, point, leave));
        self.node.set_mood(if point == Point::BeforeAccept { Mood::Blackhole } else { Mood::Willing });
        let body = way.body(&script, if leave == Leave::Stall { ENDLESS / 8 } else { LIMIT });
        let place = self.node.notes().len();
        let mut conversation = self.account.client.send("POST", way.path.url(), Some(&body)).await?;
        let mut got = Answer::default();
        let note = self.reach(way, point, place, &mut conversation, &mut got).await?;
        let left = Instant::now();
        let kept = leave.carry_out(conversation).await?;
        // A stalled reader is cut by the write stall, after it filled what lies between.
        let grace = if leave == Leave::Stall { Duration::from_secs(20) } else { Duration::ZERO };
        let mut over = left;
        if !matches!(point, Point::AtTheEnd | Point::AfterTheEnd) {
            let at = (self.node, place);
            over = spans.cancelled(self.verdict, at, (left, grace), &what).await?;
        }
        let of = (self.account, note.request_id.as_str());
        let Some(row) = spans.released(self.verdict, of, over, &what).await else { return Ok(()) };
        if let Some(mut conversation) = kept {
            got.read_rest(&mut conversation).await;
        }
        self.node.set_mood(Mood::Willing);
        self.judge(way, (point, leave), &body, &got, &note, &row).await
    }

    /// Brings the request to the point at which its client leaves.
    async fn reach(
        &self,
        way: Way,
        point: Point,
        place: usize,
        conversation: &mut Conversation,
        got: &mut Answer,
    ) -> Result<Note> {
        let sent: u64 = way.tokens(MIDDLE).iter().map(|event| event.len() as u64).sum();
        let note = until("the node to come so far", Duration::from_secs(20), async || {
            let note = self.node.notes().get(place).cloned();
            Ok(note.filter(|note| match point {
                Point::BeforeAccept => true,
                Point::BeforeContent => note.accepted.is_some(),
                Point::InTheMiddle => note.accepted.is_some() && note.sent >= sent,
                Point::AtTheEnd | Point::AfterTheEnd => note.finished.is_some(),
            }))
        })
        .await?;
        if matches!(point, Point::BeforeContent | Point::InTheMiddle) {
            heard(self.account).await?;
        }
        if way.streamed() && !matches!(point, Point::BeforeAccept | Point::BeforeContent) {
            conversation.read_head().await?;
            let tail = u64::from(way.name.starts_with("schema") && point != Point::InTheMiddle);
            got.read(conversation, MIDDLE + tail).await?;
        }
        if point == Point::AfterTheEnd {
            settled(&self.account.client, &note.request_id, RELEASED_WITHIN).await?;
        }
        Ok(note)
    }

    /// Holds the bill against the abort table.
    async fn judge(
        &mut self,
        way: Way,
        (point, leave): (Point, Leave),
        body: &Value,
        got: &Answer,
        note: &Note,
        row: &Value,
    ) -> Result<()> {
        let what = format!("{}: {leave:?} {point:?}", way.name);
        let money = &self.world.money;
        let outcome = row["outcome"].as_str().unwrap_or_default();
        let expected = match point {
            Point::BeforeAccept => "client_gone_before_accept",
            Point::AfterTheEnd => "finished",
            // Who is first, the client's leaving or what the node said, is open; the bill follows what the record says.
            Point::AtTheEnd if ["finished", "client_gone_before_accept"].contains(&outcome) => outcome,
            // Vectors are delivered all at once or not at all.
            _ if way.path == Path::Embeddings => "client_gone_before_accept",
            _ if leave == Leave::Stall => "stalled_reader",
            _ => "client_gone",
        };
        self.verdict.check(
            "the record says how it ended",
            // A stalled reader is cut by the timer of its stream or by that of its socket, whichever looks first.
            outcome == expected || (leave == Leave::Stall && outcome == "client_gone"),
            format!("{what}: {row}"),
        );
        let whole = Answer { texts: full_texts(way), ..Answer::default() };
        let nothing = Answer::default();
        let wanted = match expected {
            "client_gone_before_accept" => 0,
            "finished" => way.price(money, body, &whole)?,
            _ if way.streamed() => way.price(money, body, got)?,
            _ => way.price(money, body, &nothing)?,
        };
        let cost = self.world.cost_of(row)?;
        let slack =
            if leave == Leave::Stall { self.world.price(0, SOCKET_BUFFERS / EVENT_BYTES)? } else { 0 };
        self.verdict.check(
            way.rule,
            (wanted..=wanted + slack).contains(&cost),
            format!("{what}: {row}, wanted {wanted} for {got:?}"),
        );
        let paid = (cost, self.world.share(cost)?);
        judge_books(self.verdict, money, &note.request_id, paid, &what).await
    }

    /// A good request of the same kind works, to its end and at its price.
    async fn next_is_good(&mut self, way: Way) -> Result<()> {
        let script = format!("{}-good", way.name);
        self.node.learn(&script, way.whole_script(MIDDLE));
        let body = way.body(&script, LIMIT);
        let place = self.node.notes().len();
        let mut conversation = self.account.client.send("POST", way.path.url(), Some(&body)).await?;
        let mut got = Answer::default();
        got.read_rest(&mut conversation).await;
        let note = self.node.notes().get(place).cloned().context("the node was not asked")?;
        let row = settled(&self.account.client, &note.request_id, RELEASED_WITHIN).await?;
        let right = got.complete
            && (way.path == Path::Embeddings || got.texts == full_texts(way))
            && self.world.cost_of(&row)? == way.price(&self.world.money, &body, &got)?;
        self.verdict.check("the next good request works", right, format!("{}: {got:?}, {row}", way.name));
        Ok(())
    }
}

/// What the node plays.
fn play(way: Way, point: Point, leave: Leave) -> crate::stand_in::Script {
    match point {
        // Never played.
        Point::BeforeAccept | Point::BeforeContent => way.script(0, vec![Step::Hold]),
        Point::InTheMiddle if leave == Leave::Stall => {
            let round: Vec<u8> = (MIDDLE..MIDDLE + 2).flat_map(|n| way.token(n)).collect();
            way.script(MIDDLE, vec![Step::Repeat(round.into(), ENDLESS)])
        }
        Point::InTheMiddle => way.script(MIDDLE, vec![Step::Hold]),
        Point::AtTheEnd | Point::AfterTheEnd => way.whole_script(MIDDLE),
    }
}

/// What a whole answer says, per choice.
fn full_texts(way: Way) -> Vec<String> {
    let mut all = Answer::default();
    for event in way.whole_script(MIDDLE).steps {
        let Step::Raw(event) = event else { continue };
        let text = String::from_utf8_lossy(&event).into_owned();
        let data = text.trim().trim_start_matches("data: ");
        if let Ok(value) = serde_json::from_str::<Value>(data) {
            all.take(&value);
        }
    }
    all.texts
}
