//! What several tests share.

pub mod finite_differences;
