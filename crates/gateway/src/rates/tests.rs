use cxmpute_runtime::Clock;
use cxmpute_store::{KeyKind, KeySettings, Limits};
use cxmpute_wire::Timestamp;
use http::HeaderMap;

use super::*;

fn key(name: &str, limits: Limits, account: Limits) -> KeyRow {
    KeyRow {
        id: KeyId::from_tail(name),
        user_id: UserId::from_tail("account"),
        kind: KeyKind::Api,
        name: name.to_owned(),
        hash: Vec::new(),
        env: "live".to_owned(),
        created_at: Timestamp(0),
        revoked_at: None,
        budget: None,
        spent: cxmpute_wire::MicroCredits(0),
        held: cxmpute_wire::MicroCredits(0),
        suspended: false,
        settings: KeySettings::default(),
        limits,
        account,
    }
}

fn table() -> (RateTable, Clock) {
    let clock = Clock::mock();
    (
        RateTable::new(&LimitsConfig { failed_keys_per_minute: 3, ..LimitsConfig::default() }, clock.clone()),
        clock,
    )
}

fn work(table: &RateTable, key: &KeyRow) -> ApiResult<Permit> {
    table.admit(&table.standing(key), RateClass::Work).map(Option::unwrap)
}

fn limits(requests: Option<u64>, tokens: Option<u64>, concurrent: Option<u64>) -> Limits {
    Limits { requests_per_minute: requests, tokens_per_minute: tokens, concurrent, ..Limits::default() }
}

#[test]
fn one_key_does_not_slow_another_but_their_account_holds_both() {
    let (table, clock) = table();
    let of_account = limits(Some(5), None, None);
    let first = key("first", limits(Some(2), None, None), of_account.clone());
    let second = key("second", limits(None, None, None), of_account);
    for _ in 0..2 {
        work(&table, &first).unwrap();
    }
    let refused = work(&table, &first).unwrap_err();
    assert_eq!((refused.code, refused.status.as_u16()), (Code::RateLimited, 429));
    assert!((30..=38).contains(&refused.retry_after.unwrap()), "{refused:?}");
    for _ in 0..3 {
        work(&table, &second).unwrap();
    }
    assert!(work(&table, &second).unwrap_err().message.contains("account"));
    clock.as_mock().unwrap().advance(Duration::from_secs(30));
    work(&table, &first).unwrap();
    assert!(work(&table, &first).is_err());
}

#[test]
fn a_refusal_of_the_account_takes_nothing_from_the_key() {
    let (table, _) = table();
    let key = key("k", limits(Some(10), None, Some(5)), limits(Some(1), None, None));
    work(&table, &key).unwrap();
    for _ in 0..20 {
        assert!(work(&table, &key).is_err());
    }
    let standing = table.standing(&key);
    let state = standing.key.as_ref().unwrap().tally.lock();
    assert_eq!(state.requests.left(Rate::per_minute(10), Duration::ZERO), 9);
    assert_eq!(state.slots.taken(), 0);
}

#[test]
fn slots_come_back_however_the_request_ends() {
    let (table, _) = table();
    let key = key("k", limits(None, None, Some(2)), Limits::default());
    let first = work(&table, &key).unwrap();
    let second = work(&table, &key).unwrap();
    let refused = work(&table, &key).unwrap_err();
    assert_eq!(refused.code, Code::ConcurrencyLimited);
    assert!(refused.retry_after.unwrap() >= 1);
    drop(first);
    let _third = work(&table, &key).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = second;
        panic!("a task died");
    }));
    assert!(panicked.is_err());
    work(&table, &key).unwrap();
}

#[test]
fn tokens_are_reserved_and_put_right() {
    let (table, _) = table();
    let key = key("k", limits(None, Some(1000), None), Limits::default());
    let permit = work(&table, &key).unwrap();
    permit.reserve_tokens(800).unwrap();
    let other = work(&table, &key).unwrap();
    assert_eq!(other.reserve_tokens(300).unwrap_err().code, Code::RateLimited);
    permit.use_tokens(100);
    drop(permit);
    other.reserve_tokens(300).unwrap();
    drop(other);
    let mut headers = HeaderMap::new();
    table.standing(&key).print(&mut headers);
    assert_eq!(headers["x-ratelimit-limit-tokens"], "1000");
    assert_eq!(headers["x-ratelimit-remaining-tokens"], "900", "what failed used nothing");
    assert_eq!(headers["x-ratelimit-reset-tokens"], "6s");
    assert!(!headers.contains_key("x-ratelimit-limit-requests"));
}

#[test]
fn the_headers_speak_of_what_is_tighter() {
    let (table, _) = table();
    let key = key("k", limits(Some(100), None, None), limits(Some(10), None, None));
    work(&table, &key).unwrap();
    let mut headers = HeaderMap::new();
    table.standing(&key).print(&mut headers);
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(text("x-ratelimit-limit-requests"), "10");
    assert_eq!(text("x-ratelimit-remaining-requests"), "9");
    assert_eq!(text("x-ratelimit-reset-requests"), "6s");
}

#[test]
fn replicas_divide_what_is_limited() {
    let (table, _) = table();
    table.share_with(3);
    let key = key("k", limits(Some(9), None, Some(4)), Limits::default());
    let running: Vec<Permit> = (0..2).map_while(|_| work(&table, &key).ok()).collect();
    assert_eq!(running.len(), 1, "a third of four is one");
    drop(running);
    for _ in 0..2 {
        work(&table, &key).unwrap();
    }
    assert_eq!(work(&table, &key).unwrap_err().code, Code::RateLimited);
}

#[test]
fn an_address_with_too_many_wrong_keys_waits_and_its_neighbours_do_not() {
    let (table, clock) = table();
    let address: IpAddr = "2001:db8::1".parse().unwrap();
    for _ in 0..3 {
        table.admit_stranger(address).unwrap();
        table.note_failure(address);
    }
    let refused = table.admit_stranger("2001:db8::2".parse().unwrap()).unwrap_err();
    assert_eq!(refused.code, Code::RateLimited, "the same /64");
    assert!((20..=25).contains(&refused.retry_after.unwrap()), "{refused:?}");
    table.admit_stranger("2001:db8:0:1::1".parse().unwrap()).unwrap();
    table.admit_stranger("192.0.2.1".parse().unwrap()).unwrap();
    clock.as_mock().unwrap().advance(Duration::from_secs(20));
    table.admit_stranger(address).unwrap();
}
