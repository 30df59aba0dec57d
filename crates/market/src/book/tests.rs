use proptest::prelude::*;

use super::*;

fn user(n: u8) -> UserId {
    UserId::from_tail(&format!("u{n}"))
}

/// Small pools of users, requests and keys, so that duplicates and wrong orders are common; amounts reach the ends
/// of i64.
fn event() -> impl Strategy<Value = Event> {
    let amount = prop_oneof![
        8 => 0_i64..5_000,
        1 => Just(i64::MAX),
        1 => Just(i64::MIN),
        1 => -5_i64..0,
    ]
    .prop_map(MicroCredits);
    let person = (0_u8..4).prop_map(user);
    let request = (0_u16..400).prop_map(|n| format!("r{n}"));
    let key = (0_u16..400).prop_map(|n| format!("k{n}"));
    (0_u8..9, key, request, person.clone(), person, amount, 1_i64..4, 0_i64..=10_000).prop_map(
        |(kind, key, request, payer, provider, amount, step, share_bp)| match kind {
            0 => Event::Deposit { key, user: payer, amount },
            1 | 2 => Event::Reserve { request, user: payer, amount },
            3 => Event::Extend { request, step, amount },
            4 => Event::Post { request, charge: amount, provider, share_bp },
            5 => Event::Void { request },
            6 => Event::Expire { request },
            7 => Event::Refund { key, request, amount },
            _ if step == 1 => Event::Payout { key, provider, amount },
            _ => Event::Mature { key, provider, amount },
        },
    )
}

/// Gate L2: plays a history and looks at the book after every step; the first breach.
fn gate_l2(history: &[Event], seen: SeenRule) -> Result<(), String> {
    let mut book = Book::default();
    for (n, event) in history.iter().enumerate() {
        book.apply(event, seen);
        // The whole audit is linear in the journal: often at first, then now and then.
        if n < 200 || n % 500 == 0 {
            book.audit()?;
        }
    }
    book.audit()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_random_steps_keep_every_invariant(history in proptest::collection::vec(event(), 10_000)) {
        prop_assert_eq!(gate_l2(&history, Book::seen), Ok(()));
    }
}

#[test]
fn the_gate_notices_a_missing_unique_index() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let history = proptest::collection::vec(event(), 2_000)
        .new_tree(&mut runner)
        .map(|tree| proptest::strategy::ValueTree::current(&tree))
        .unwrap();
    assert_eq!(gate_l2(&history, Book::seen), Ok(()));
    let breach = gate_l2(&history, |_, _| false).unwrap_err();
    assert!(breach.contains("twice") || breach.contains("resolved"), "{breach}");
}

#[test]
fn the_table_of_postings_is_reproduced() {
    let mut book = Book::default();
    let (payer, provider) = (user(1), user(2));
    let events = [
        Event::Deposit { key: "1".into(), user: payer.clone(), amount: MicroCredits(10_000_000) },
        Event::Reserve { request: "r".into(), user: payer.clone(), amount: MicroCredits(3_000) },
        Event::Post {
            request: "r".into(),
            charge: MicroCredits(2_410),
            provider: provider.clone(),
            share_bp: 9000,
        },
        Event::Mature { key: "2".into(), provider: provider.clone(), amount: MicroCredits(2_169) },
    ];
    for event in &events {
        assert_eq!(book.apply(event, Book::seen), Applied::Entered);
        assert_eq!(book.apply(event, Book::seen), Applied::Duplicate);
    }
    let of = |owner, kind| book.balance(&Account::of(owner, kind)).0;
    assert_eq!(of(&payer, AccountKind::UserAvailable), 10_000_000 - 2_410);
    assert_eq!(of(&payer, AccountKind::UserHeld), 0);
    assert_eq!(of(&provider, AccountKind::ProviderPayable), 2_169);
    assert_eq!(book.balance(&Account::system(AccountKind::PlatformFee)).0, 241);
    assert_eq!(book.audit(), Ok(()));
}
