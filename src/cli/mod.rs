//! The command line: one file a command. To add one: a line in each of the three lists below.

pub mod bench;
mod classify;
pub mod completions;
mod curves;
pub mod device;
pub mod devices;
pub mod embed;
pub mod eval;
pub mod export;
pub mod generate;
pub mod heatmap;
pub mod kernels;
pub mod predict;
pub mod prepare;
pub mod probe;
pub mod run;
pub mod settings;
mod sweep;
pub mod train;
pub mod validate;

use crate::error::{Error, Result};
use clap::{Parser, Subcommand};
use std::io::Write;

/// How a command ended, if not in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Exit code 0.
    Done,
    /// A comparison failed: exit code 1.
    Failed,
}

/// Attention kernels: run them, compare them, train with them.
#[derive(Debug, Parser)]
#[command(name = "attn", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 a comparison failed; 2 an error, whose message says what to do.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Show what is here to compute on, and how to get what is not
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn devices --json")]
struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Devices(DevicesArgs),
    Validate(validate::Args),
    Bench(Box<bench::Args>),
    Run(run::Args),
    Train(train::Args),
    Eval(eval::Args),
    Export(export::Args),
    Generate(generate::Args),
    Heatmap(heatmap::Args),
    Predict(predict::Args),
    Probe(probe::Args),
    Embed(embed::Args),
    /// Compile every kernel for GPUs that are not here
    Kernels(kernels::KernelsArgs),
    Completions(completions::Args),
}

/// Parses the command line and does what it says. Ends the process where clap has answered already: after `--help`
/// with code 0, after a mistake with code 2.
///
/// # Errors
/// Whatever the command met; to be printed, with exit code 2.
pub fn main() -> anyhow::Result<Status> {
    let status = match Cli::parse().command {
        Command::Devices(args) => return devices::run(args.json).map(|()| Status::Done),
        Command::Validate(args) => validate::main(args),
        Command::Bench(args) => bench::main(*args),
        Command::Run(args) => run::main(args),
        Command::Train(args) => train::main(args),
        Command::Eval(args) => eval::main(args),
        Command::Export(args) => export::main(args),
        Command::Generate(args) => generate::main(args),
        Command::Heatmap(args) => heatmap::main(args),
        Command::Predict(args) => predict::main(args),
        Command::Probe(args) => probe::main(args),
        Command::Embed(args) => embed::main(args),
        Command::Kernels(args) => {
            let passed = kernels::run(args)?;
            return Ok(if passed { Status::Done } else { Status::Failed });
        }
        Command::Completions(args) => completions::main(args),
    };
    Ok(status?)
}

/// Writes to stdout: what `print!` does, less its panic. Where the reader has gone (`attn … | head`), there is
/// nobody left to tell, so the process ends quietly.
///
/// # Errors
/// If stdout cannot be written for another reason, such as a full disk.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::file("<stdout>", format!("cannot be written: {e}"), "free space or redirect elsewhere")),
        Ok(()) => Ok(()),
    }
}

/// A flag that means nothing to what was chosen: `of` is the flag that chose and its value, `has` the values that have a use
/// for it.
pub fn of_no_use(flag: &str, value: impl std::fmt::Display, (of, chosen): (&str, &str), has: &[&str]) -> Error {
    let remedy = format!("leave it out, or give --{of} {}", has.join(" or "));
    Error::argument(format!("--{flag} {value}"), format!("means nothing to --{of} {chosen}"), remedy)
}

/// [`print()`] with an end of line.
///
/// # Errors
/// As [`print()`].
pub fn print_line(text: impl std::fmt::Display) -> Result<()> {
    print(format_args!("{text}\n"))
}
