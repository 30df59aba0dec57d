use cxmpute_wire::{MicroCredits, Tokens, UserId};
use proptest::prelude::*;

use super::*;

fn price() -> PriceRow {
    PriceRow {
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
    }
}

fn user(name: &str) -> UserId {
    UserId::from_tail(name)
}

/// The abort table, row by row: (end, prompt, completion, user pays, provider gets, platform loses).
#[test]
fn each_row_of_the_abort_table_pays_what_it_says() {
    let rows = [
        (End::Refused, 10, 0, 0, 0, 0),
        (End::ClientGoneBeforeAccept, 10, 0, 0, 0, 0),
        (End::ClientGone, 10, 0, 10, 9, 0),
        (End::ClientGone, 10, 7, 80, 72, 0),
        (End::StalledReader, 10, 7, 80, 72, 0),
        (End::ProviderFailed, 10, 0, 0, 0, 0),
        (End::ProviderLost, 10, 7, 0, 0, 0),
        (End::GatewayFault, 10, 7, 0, 72, 72),
        (End::GatewayDied, 10, 7, 80, 72, 0),
        (End::GatewayDied, 10, 0, 0, 0, 0),
        (End::RetryLoser, 10, 7, 0, 0, 0),
        (End::HedgeLoser, 10, 7, 0, 72, 72),
        (End::EngineFailed, 10, 0, 0, 0, 0),
        (End::Finished, 10, 7, 80, 72, 0),
        (End::Finished, 10, 0, 10, 9, 0),
        (End::CreditsExhausted, 10, 7, 80, 72, 0),
    ];
    for (end, prompt, completion, user_pays, provider_gets, lost) in rows {
        let units = Units::chat(Tokens(prompt), Tokens(completion));
        let got = bill(&price(), MicroCredits(1000), &resolve(end, &units, None), false).unwrap();
        assert_eq!(got.posted.0, user_pays, "{end} user");
        assert_eq!(got.provider_reward.0, provider_gets, "{end} provider");
        assert_eq!(got.platform_loss.0, lost, "{end} loss");
    }
    let covered: std::collections::HashSet<_> = rows.iter().map(|row| row.0).collect();
    assert_eq!(covered.len(), End::ALL.len(), "every end has a row");
}

#[test]
fn names_of_ends_are_read_back() {
    for end in End::ALL {
        assert_eq!(End::from_name(end.as_str()), Some(end));
    }
    assert_eq!(End::from_name("nonsense"), None);
}

#[test]
fn an_overrun_is_nobodys() {
    let units = Units::chat(Tokens(50), Tokens(0));
    for (end, held, wanted) in [
        (End::Finished, 0, (0, 0, 0, 0)),
        (End::Finished, 20, (20, 0, 18, 2)),
        (End::GatewayFault, 20, (0, 18, 18, 0)),
    ] {
        let got = bill(&price(), MicroCredits(held), &resolve(end, &units, None), false).unwrap();
        let got = (got.posted.0, got.platform_loss.0, got.provider_reward.0, got.platform_fee.0);
        assert_eq!(got, wanted, "{end} {held}");
    }
}

#[test]
fn own_traffic_earns_nothing_and_the_platform_keeps_the_charge() {
    let units = Units::chat(Tokens(10), Tokens(9));
    let got = bill(&price(), MicroCredits(1000), &resolve(End::Finished, &units, None), true).unwrap();
    assert_eq!((got.posted.0, got.provider_reward.0, got.platform_fee.0), (100, 0, 100));
}

#[test]
fn a_low_claim_lowers_the_reward_and_not_the_bill() {
    let (counted, claim) = (Units::chat(Tokens(10), Tokens(9)), Units::chat(Tokens(10), Tokens(0)));
    let got =
        bill(&price(), MicroCredits(1000), &resolve(End::Finished, &counted, Some(&claim)), false).unwrap();
    assert_eq!((got.posted.0, got.provider_reward.0, got.platform_fee.0), (100, 9, 91));
    let high = Units::chat(Tokens(u64::MAX), Tokens(u64::MAX));
    let got =
        bill(&price(), MicroCredits(1000), &resolve(End::Finished, &counted, Some(&high)), false).unwrap();
    assert_eq!((got.posted.0, got.provider_reward.0), (100, 90));
}

proptest! {
    #[test]
    fn bills_balance_for_every_end(
        end in proptest::sample::select(&End::ALL[..]),
        held in 0_i64..1 << 40,
        prompt in 0_u64..1 << 20,
        completion in 0_u64..1 << 20,
        claim in proptest::option::of((0_u64..1 << 21, 0_u64..1 << 21)),
        share_bp in 0_i64..=10_000,
        same_owner in any::<bool>(),
    ) {
        let counted = Units::chat(Tokens(prompt), Tokens(completion));
        let claim = claim.map(|(p, c)| Units::chat(Tokens(p), Tokens(c)));
        let price = PriceRow { share_bp, ..price() };
        let got = bill(&price, MicroCredits(held), &resolve(end, &counted, claim.as_ref()), same_owner).unwrap();
        for part in [got.posted, got.refund, got.provider_reward, got.platform_fee, got.platform_loss] {
            prop_assert!(part.0 >= 0);
        }
        prop_assert!(got.posted.0 <= held);
        // Whoever pays: what was never bound earns nothing.
        prop_assert!(got.provider_reward.0 <= split(MicroCredits(held), share_bp).provider.0);
        prop_assert_eq!(got.posted.0 + got.refund.0, held);
        prop_assert_eq!(got.posted.0 + got.platform_loss.0, got.provider_reward.0 + got.platform_fee.0);
        let payer = user("a");
        let provider = user("b");
        prop_assert!(settle_postings(&payer, Some(&provider), MicroCredits(held), &got).is_ok());
        if same_owner {
            prop_assert_eq!(got.provider_reward.0, 0);
        }
    }
}
