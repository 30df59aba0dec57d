//! Fresh databases with an account that can pay and one that can serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_store::{
    Db, KeyKind, LedgerOp, LedgerReply, NewHold, NewKey, NewUser, Posted, Replica, ResolveHold, Settled,
    UserCreated,
};
use cxmpute_wire::{
    Epoch, KeyId, MicroCredits, ProvisionId, RequestId, ServiceId, ServiceKind, Timestamp, Tokens, UserId,
};

pub const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A fresh database; removed when dropped.
pub struct Fresh {
    pub name: &'static str,
    pub db: Db,
    pub address: String,
    _directory: Option<tempfile::TempDir>,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The databases to run a test on.
pub async fn databases() -> Vec<Fresh> {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("sqlite:{}", directory.path().join("cxmpute.db").display());
    let db = Db::open(&address).await.unwrap();
    let mut all = vec![Fresh { name: "sqlite", db, address, _directory: Some(directory) }];
    match std::env::var("CXMPUTE_TEST_POSTGRES_URL") {
        Ok(server) => all.push(postgres(&server).await),
        Err(_) => eprintln!("SKIP postgres: CXMPUTE_TEST_POSTGRES_URL is not set"),
    }
    all
}

async fn postgres(server: &str) -> Fresh {
    let name = format!("cxt_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let pool = sqlx::postgres::PgPool::connect(server).await.unwrap();
    for sql in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    }
    pool.close().await;
    let (base, _) = server.rsplit_once('/').unwrap();
    let address = format!("{base}/{name}");
    Fresh { name: "postgres", db: Db::open(&address).await.unwrap(), address, _directory: None }
}

/// Runs statements outside the store's methods: what a fault or an attacker would do.
pub async fn tamper(db: &Db, sql: &str) -> Result<(), cxmpute_store::DbError> {
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    let mut tx = db.begin().await?;
    match &mut tx {
        cxmpute_store::Tx::Sqlite(tx) => sqlx::raw_sql(sql).execute(&mut **tx).await.map(drop)?,
        cxmpute_store::Tx::Postgres(tx) => sqlx::raw_sql(sql).execute(&mut **tx).await.map(drop)?,
    }
    tx.commit().await
}

/// 1 micro-credit per prompt token, 10 per completion token, share 9000.
pub fn price() -> Arc<PriceRow> {
    Arc::new(PriceRow {
        id: "m".into(),
        version: 1,
        prompt: MicroCredits(1_000_000),
        completion: MicroCredits(10_000_000),
        embedding: MicroCredits(1_000_000),
        character: MicroCredits(0),
        second: MicroCredits(0),
        url: MicroCredits(0),
        image: MicroCredits(0),
        minimum: MicroCredits(0),
        share_bp: 9000,
        free: false,
    })
}

pub fn user_id(name: &str) -> UserId {
    UserId::from_tail(name)
}

/// An account with a key.
pub async fn account(db: &Db, name: &str) -> (UserId, KeyId) {
    let user = NewUser { id: user_id(name), email: format!("{name}@example.org"), created_at: NOW };
    assert!(matches!(db.create_user(&user).await.unwrap(), UserCreated::Created(_)));
    let key = KeyId::from_tail(&format!("key{name}"));
    db.create_key(&NewKey {
        id: key.clone(),
        user_id: user.id.clone(),
        kind: KeyKind::Api,
        name: "test".into(),
        hash: name.as_bytes().to_vec(),
        env: "live".into(),
        budget: None,
        created_at: NOW,
    })
    .await
    .unwrap();
    (user.id, key)
}

/// A payer with money, a provider, and this process's place.
pub struct Market {
    pub db: Db,
    pub payer: UserId,
    pub key: KeyId,
    pub provider: UserId,
    pub replica: Replica,
}

impl Market {
    pub async fn new(db: &Db, money: i64) -> Self {
        let (payer, key) = account(db, "payer").await;
        let (provider, _) = account(db, "provider").await;
        if money > 0 {
            let posted =
                db.grant_credits(&payer, MicroCredits(money), "test", "start", "start", NOW).await.unwrap();
            assert_eq!(posted, Posted::Entered);
        }
        let replica = db.claim_replica("gateway").await.unwrap();
        Self { db: db.clone(), payer, key, provider, replica }
    }

    /// What the payer has available and held.
    pub async fn balance(&self) -> (i64, i64) {
        let balance = self.db.balance(&self.payer).await.unwrap();
        (balance.available.0, balance.held.0)
    }

    pub fn hold(&self, request: &str, amount: i64) -> LedgerOp {
        LedgerOp::Admit(self.admitted(request, amount))
    }

    pub fn admitted(&self, request: &str, amount: i64) -> Arc<NewHold> {
        Arc::new(NewHold {
            request_id: RequestId::from_tail(request),
            user_id: self.payer.clone(),
            key_id: self.key.clone(),
            amount: MicroCredits(amount),
            price: price(),
            replica: self.replica.id.as_str().into(),
            epoch: self.replica.epoch,
            route: "chat/completions".into(),
            model: "m".into(),
            service: ServiceId::new(ServiceKind::Llm, "m"),
            streamed: true,
            title: Some("title".into()),
            referer: None,
            created_at: NOW,
        })
    }

    pub fn end(&self, request: &str, held: i64, end: End, units: Units) -> ResolveHold {
        ResolveHold {
            hold: self.admitted(request, held),
            held: MicroCredits(held),
            end,
            counted: units,
            claimed: None,
            provision_id: Some(ProvisionId::from_tail("node")),
            provider: Some(self.provider.clone()),
            finish_reason: Some("stop".into()),
            attempts: vec![cxmpute_store::AttemptRecord {
                attempt: 1,
                provision_id: ProvisionId::from_tail("node"),
                epoch: Epoch(1),
                outcome: end,
                code: None,
                accept: None,
                first_token: None,
                total: None,
            }],
            first_token: None,
            latency: None,
            expired: false,
            now: NOW,
        }
    }

    pub async fn one(&self, op: LedgerOp) -> LedgerReply {
        self.db.apply(&[op]).await.unwrap()[0]
    }

    pub async fn resolve(&self, end: ResolveHold) -> Settled {
        match self.one(LedgerOp::Resolve(Arc::new(end))).await {
            LedgerReply::Resolved(settled) => settled,
            other => panic!("{other:?}"),
        }
    }

    /// Asserts that the books are right and how many holds are open.
    pub async fn assert_clean(&self, open: usize, place: &str) {
        let report = self.db.check_ledger().await.unwrap();
        assert!(report.is_clean(), "{place}: {report:?}");
        assert_eq!(report.open_holds.len(), open, "{place}: {report:?}");
        assert!((report.explained() - 1.0).abs() < f64::EPSILON);
    }
}

pub fn chat(prompt: u64, completion: u64) -> Units {
    Units::chat(Tokens(prompt), Tokens(completion))
}
