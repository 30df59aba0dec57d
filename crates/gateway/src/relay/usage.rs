//! What an answer says of its counts and its cost, whatever was counted.

use cxmpute_market::price::{PriceRow, Units, parts, print_exactly};
use cxmpute_store::Settled;
use cxmpute_wire::openai::{CostDetails, DurationUsage, SpeechUsage, Usage};
use cxmpute_wire::sight::PieceUsage;
use cxmpute_wire::{Code, MicroCredits};

/// Takes a charge apart; the parts add up to it exactly. A part that was not counted, or has no price, is left out.
#[must_use]
pub fn cost_details(price: &PriceRow, units: &Units, charged: MicroCredits) -> CostDetails {
    let parts = parts(price, units, charged);
    let piece = |part: i128| (part > 0).then(|| print_exactly(part));
    CostDetails {
        prompt: print_exactly(parts.prompt),
        completion: print_exactly(parts.completion),
        characters: (units.characters > 0).then(|| print_exactly(parts.characters)),
        seconds: piece(parts.seconds),
        urls: piece(parts.urls),
        images: piece(parts.images),
        adjustment: print_exactly(parts.adjustment),
        price_version: price.version,
    }
}

/// The usage of what is counted in tokens.
pub(super) fn usage(units: &Units, price: &PriceRow, settled: &Settled, exhausted: bool) -> Usage {
    let prompt = units.prompt.saturating_add(units.embedding);
    Usage {
        cost: Some(settled.cost.to_credits()),
        cost_details: Some(cost_details(price, units, settled.cost)),
        source: Some("counted".to_owned()),
        code: exhausted.then(|| Code::CreditsExhausted.as_str().to_owned()),
        ..Usage::new(prompt.0, units.completion.0)
    }
}

/// The usage of a text that was said. Tokens are not counted there.
pub(super) fn speech_usage(units: &Units, price: &PriceRow, settled: &Settled) -> SpeechUsage {
    SpeechUsage {
        input_tokens: 0,
        output_tokens: 0,
        total_tokens: 0,
        characters: units.characters,
        cost: settled.cost.to_credits(),
        cost_details: cost_details(price, units, settled.cost),
    }
}

/// The usage of what is counted by the second.
pub(super) fn duration_usage(units: &Units, price: &PriceRow, settled: &Settled) -> DurationUsage {
    DurationUsage {
        kind: "duration".to_owned(),
        seconds: units.seconds,
        cost: settled.cost.to_credits(),
        cost_details: cost_details(price, units, settled.cost),
    }
}

/// The usage of what is counted by the picture.
pub(super) fn picture_usage(units: &Units, price: &PriceRow, settled: &Settled) -> PieceUsage {
    PieceUsage {
        images: Some(units.images),
        cost: settled.cost.to_credits(),
        cost_details: cost_details(price, units, settled.cost),
        ..PieceUsage::default()
    }
}

/// The usage of what is counted by the page.
pub(super) fn page_usage(units: &Units, price: &PriceRow, settled: &Settled) -> PieceUsage {
    PieceUsage { images: None, urls: Some(units.urls), ..picture_usage(units, price, settled) }
}
