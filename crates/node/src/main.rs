//! `cxmpute-provider`: the program that a provider runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    cxmpute_node::cli::main()
}
