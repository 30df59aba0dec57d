//! Two replicas on one database: what one took beforehand is there for the other, to the last micro-credit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::settings::postgres_url;
use cxmpute_e2e::world::fresh_postgres;
use cxmpute_gateway::meter::{Admission, AdmitError, Meter, MeterConfig, Settlement};
use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::{Db, KeyKind, NewKey, NewUser};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, ServiceId, ServiceKind, Tokens, UserId};

const MONEY: i64 = 1_000_000;
/// Four times what a request waits for money that another replica has.
const RECALLED_WITHIN: Duration = Duration::from_secs(2);

struct Replica {
    meter: Meter,
    tasks: Tasks,
    name: &'static str,
}

impl Replica {
    async fn start(url: &str, name: &'static str) -> Self {
        let tasks = Tasks::new();
        let config = MeterConfig { replica: name.to_owned(), busy: 2, ..MeterConfig::default() };
        let db = Db::open(url).await.unwrap();
        let meter = Meter::start(db, Clock::system(), &tasks, config).await.unwrap();
        Self { meter, tasks, name }
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
    let one = serde_json::json!({"id": "m", "version": 1, "prompt": 1_000_000, "completion": 1_000_000, "share_bp": 9000});
    Arc::new(serde_json::from_value(one).unwrap())
}

async fn people(db: &Db) {
    let now = Clock::system().now();
    let (payer, key) = (UserId::from_tail("payer"), KeyId::from_tail("key"));
    let user = NewUser { id: payer.clone(), email: "payer@example.org".into(), created_at: now };
    db.create_user(&user).await.unwrap();
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
    .await
    .unwrap();
    db.grant_credits(&payer, MicroCredits(MONEY), "test", "start", "start", now).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_in_the_allowance_of_one_replica_is_there_for_the_other() {
    let _alone = alone().unwrap();
    assert!(
        postgres_url().is_some(),
        "CXMPUTE_TEST_POSTGRES_URL is not set: run scripts/test, which starts a PostgreSQL"
    );
    let url = fresh_postgres().unwrap();
    let db = Db::open(&url).await.unwrap();
    people(&db).await;
    let (one, two) = (Replica::start(&url, "one").await, Replica::start(&url, "two").await);
    // The first replica is busy until it has an allowance.
    let mut spent = 0;
    for n in 0.. {
        let hold = one.meter.admit(one.admission(n, 1000)).await.unwrap();
        let counted = Units::chat(Tokens(7), Tokens(0));
        let settled = hold.settle(Settlement { counted, ..Settlement::none(End::Finished) }).await.unwrap();
        spent += settled.cost.0;
        if db.check_ledger().await.unwrap().allowances == 1 {
            break;
        }
        assert!(n < 100, "no allowance was taken");
    }
    let left = MONEY - spent;
    assert_eq!(db.balance(&UserId::from_tail("payer")).await.unwrap().available.0, left);
    // The second one binds all there is, what the first one has included.
    let asked = Instant::now();
    let all = two.meter.admit(two.admission(0, left)).await.unwrap();
    assert!(asked.elapsed() < RECALLED_WITHIN, "{:?}", asked.elapsed());
    // Now there is nothing for anybody, and both say so.
    for replica in [&one, &two] {
        let refused = replica.meter.admit(replica.admission(1000, 1)).await.unwrap_err();
        let (required, available) = (MicroCredits(1), MicroCredits(0));
        assert_eq!(refused, AdmitError::Insufficient { required, available }, "{}", replica.name);
    }
    all.void(End::Refused, Vec::new()).await.unwrap();
    for replica in [one, two] {
        assert!(replica.tasks.stop(Duration::from_secs(10)).await.is_empty());
    }
    until("every allowance to be given back", Duration::from_secs(5), async || {
        Ok((db.check_ledger().await?.allowances == 0).then_some(()))
    })
    .await
    .unwrap();
    let report = db.check_ledger().await.unwrap();
    assert!(report.is_clean() && report.open_holds.is_empty(), "{report:?}");
    assert_eq!(db.balance(&UserId::from_tail("payer")).await.unwrap().available.0, left);
}
