//! Databases that an earlier program wrote keep their money.
#![allow(clippy::print_stderr, clippy::disallowed_methods)]

use cxmpute_market::ledger::End;
use cxmpute_wire::{RequestId, Timestamp, UserId};

use super::*;
use crate::ledger::Posted;

const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A database of the schema of that version, on every kind, and what keeps its file.
async fn databases(name: &str, version: i64) -> Vec<(Db, Option<tempfile::TempDir>)> {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("sqlite:{}", directory.path().join("cxmpute.db").display());
    let mut all = vec![(Db::connect(&address).await.unwrap(), Some(directory))];
    match std::env::var("CXMPUTE_TEST_POSTGRES_URL") {
        Ok(server) => {
            let name = format!("cxt_migrations_{name}_{}", std::process::id());
            let pool = sqlx::postgres::PgPool::connect(&server).await.unwrap();
            for sql in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
            }
            let (base, _) = server.rsplit_once('/').unwrap();
            all.push((Db::connect(&format!("{base}/{name}")).await.unwrap(), None));
        }
        Err(_) => eprintln!("SKIP postgres: CXMPUTE_TEST_POSTGRES_URL is not set"),
    }
    for (db, _) in &all {
        run_to(db, version).await.unwrap();
    }
    all
}

async fn write(db: &Db, sql: &str) -> Result<(), DbError> {
    let mut tx = db.begin().await?;
    raw(&mut tx, sql.to_owned()).await?;
    tx.commit().await
}

