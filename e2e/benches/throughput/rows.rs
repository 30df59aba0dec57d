//! The rows of the table, each of which can be run alone.

mod counting;
mod memory;
mod node;
mod plan;
mod requests;
mod slow;
mod start;
mod streams;
mod tls;

use std::fmt::{self, Display, Formatter};

use anyhow::Result;
use clap::ValueEnum;

use crate::report::Taken;
use crate::stage::Plan;

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// CPU and rate of answers in one piece, 256 connections
    #[value(name = "whole-256")]
    Whole256,
    /// CPU and rate of answers in one piece, 64 connections
    #[value(name = "whole-64")]
    Whole64,
    /// CPU per relayed event, 64 streams, no delay between events
    Events,
    /// Added time to the first token, 64 streams at an engine's pace
    FirstToken,
    /// Memory per stream and spread of events, 1,000 streams that trickle
    SlowStreams,
    /// Memory when idle, and per stream that is held open
    OpenStreams,
    /// CPU with TLS on
    Tls,
    /// CPU with and without the exact count of tokens
    Counting,
    /// CPU per relayed event of the provider program
    Node,
    /// From the start of the process to its first paid answer
    Start,
    /// Time of the plan of a large fleet
    Plan,
}

impl Row {
    /// Takes its figures.
    ///
    /// # Errors
    /// Something does not come up, or a peer gave anything but whole answers.
    pub async fn take(self, plan: &Plan) -> Result<Taken> {
        match self {
            Self::Whole256 => requests::take(plan, 256).await,
            Self::Whole64 => requests::take(plan, 64).await,
            Self::Events => streams::events(plan).await,
            Self::FirstToken => streams::first_token(plan).await,
            Self::SlowStreams => slow::take(plan).await,
            Self::OpenStreams => memory::take(plan).await,
            Self::Tls => tls::take(plan).await,
            Self::Counting => counting::take(plan).await,
            Self::Node => node::take(plan).await,
            Self::Start => start::take(plan).await,
            Self::Plan => self::plan::take(),
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Prints all rows.
#[expect(clippy::print_stdout, reason = "what was asked for")]
pub fn list() {
    for row in Row::value_variants().iter().filter_map(ValueEnum::to_possible_value) {
        println!("{:14}{}", row.get_name(), row.get_help().map(ToString::to_string).unwrap_or_default());
    }
}
