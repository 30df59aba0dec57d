use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cxmpute_market::ledger::{End, bill, resolve};
use cxmpute_market::price::{cost, split};
use cxmpute_wire::MicroCredits;
use proptest::prelude::*;

use super::super::admission::tests::job;
use super::*;

/// A tokenizer with tokens of up to four bytes.
fn count(text: &str) -> u64 {
    text.len().div_ceil(4) as u64
}

proptest! {
    #[test]
    fn the_bound_is_kept_to_the_token(pieces in proptest::collection::vec("[a-z ]{1,30}", 0..200), most in 1u64..300) {
        let (mut bound, mut text) = (Bound::new(2), String::new());
        for piece in pieces {
            let whole = format!("{text}{piece}");
            let exact = Some(count(&whole)).filter(|count| *count > most);
            // Asked twice, as for the bound and for the hold, it says the same.
            prop_assert_eq!(bound.over(1, &text, &piece, most, count), exact);
            prop_assert_eq!(bound.over(1, &text, &piece, most, count), exact);
            prop_assert_eq!(bound.over(1, &text, &piece, most / 2, count).is_some(), count(&whole) > most / 2);
            if exact.is_some() {
                break;
            }
            text = whole;
        }
    }
}

#[test]
fn a_short_text_is_not_counted_and_a_long_one_seldom() {
    let calls = std::cell::Cell::new(0);
    let counting = |text: &str| {
        calls.set(calls.get() + 1);
        count(text)
    };
    let (mut bound, mut text) = (Bound::new(1), String::new());
    for _ in 0..1000 {
        assert!(bound.over(0, &text, "four", 1000, counting).is_none());
        text.push_str("four");
    }
    assert!(calls.get() < 40, "{} counts", calls.get());
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing is waited for here"),
    }
}

/// A request for `choices` answers, priced per token or per character.
fn priced(limit: u64, choices: usize, per_character: bool) -> Job {
    let mut job = job(limit, false, "Say much.");
    job.choices = choices;
    if per_character {
        job.counter = None;
        let price = Arc::make_mut(&mut Arc::make_mut(&mut job.model).price);
        (price.prompt, price.completion) = (MicroCredits(0), MicroCredits(0));
        price.character = MicroCredits(700_000);
    }
    job
}

/// What a node's pieces come to: what is held in the end, what was relayed of each choice, and what the hold covers.
fn relay(
    job: &Job,
    pieces: &[(usize, String)],
    covered: u64,
    extensions: u32,
) -> (MicroCredits, SoFar, Cover) {
    let price = |units| cost(&job.model.price, &units).unwrap();
    let mut held = price(job.opening_units(job.prompt_bound(), covered));
    let (mut bound, mut so_far) = (Bound::new(job.choices), job.nothing_yet());
    let mut cover = Cover { tokens: covered, exhausted: false };
    let mut left = extensions;
    for (choice, text) in pieces {
        let choice = choice % job.choices;
        if bound.exceeded(job, &so_far, choice, text) {
            break;
        }
        let extend = |more| {
            let paid = left > 0;
            left = left.saturating_sub(1);
            if paid {
                held = held.saturating_add(price(job.units_of(0, more)));
            }
            std::future::ready(paid)
        };
        if !now(bound.cover(job, &so_far, (choice, text), &mut cover, extend)) {
            break;
        }
        so_far.add_text(choice, text, false);
    }
    (held, so_far, cover)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Pieces of random many tokens: what they cost, and what the node earns for them, was held before they were sent
    /// on, and what is sent on beyond the hold is no more than engines hold back.
    #[test]
    fn a_node_earns_no_more_than_its_share_of_what_is_held(
        pieces in proptest::collection::vec((0_usize..3, "([a-z]{1,9} ){1,900}|[a-z0-9]{1,40}|(\u{4e16}|!){1,300}"), 1..24),
        limit in 1_u64..6_000,
        explicit in any::<bool>(),
        extensions in 0_u32..5,
        choices in 1_usize..3,
        per_character in any::<bool>(),
    ) {
        let job = priced(limit, choices, per_character);
        let covered = if explicit { limit } else { limit.min(SLICE) };
        let (held, so_far, cover) = relay(&job, &pieces, covered, extensions);
        let texts: Vec<&str> = (0..choices).map(|choice| so_far.text(choice)).collect();
        prop_assert!(cover.tokens <= limit);
        for text in &texts {
            let most = if cover.tokens < limit { cover.tokens } else { limit + SLACK };
            prop_assert!(job.count_output(text) <= most * job.per_token(), "{cover:?} of {limit}");
        }
        let units = job.count(None, &texts, cover.tokens);
        prop_assert!(cost(&job.model.price, &units).unwrap() <= held);
        for end in End::ALL {
            let bill = bill(&job.model.price, held, &resolve(end, &units, None), false).unwrap();
            prop_assert!(bill.provider_reward <= split(held, job.model.price.share_bp).provider, "{end}");
            prop_assert!(end == End::GatewayFault || end == End::HedgeLoser || bill.platform_loss.0 == 0, "{end}");
        }
    }
}

#[test]
fn many_tokens_in_few_pieces_extend_the_hold_before_they_are_sent_on() {
    let job = priced(4_096, 1, false);
    let many = "far ".repeat(450);
    assert!((850..1_000).contains(&job.count_output(&many)), "{}", job.count_output(&many));
    let pieces: Vec<_> = (0..4).map(|_| (0, many.clone())).collect();
    let (_, so_far, cover) = relay(&job, &pieces, SLICE, u32::MAX);
    assert_eq!((so_far.longest(), cover.exhausted), (4, false));
    assert!(cover.tokens >= job.count_output(so_far.text(0)), "{cover:?}");
    let (_, so_far, cover) = relay(&job, &pieces, SLICE, 0);
    assert_eq!((so_far.longest(), cover.tokens, cover.exhausted), (1, SLICE, true), "nobody pays for more");
}

#[test]
fn characters_end_where_the_bound_ends_and_are_billed_as_far_as_it_is_held() {
    let job = priced(1, 1, true);
    let pieces: Vec<_> = (0..100).map(|_| (0, "0123456789".to_owned())).collect();
    let (held, so_far, cover) = relay(&job, &pieces, 1, 0);
    let said = so_far.text(0).len() as u64;
    assert!(said <= (1 + SLACK) * job.per_token(), "{said}");
    let units = job.count(None, &[so_far.text(0)], cover.tokens);
    assert_eq!(units.characters, job.prompt_characters() + job.per_token());
    assert!(cost(&job.model.price, &units).unwrap() <= held);
}
