//! Work with one body each way (vectors, speech, a transcript, a reading of a picture, pages): held, carried to a node,
//! checked as a whole, settled, and only then handed to the client. Each kind of such work is an [`Errand`]; the way is
//! the same for all of them.

mod carry;
mod live;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::price::Units;
use cxmpute_market::wish::Wishes;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::{Code, RequestId, UserId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::{price_of, refusal};
use super::delivery::{Undelivered, delivery};
use super::respond::{LAST_WORDS, live, lost_task, whole};
use super::retry::Fault;
use super::run::Head;
use super::select::Seeker;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};
use crate::meter::{Admission, AdmitError, Hold};
use crate::room::Share;
use crate::trace::{Key, Phase, Watch};
use carry::Carry;
pub use live::{Incoming, Live, Outflow};

/// One kind of work with one body each way.
pub trait Errand: Debug + Send + Sync + Sized + 'static {
    /// What a node sent, checked.
    type Answer: Send + 'static;

    /// What the node is asked for.
    fn path(&self) -> WorkPath;

    /// At most so many units, cheaply: what is held first.
    fn bound(&self) -> Units;

    /// The exact units of what was asked; blocking work, done once.
    fn count(&self) -> Units {
        self.bound()
    }

    /// Whether the exact count is known to be too large, with the refusal.
    ///
    /// # Errors
    /// It is.
    fn check(&self, _exact: &Units) -> ApiResult<()> {
        Ok(())
    }

    /// Whether a bound this large is worth a hold, or has to be counted first.
    fn is_plausible(&self, _bound: &Units) -> bool {
        true
    }

    /// Tokens of these units, for the limits of rate.
    fn tokens(&self, units: &Units) -> u64 {
        units.embedding.0
    }

    /// The body for the node. It names the model by its catalogue id and nothing of the user.
    ///
    /// # Errors
    /// A fault of our own.
    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes>;

    /// Most bytes of a good answer.
    fn max_bytes(&self) -> u64;

    /// Checks the whole answer of a node, and makes of it what the client asked for; what takes long runs off the async
    /// threads.
    fn read(&self, app: &App, body: Vec<u8>) -> impl Future<Output = Result<Self::Answer, Misread>> + Send;

    /// How the answer is handed on while a node makes it; `None` where it leaves as a whole, settled.
    fn live(&self) -> Option<Live> {
        None
    }

    /// Takes what a node sends. A live answer goes out from here, each part checked before it leaves; what is still to be said at
    /// its end is for [`Self::print`].
    fn receive(
        &self,
        app: &App,
        node: &mut Incoming<'_>,
        _out: &mut Outflow,
    ) -> impl Future<Output = Result<Self::Answer, Misread>> + Send {
        async { self.read(app, node.whole().await?).await }
    }

    /// What is paid for a good answer, of what was counted.
    fn delivered(&self, exact: Units, _answer: &Self::Answer) -> Units {
        exact
    }

    /// What is paid when the client leaves, or its own deadline passes, after a node accepted (money rules, section 6):
    /// what it had accepted as input, where the input is what is priced; nothing, where only what is delivered is.
    fn abandoned(&self) -> Units {
        Units::default()
    }

    /// The node's claim, in units of the count.
    fn claimed(&self, _counted: &Units, _answer: &Self::Answer) -> Option<Units> {
        None
    }

    /// The answer for the client, settled.
    fn print(&self, ticket: &Ticket, answer: Self::Answer, units: &Units, settled: &Settled) -> Printed;
}

/// Why nothing was made of a node's answer.
#[derive(Debug)]
pub enum Misread {
    /// The node did something wrong.
    Node(Fault),
    /// We failed; no node is to blame.
    Ours(ApiError),
    /// The client left, or stopped reading.
    Client(Undelivered),
}

impl From<Undelivered> for Misread {
    fn from(undelivered: Undelivered) -> Self {
        Self::Client(undelivered)
    }
}

