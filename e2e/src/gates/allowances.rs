//! L1 for allowances: two replicas on one database. What one took beforehand is there for the other, to the last micro-credit, and
//! never twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cxmpute_gateway::meter::{Admission, AdmitError, Meter, MeterConfig, Settlement};
use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::{Db, KeyKind, NewKey, NewUser};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, ServiceId, ServiceKind, Tokens, UserId};

use crate::ground::until;
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::fresh_postgres;

/// The assertion that catches a replica that does not give back what it took beforehand.
pub const CAUGHT_BY: &str = "what one replica took beforehand is there for the other";

const MONEY: i64 = 1_000_000;
/// Four times what a request waits for money that another replica has.
const RECALLED_WITHIN: Duration = Duration::from_secs(2);

struct Replica {
    meter: Meter,
    tasks: Tasks,
    name: &'static str,
}

impl Replica {
    async fn start(url: &str, name: &'static str, setting: Setting) -> Result<Self> {
        let tasks = Tasks::new();
        let config = MeterConfig {
            replica: name.to_owned(),
            busy: 2,
            #[cfg(feature = "sabotage")]
            sabotage: setting.bad.and_then(cxmpute_gateway::sabotage::Sabotage::from_name),
            ..MeterConfig::default()
        };
        let meter = Meter::start(Db::open(url).await?, Clock::system(), &tasks, config).await?;
        ensure!(
            cfg!(feature = "sabotage") || setting.bad.is_none(),
            "a known-bad variant needs the feature `sabotage`"
        );
        Ok(Self { meter, tasks, name })
    }

    fn admission(&self, n: usize, amount: i64) -> Admission {
        Admission {
            request_id: RequestId::from_tail(&format!("{}{n}", self.name)),
            user_id: UserId::from_tail("payer"),
            key_id: KeyId::from_tail("key"),
            route: "chat/completions".into(),
            model: "m".into(),
            service: ServiceId::new(ServiceKind::Llm, "m"),
            price: price(),
            amount: MicroCredits(amount),
            streamed: false,
            title: None,
            referer: None,
            created_at: Clock::system().now(),
        }
    }
}

fn price() -> Arc<PriceRow> {
    Arc::new(PriceRow {
        id: "m".to_owned(),
        version: 1,
        prompt: MicroCredits(1_000_000),
        completion: MicroCredits(1_000_000),
        embedding: MicroCredits(0),
        character: MicroCredits(0),
        second: MicroCredits(0),
        url: MicroCredits(0),
        image: MicroCredits(0),
        minimum: MicroCredits(0),
        share_bp: 9_000,
        free: false,
    })
}

async fn people(db: &Db) -> Result<()> {
    let now = Clock::system().now();
    let (payer, key) = (UserId::from_tail("payer"), KeyId::from_tail("key"));
    let user = NewUser { id: payer.clone(), email: "payer@example.org".into(), created_at: now };
    db.create_user(&user).await?;
    db.create_key(&NewKey {
        id: key,
        user_id: payer.clone(),
        kind: KeyKind::Api,
        name: "test".into(),
        hash: b"hash".to_vec(),
        env: "live".into(),
        budget: None,
        created_at: now,
    })
    .await?;
    db.grant_credits(&payer, MicroCredits(MONEY), "test", "start", "start", now).await?;
    Ok(())
}

/// The gate; on PostgreSQL, the one database that has several replicas.
///
/// # Errors
/// The replicas could not be started.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("L1-allow");
    verdict.count = 1;
    let url = fresh_postgres()?;
    let db = Db::open(&url).await?;
    people(&db).await?;
    let payer = UserId::from_tail("payer");
    let one = Replica::start(&url, "one", setting).await?;
    let two = Replica::start(&url, "two", setting).await?;
    // The first replica is busy until it has an allowance.
    let mut spent = 0;
    for n in 0.. {
        let hold = one.meter.admit(one.admission(n, 1000)).await?;
        let counted = Units::chat(Tokens(7), Tokens(0));
        let settled = hold.settle(Settlement { counted, ..Settlement::none(End::Finished) }).await?;
        spent += settled.cost.0;
        if db.check_ledger().await?.allowances == 1 {
            break;
        }
        ensure!(n < 100, "no allowance was taken");
    }
    let left = MONEY - spent;
    verdict.equal(
        "what is only taken beforehand is shown as available",
        &db.balance(&payer).await?.available.0,
        &left,
    );
    // The second one binds all there is, what the first one has included.
    let asked = Instant::now();
    let all = two.meter.admit(two.admission(0, left)).await;
    let refused = all.as_ref().err().map(ToString::to_string);
    verdict.check(CAUGHT_BY, all.is_ok(), format!("{refused:?} for {left}"));
    verdict.check(
        "money is waited for half a second at most (4 x)",
        asked.elapsed() < RECALLED_WITHIN,
        format!("{:?}", asked.elapsed()),
    );
    if let Ok(all) = all {
        // Now there is nothing for anybody, and both say so.
        for replica in [&one, &two] {
            let refused = replica.meter.admit(replica.admission(1000, 1)).await.err();
            let (required, available) = (MicroCredits(1), MicroCredits(0));
            let wanted = Some(AdmitError::Insufficient { required, available });
            verdict.check(
                "what is bound is there for nobody",
                refused == wanted,
                format!("{}: {refused:?}", replica.name),
            );
        }
        all.void(End::Refused, Vec::new()).await?;
    }
    for replica in [one, two] {
        let left_over = replica.tasks.stop(Duration::from_secs(10)).await;
        verdict.check("no task is left", left_over.is_empty(), format!("{left_over:?}"));
    }
    let back = until("every allowance to be given back", Duration::from_secs(5), async || {
        Ok((db.check_ledger().await?.allowances == 0).then_some(()))
    })
    .await;
    verdict.check("who stops gives everything back", back.is_ok(), format!("{back:?}"));
    let report = db.check_ledger().await?;
    verdict.check(
        "the ledger explains every credit",
        report.is_clean() && report.open_holds.is_empty(),
        format!("{report:?}"),
    );
    verdict.equal("nothing is lost", &db.balance(&payer).await?.available.0, &left);
    Ok(verdict)
}
