//! The demo: the whole house on this machine, one streamed answer with its bill, then everything stays up.
#![expect(clippy::print_stderr, reason = "a failed demo says why on standard error")]

use std::process::ExitCode;

use clap::Parser as _;
use cxmpute_e2e::demo::{Demo, run};

fn main() -> ExitCode {
    let demo = Demo::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cxmpute-demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(demo)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cxmpute-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
