//! Softmax attention.

pub mod cpu;
