//! `cxmpute`: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use cxmpute_gateway::cli::{Cli, complain};
use cxmpute_runtime::exit;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Wrong usage ends here with code 2, `--help` and `--version` with 0.
    match Cli::parse().run() {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            complain(&error);
            ExitCode::from(exit::code_of(error.as_ref()))
        }
    }
}
