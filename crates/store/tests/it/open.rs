//! Opening: migrations, refusals, durability.

use cxmpute_store::{Db, DbError, DbKind, SCHEMA_VERSION};

use crate::world::{NOW, databases, price, tamper};

#[tokio::test]
async fn opening_twice_migrates_once_and_a_newer_schema_is_refused() {
    for fresh in databases().await {
        let again = Db::open(&fresh.address).await.unwrap();
        again.ping().await.unwrap();
        assert!(again.now().await.unwrap().0 > NOW.0 / 2);
        tamper(&again, "INSERT INTO schema_version (version, name, applied_at) VALUES (999, 'future', 0)")
            .await
            .unwrap();
        match Db::open(&fresh.address).await {
            Err(DbError::NewerSchema { found: 999, known }) => assert_eq!(known, SCHEMA_VERSION),
            other => panic!("{}: {other:?}", fresh.name),
        }
    }
}

#[tokio::test]
async fn commits_are_durable_by_configuration() {
    for fresh in databases().await {
        let (journal, synchronous) = fresh.db.durability().await.unwrap();
        match fresh.db.kind() {
            DbKind::Sqlite => assert_eq!((journal.as_str(), synchronous.as_str()), ("wal", "FULL")),
            DbKind::Postgres => assert_eq!(synchronous, "on"),
        }
    }
}

#[tokio::test]
async fn the_bundled_sqlite_has_no_wal_race() {
    let pool = sqlx::SqlitePool::connect("sqlite::memory:").await.unwrap();
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&pool).await.unwrap();
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![3, 51, 3], "{version} is older than 3.51.3");
}

#[tokio::test]
async fn bad_places_have_errors_of_their_own() {
    assert!(matches!(Db::open("mysql://x").await, Err(DbError::BadAddress { .. })));
    assert!(matches!(Db::open("sqlite:").await, Err(DbError::BadAddress { .. })));
    assert!(matches!(Db::open("sqlite:/dev/null/cxmpute.db").await, Err(DbError::Unwritable { .. })));
    let away = Db::open("postgres://nobody@127.0.0.1:1/none").await;
    assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    std::fs::write(&path, vec![7_u8; 8192]).unwrap();
    let damaged = Db::open(&format!("sqlite:{}", path.display())).await;
    assert!(matches!(&damaged, Err(error) if error.is_fatal()), "{damaged:?}");
}

#[tokio::test]
async fn one_process_serves_a_sqlite_database_at_a_time() {
    for fresh in databases().await {
        let first = fresh.db.claim_replica("gateway").await.unwrap();
        assert_eq!(first.epoch, 1);
        if fresh.db.kind() == DbKind::Sqlite {
            assert!(matches!(fresh.db.claim_replica("gateway").await, Err(DbError::InUse { .. })));
            drop(first);
            assert_eq!(fresh.db.claim_replica("gateway").await.unwrap().epoch, 2);
        } else {
            let second = fresh.db.claim_replica("gateway").await.unwrap();
            assert_eq!(second.epoch, 2);
            assert!(!fresh.db.renew_replica(&first).await.unwrap(), "the older one is fenced");
            assert!(fresh.db.renew_replica(&second).await.unwrap());
            let other = fresh.db.claim_replica("other").await.unwrap();
            assert_eq!(fresh.db.live_replicas().await.unwrap(), 2);
            fresh.db.release_replica(&second).await.unwrap();
            assert_eq!(fresh.db.live_replicas().await.unwrap(), 1, "who has gone shares nothing");
            assert!(fresh.db.renew_replica(&other).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_recorded_price_never_changes() {
    for fresh in databases().await {
        let row = price();
        for _ in 0..2 {
            fresh.db.record_prices(&[&row], NOW).await.unwrap();
        }
        let mut changed = (*row).clone();
        changed.prompt.0 += 1;
        let refused = fresh.db.record_prices(&[&changed], NOW).await;
        assert!(matches!(refused, Err(DbError::PriceChanged { version: 1, .. })), "{refused:?}");
        changed.version = 2;
        fresh.db.record_prices(&[&changed], NOW).await.unwrap();
    }
}
