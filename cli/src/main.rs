//! The command `nevertwice`: see [`nevertwice_cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nevertwice_cli::main()
}
