//! Models: recorded forward only, with their parameters' names and their files.

pub mod classifier;
pub mod config;
pub mod gpt;
mod inputs;
pub mod look;
pub mod options;
mod sample;
pub mod weights;

pub use config::GptConfig;
pub use gpt::{Conditions, Gpt, Hidden, LossGraph, PRESETS, Preset, Tap, TokenPlace};
pub use inputs::Inputs;
pub use options::{DropoutRates, HeadMerge, HeadMerging, Positions};
pub use sample::{Choice, Sampler, TokenByToken};
