//! `attn completions SHELL`.

use super::{Cli, Status, print};
use crate::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn completions bash > ~/.local/share/bash-completion/completions/attn")]
pub struct Args {
    /// The shell.
    shell: Shell,
}

/// Runs the command.
///
/// # Errors
/// If stdout cannot be written.
pub fn main(args: Args) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "attn", &mut script);
    print(String::from_utf8_lossy(&script))?;
    Ok(Status::Done)
}