/// As the program of schema 3 left it: request `a` paid 2,410 of 3,000 and got 10 back, `streaming` had extended its
/// 1,000 by 500 and delivered 7 tokens, `silent` was admitted, `free` held nothing, `left` was given back.
const SCHEMA_3: &[&str] = &[
    "INSERT INTO users (id, email, created_at) VALUES ('us_payer', 'p@example.org', 1), ('us_node', 'n@example.org', 1)",
    "INSERT INTO api_keys (id, user_id, kind, name, hash, env, created_at, spent, held, spend_day, day_spend, month_spend)
     VALUES ('key', 'us_payer', 'api', 'k', '\\x6b', 'live', 1, 2400, 1800, 20260101, 4200, 4200)",
    "INSERT INTO ledger_accounts (id, owner, kind, balance) VALUES
        ('us_payer:user_available', 'us_payer', 'user_available', 5800),
        ('us_payer:user_held', 'us_payer', 'user_held', 1800),
        ('us_node:provider_pending', 'us_node', 'provider_pending', 2169)",
    "UPDATE ledger_accounts SET balance = -10000 WHERE id = 'system:external'",
    "UPDATE ledger_accounts SET balance = 231 WHERE id = 'system:platform_fee'",
    "INSERT INTO ledger_transactions (id, kind, request_id, attempt, actor, reason, created_at) VALUES
        ('grant:g', 'grant', NULL, NULL, 'test', 'start', 1),
        ('hold:req_a', 'hold', 'req_a', NULL, 'gateway', 'request admitted', 2),
        ('resolve:req_a', 'settle', 'req_a', 1, 'gateway', 'finished', 3),
        ('refund:r', 'refund', 'req_a', NULL, 'test', 'why', 4),
        ('hold:req_streaming', 'hold', 'req_streaming', NULL, 'gateway', 'request admitted', 5),
        ('extend:req_streaming:1', 'extend', 'req_streaming', NULL, 'gateway', 'hold extended', 6),
        ('hold:req_silent', 'hold', 'req_silent', NULL, 'gateway', 'request admitted', 7),
        ('hold:req_free', 'hold', 'req_free', NULL, 'gateway', 'request admitted', 7),
        ('hold:req_left', 'hold', 'req_left', NULL, 'gateway', 'request admitted', 8),
        ('resolve:req_left', 'void', 'req_left', NULL, 'gateway', 'refused', 9)",
    "INSERT INTO postings (tx, account, amount) VALUES
        ('grant:g', 'system:external', -10000), ('grant:g', 'us_payer:user_available', 10000),
        ('hold:req_a', 'us_payer:user_available', -3000), ('hold:req_a', 'us_payer:user_held', 3000),
        ('resolve:req_a', 'us_payer:user_held', -3000), ('resolve:req_a', 'us_payer:user_available', 590),
        ('resolve:req_a', 'us_node:provider_pending', 2169), ('resolve:req_a', 'system:platform_fee', 241),
        ('refund:r', 'system:platform_fee', -10), ('refund:r', 'us_payer:user_available', 10),
        ('hold:req_streaming', 'us_payer:user_available', -1000), ('hold:req_streaming', 'us_payer:user_held', 1000),
        ('extend:req_streaming:1', 'us_payer:user_available', -500),
        ('extend:req_streaming:1', 'us_payer:user_held', 500),
        ('hold:req_silent', 'us_payer:user_available', -300), ('hold:req_silent', 'us_payer:user_held', 300),
        ('hold:req_left', 'us_payer:user_available', -40), ('hold:req_left', 'us_payer:user_held', 40),
        ('resolve:req_left', 'us_payer:user_held', -40), ('resolve:req_left', 'us_payer:user_available', 40)",
    "INSERT INTO replicas (id, epoch, started_at, lease_until) VALUES ('gateway', 1, 0, 0)",
    "INSERT INTO holds (request_id, user_id, key_id, state, amount, posted, refunded, extensions, price, replica, epoch,
        attempt, provision_id, provider, accepted_at, checkpoint, created_at, resolved_at, spend_day)
     SELECT r.id, 'us_payer', 'key', r.state, r.amount, r.posted, r.refunded, r.extensions,
        '{\"id\":\"m\",\"version\":1,\"prompt\":1000000,\"completion\":10000000,\"share_bp\":9000}', 'gateway', 1,
        r.attempt, r.node, CASE WHEN r.node IS NULL THEN NULL ELSE 'us_node' END, NULL, r.checkpoint, r.at, NULL, 20260101
     FROM (SELECT 'req_a' AS id, 'posted' AS state, 3000 AS amount, 2410 AS posted, 10 AS refunded, 0 AS extensions,
                  1 AS attempt, 'pv_node' AS node, NULL AS checkpoint, 2 AS at
           UNION ALL SELECT 'req_streaming', 'held', 1500, 0, 0, 1, 2, 'pv_node', '{\"prompt\":10,\"completion\":7}', 5
           UNION ALL SELECT 'req_silent', 'held', 300, 0, 0, 0, 0, NULL, NULL, 7
           UNION ALL SELECT 'req_free', 'held', 0, 0, 0, 0, 0, NULL, NULL, 7
           UNION ALL SELECT 'req_left', 'voided', 40, 0, 0, 0, 0, NULL, NULL, 8) r",
    "INSERT INTO requests (id, user_id, key_id, route, model, service, streamed, title, price_id, price_version, outcome,
        finish_reason, provision_id, provider, attempts, prompt, completion, cost, provider_reward, platform_fee,
        created_at, finished_at) VALUES
        ('req_a', 'us_payer', 'key', 'chat/completions', 'm', 'llm:m', 0, 'title', 'm', 1, 'finished',
            'stop', 'pv_node', 'us_node', 1, 2400, 1, 2410, 2169, 241, 2, 3),
        ('req_streaming', 'us_payer', 'key', 'chat/completions', 'm', 'llm:m', 1, 'story', 'm', 1, NULL,
            NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 5, NULL),
        ('req_silent', 'us_payer', 'key', 'embeddings', 'm', 'llm:m', 0, NULL, 'm', 1, NULL,
            NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 7, NULL),
        ('req_free', 'us_payer', 'key', 'embeddings', 'm', 'llm:m', 0, NULL, 'm', 1, NULL,
            NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 7, NULL),
        ('req_left', 'us_payer', 'key', 'embeddings', 'm', 'llm:m', 0, NULL, 'm', 1, 'refused',
            NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 8, 9)",
];

