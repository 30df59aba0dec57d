//! Times the plan of a whole fleet: `cargo run --release -p cxmpute-market --example plan -- 10000 500`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::time::Instant;

use cxmpute_market::assign::plan;
use cxmpute_market::assign::sample::Sample;
use cxmpute_wire::Timestamp;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<u32>().ok());
    let (provisions, models) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(500));
    let mut sample = Sample::new(provisions, models);
    let start = Instant::now();
    let plans = plan(&sample.needs, &sample.offers, &sample.demand, true, Timestamp(0));
    let services: usize = plans.iter().map(|plan| plan.services.len()).sum();
    println!("{provisions} provisions, {models} models: {services} services in {:?}", start.elapsed());
    sample.run(&plans);
    let start = Instant::now();
    let again = plan(&sample.needs, &sample.offers, &sample.demand, true, Timestamp(3_600_000));
    let moved = sample.offers.iter().zip(&again).filter(|(offer, plan)| !plan.is_of(&offer.running)).count();
    println!("an hour later: {moved} provisions change, in {:?}", start.elapsed());
}
