//! Times the plan of a whole fleet: `cargo run --release -p cxmpute-market --example plan -- 10000 500`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]
#![expect(clippy::disallowed_methods, reason = "it measures time and reads its arguments")]

use std::time::Instant;

use cxmpute_market::assign::sample::Sample;
use cxmpute_market::assign::{Board, Running, plan};
use cxmpute_wire::Timestamp;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<u32>().ok());
    let (provisions, models) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(500));
    let Sample { needs, mut offers, demand } = Sample::new(provisions, models);
    let start = Instant::now();
    let first = plan(&needs, &offers, &demand, true, Timestamp(0));
    let fresh = start.elapsed();
    let services: usize = first.iter().map(|plan| plan.services.len()).sum();
    for (offer, plan) in offers.iter_mut().zip(&first) {
        offer.running = plan
            .services
            .iter()
            .map(|planned| Running {
                service: planned.service.clone(),
                since: planned.since,
                gpus: planned.claim.gpus.clone(),
                stored: false,
            })
            .collect();
    }
    let start = Instant::now();
    let second = plan(&needs, &offers, &demand, true, Timestamp(3_600_000));
    let again = start.elapsed();
    let moved = offers.iter().zip(&second).filter(|(offer, plan)| !plan.is_of(&offer.running)).count();
    let mut board = Board::new(&needs, true);
    board.ask(&demand);
    for offer in &offers {
        board.put(offer);
    }
    let start = Instant::now();
    for offer in offers.iter().take(100) {
        let _ = board.place(offer, Timestamp(60_000), false);
    }
    let one = start.elapsed() / 100;
    println!("{provisions} provisions, {models} models: {services} services planned in {fresh:?}");
    println!("planned again an hour later in {again:?}, {moved} provisions changed");
    println!("one provision alone: {one:?}");
}
