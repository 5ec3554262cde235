//! Models: recorded forward only, with their parameters' names and their files.

pub mod config;
pub mod gpt;
mod inputs;
mod sample;
pub mod weights;

pub use gpt::{Gpt, GptConfig, LossGraph, PRESETS, Preset};
pub use inputs::Inputs;
pub use sample::Sampler;