impl From<Fault> for Misread {
    fn from(fault: Fault) -> Self {
        Self::Node(fault)
    }
}

/// The failure that a node reports as the body, where it reports one. An answer begins otherwise: no good answer has a
/// field `error` at its top.
pub(in crate::relay) fn failure(body: &[u8]) -> Option<Fault> {
    #[derive(serde::Deserialize)]
    struct Report {
        error: NodeError,
    }
    #[derive(serde::Deserialize)]
    struct NodeError {
        #[serde(default)]
        code: Option<serde_json::Value>,
    }
    if body.first() != Some(&b'{') {
        return None;
    }
    let report: Report = serde_json::from_slice(body).ok()?;
    let code = report.error.code.as_ref().and_then(serde_json::Value::as_str);
    let code = code.and_then(|code| code.parse::<Code>().ok());
    Some(Fault::reported(code))
}

/// An answer that is an object. What reads types would take a list for one, field by field.
pub(super) fn object<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Fault::Protocol);
    }
    serde_json::from_slice(body).map_err(|_| Fault::Protocol)
}

/// An answer as the client gets it.
#[derive(Debug)]
pub struct Printed {
    /// The body.
    pub bytes: Bytes,
    /// Its type.
    pub content_type: &'static str,
}

impl Printed {
    /// The same, which takes the room of what it was made of until the client has it.
    fn holding(self, share: Share) -> Self {
        Self { bytes: share.hold(self.bytes), ..self }
    }

    /// JSON.
    #[must_use]
    pub fn json(body: &impl serde::Serialize) -> Self {
        Self { bytes: serde_json::to_vec(body).unwrap_or_default().into(), content_type: "application/json" }
    }
}

/// What all errands need to know of their request.
#[derive(Debug)]
pub struct Ticket {
    /// Made at the edge.
    pub request_id: RequestId,
    /// The request's trace.
    pub watch: Watch,
    /// When the request arrived.
    pub arrived: Duration,
    /// Path of the route, for the receipt.
    pub route: &'static str,
    /// Name of the operation in traces.
    pub operation: &'static str,
    /// The model that answers.
    pub model: Arc<ModelEntry>,
    /// The model's name as it was asked for.
    pub model_name: String,
    /// What is wished for of the nodes.
    pub wishes: Arc<Wishes>,
    /// Label of the calling application.
    pub title: Option<String>,
    /// Address of the calling application.
    pub referer: Option<String>,
    /// The longest the whole may take.
    pub total: Duration,
    /// Whether that is the client's wish.
    pub hurried: bool,
}

/// A checked request on its way.
#[derive(Debug)]
pub(super) struct Job<E> {
    pub ticket: Ticket,
    pub errand: E,
}

/// Refuses who could not even pay for so little, before work is done to find out how much it is. Binds nothing: that is
/// done by [`run_errand`], when it is known.
///
/// # Errors
/// 402, or the store is away.
pub async fn afford(app: &App, caller: &Caller, model: &ModelEntry, least: &Units) -> ApiResult<()> {
    let required = price_of(&model.price, least)?;
    let available = app.db.balance(&caller.user_id).await?.available;
    if required > available {
        return Err(refusal(AdmitError::Insufficient { required, available }));
    }
    Ok(())
}

