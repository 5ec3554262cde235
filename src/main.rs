//! `attn`: a thin face over the crate `attn_engine`.

use attn_engine::cli::{self, Status};
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::main() {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::Failed) => ExitCode::from(1),
        Err(e) => {
            // Not `eprintln!`, which panics where nobody reads.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {e}\n"));
            ExitCode::from(2)
        }
    }
}