#[tokio::test]
async fn a_ledger_of_schema_3_keeps_its_money_its_open_holds_and_its_history() {
    for (db, _directory) in databases("kept", 3).await {
        let place = db.kind();
        for sql in SCHEMA_3 {
            let sql =
                if place == DbKind::Sqlite { sql.replace("'\\x6b'", "x'6b'") } else { (*sql).to_owned() };
            write(&db, &sql).await.unwrap();
        }
        let before = db.balances().await.unwrap();
        run(&db).await.unwrap();

        assert_eq!(db.balances().await.unwrap(), before);
        let report = db.check_ledger().await.unwrap();
        assert!(report.is_clean(), "{place:?}: {report:?}");
        assert_eq!((report.transactions, report.resolved, report.value), (10, 2, 3040), "{place:?}");
        assert_eq!(report.open_holds, ["req_free", "req_silent", "req_streaming"], "{place:?}");

        let (payer, a) = (UserId::from_tail("payer"), RequestId::from_tail("a"));
        let row = db.generation(&a, &payer).await.unwrap().unwrap();
        assert_eq!((row.cost.0, row.end, row.title.as_deref()), (2410, Some(End::Finished), Some("title")));
        let postings = db.list_postings(&a).await.unwrap();
        let lines: Vec<_> = postings.iter().map(|p| (p.transaction.as_str(), p.amount.0)).collect();
        let settled = ["resolve:req_a"; 4].into_iter().zip([241, 2169, 590, -3000]);
        let expected = [("hold:req_a", -3000), ("hold:req_a", 3000), ("refund:r", -10), ("refund:r", 10)];
        assert_eq!(lines, expected.into_iter().chain(settled).collect::<Vec<_>>(), "{place:?}");
        let again = db.refund(&a, cxmpute_wire::MicroCredits(100), "test", "why", "r", NOW).await.unwrap();
        assert_eq!(again, Posted::Duplicate, "{place:?}");
        let more = db.refund(&a, cxmpute_wire::MicroCredits(5), "test", "why", "r2", NOW).await.unwrap();
        assert_eq!(more, Posted::Entered, "{place:?}");
        for sql in ["UPDATE ledger_transactions SET reason = 'x'", "DELETE FROM ledger_transactions"] {
            assert!(write(&db, sql).await.is_err(), "{place:?}: {sql}");
        }

        // The next process resolves what was open, at the price that the old rows carried.
        let running = db.generation(&RequestId::from_tail("streaming"), &payer).await.unwrap().unwrap();
        assert_eq!((running.end, running.title.as_deref()), (None, Some("story")), "{place:?}");
        let replica = db.claim_replica("gateway").await.unwrap();
        let recovery = db.recover(&replica, NOW).await.unwrap();
        assert_eq!(recovery.settled, [RequestId::from_tail("streaming")], "{place:?}");
        assert_eq!(recovery.voided.len(), 2, "{place:?}");
        let ended = db.generation(&RequestId::from_tail("streaming"), &payer).await.unwrap().unwrap();
        assert_eq!((ended.end, ended.cost.0, ended.attempts), (Some(End::GatewayDied), 80, 1), "{place:?}");
        assert_eq!((ended.streamed, ended.title.as_deref(), ended.created_at.0), (true, Some("story"), 5));
        let balance = db.balance(&payer).await.unwrap();
        assert_eq!((balance.available.0, balance.held.0), (5800 + 5 + 1800 - 80, 0), "{place:?}");
        let report = db.check_ledger().await.unwrap();
        assert!(report.is_clean() && report.open_holds.is_empty(), "{place:?}: {report:?}");
    }
}

/// What the new row of a transaction could not hold is refused, and the old schema stays as it was.
#[tokio::test]
async fn a_transaction_of_more_lines_than_fit_stops_the_migration() {
    for (db, _directory) in databases("refused", 3).await {
        let mut lines = String::new();
        for n in 0..9 {
            let account = format!("('a{n}:user_promo', 'a{n}', 'user_promo', 0)");
            let insert = format!("INSERT INTO ledger_accounts (id, owner, kind, balance) VALUES {account}");
            write(&db, &insert).await.unwrap();
            lines.push_str(&format!(
                "{}('grant:g', 'a{n}:user_promo', {})",
                if n == 0 { "" } else { ", " },
                n - 10
            ));
        }
        let transaction = "INSERT INTO ledger_transactions (id, kind, actor, reason, created_at)
                           VALUES ('grant:g', 'grant', 'x', 'x', 0)";
        write(&db, transaction).await.unwrap();
        write(&db, &format!("INSERT INTO postings (tx, account, amount) VALUES {lines}")).await.unwrap();
        run(&db).await.unwrap_err();
        write(&db, "INSERT INTO postings (tx, account, amount) VALUES ('grant:g', 'system:external', 1)")
            .await
            .expect("postings is a table still");
    }
}

/// SQLite builds a table each time for a list of values or a sort; what every request runs must not need one.
#[tokio::test]
async fn the_rows_of_a_request_are_written_without_temporary_tables() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cxmpute.db");
    let db = Db::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    run(&db).await.unwrap();
    let connection = rusqlite::Connection::open(&file).unwrap();
    for table in ["holds", "ledger_transactions", "requests"] {
        let sql = format!("SELECT name FROM pragma_table_info('{table}')");
        let mut columns = connection.prepare(&sql).unwrap();
        let columns: Vec<String> =
            columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let numbers: Vec<String> = (1..=columns.len()).map(|number| format!("?{number}")).collect();
        let insert = format!("INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), numbers.join(", "));
        for sql in [insert, format!("DELETE FROM {table} WHERE {} = ?1", columns[0])] {
            let mut steps = connection.prepare(&format!("EXPLAIN {sql}")).unwrap();
            let nulls = rusqlite::params_from_iter(vec![None::<i64>; steps.parameter_count()]);
            let steps: Vec<String> =
                steps.query_map(nulls, |row| row.get(1)).unwrap().map(Result::unwrap).collect();
            assert!(!steps.is_empty() && !steps.iter().any(|step| step == "OpenEphemeral"), "{sql}");
        }
    }
}