/// Runs one errand.
///
/// # Errors
/// The request is refused, or failed.
pub async fn run_errand<E: Errand>(
    app: Arc<App>,
    caller: Caller,
    ticket: Ticket,
    errand: E,
) -> ApiResult<Response> {
    caller.permit_model(&ticket.model)?;
    let job = Arc::new(Job { ticket, errand });
    let (units, hold) = watched_admission(&app, &caller, &job).await?;
    let body = job.errand.node_body(&job.ticket)?;
    let (head, told) = oneshot::channel();
    let handed_on = job.errand.live();
    let rhythm = handed_on.and_then(|live| live.failure).map(|_| app.config.relay.headers_held());
    let write_stall = Duration::from_millis(app.config.server.write_stall_ms);
    let total = Instant::now() + job.ticket.total;
    // Dropped with this future when the client leaves.
    let (outlet, delivered) = delivery(rhythm, write_stall, total + LAST_WORDS);
    let (user, permit): (UserId, _) = (caller.user_id, caller.permit);
    let carry = Carry::new(app.clone(), user, permit, job.clone(), body, outlet.gone(), total);
    let out = Outflow::new(handed_on, head, outlet);
    app.tasks.spawn("errand", Box::pin(carry.run(hold, units, out)));
    let (id, arrived) = (job.ticket.request_id.as_str(), job.ticket.arrived);
    match (told.await, handed_on) {
        (Ok(Head::Stream(meta)), Some(way)) => {
            Ok(live(&app, id, arrived, delivered, way.content_type, &meta))
        }
        (told, _) => {
            delivered.dismiss();
            match told {
                Ok(Head::Whole(printed, meta)) => Ok(whole(&app, id, arrived, printed, &meta)),
                Ok(Head::Failed(error)) => Err(error),
                Ok(Head::Stream(_)) | Err(_) => Err(lost_task()),
            }
        }
    }
}

/// Admission, as a phase of the request's trace.
async fn watched_admission<E: Errand>(
    app: &App,
    caller: &Caller,
    job: &Arc<Job<E>>,
) -> ApiResult<(Option<Units>, Hold)> {
    let ticket = &job.ticket;
    ticket.watch.describe(|fields| {
        fields.set(Key::Operation, ticket.operation);
        fields.set(Key::ProviderName, "cxmpute");
        fields.set(Key::RequestModel, ticket.model_name.clone());
        fields.set(Key::ResponseModel, ticket.model.id.clone());
    });
    let mut phase = ticket.watch.open(Phase::Admission);
    let seeker = Seeker::new(&ticket.model, &caller.user_id, &ticket.wishes);
    let admitted = match seeker.check(&app.fleet, app.meter.stats().queue) {
        Ok(()) => admit(app, caller, job).await,
        Err(refused) => Err(refused),
    };
    admitted.inspect_err(|refused| phase.fail(refused.code))
}

/// Binds the money: by the bound, and where that is too much, by the exact count; gives the count where it was made.
async fn admit<E: Errand>(app: &App, caller: &Caller, job: &Arc<Job<E>>) -> ApiResult<(Option<Units>, Hold)> {
    let ticket = &job.ticket;
    let mut units = job.errand.bound();
    // About four bytes are a token; put right when the request ends.
    caller.reserve_tokens(job.errand.tokens(&units) / 4)?;
    let mut exact = None;
    loop {
        if exact.is_some() || job.errand.is_plausible(&units) {
            let admission = Admission {
                request_id: ticket.request_id.clone(),
                user_id: caller.user_id.clone(),
                key_id: caller.key_id.clone(),
                route: ticket.route.to_owned(),
                model: ticket.model.id.clone(),
                service: ticket.model.service.clone(),
                price: ticket.model.price.clone(),
                amount: price_of(&ticket.model.price, &units)?,
                streamed: job.errand.live().is_some(),
                title: ticket.title.clone(),
                referer: ticket.referer.clone(),
                created_at: app.clock.now(),
            };
            match app.meter.admit(admission).await {
                Ok(hold) => return Ok((exact, hold)),
                Err(AdmitError::Insufficient { .. } | AdmitError::Budget { .. }) if exact.is_none() => {}
                Err(other) => return Err(refusal(other)),
            }
        }
        let counting = job.clone();
        units =
            tokio::task::spawn_blocking(move || counting.errand.count()).await.map_err(ApiError::internal)?;
        job.errand.check(&units)?;
        exact = Some(units);
    }
}
