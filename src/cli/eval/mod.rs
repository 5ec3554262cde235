//! `attn eval`: how well checkpoints do. A file a kind of model.

mod classify;
mod lm;

use super::Status;
use crate::error::Result;

/// Evaluate a model
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    model: Model,
}

#[derive(Debug, clap::Subcommand)]
enum Model {
    Lm(Box<lm::Args>),
    Classify(Box<classify::Args>),
}

/// Runs the command.
///
/// # Errors
/// If a checkpoint, a file or a flag will not do.
pub fn main(args: Args) -> Result<Status> {
    match args.model {
        Model::Lm(args) => lm::main(*args),
        Model::Classify(args) => classify::main(*args),
    }
}
