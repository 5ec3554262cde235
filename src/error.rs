//! The one error type of the crate: every variant names the thing at fault and what to do about it.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on which thing, and the remedy. The binary prints it and exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An op was recorded with an argument whose shape or kind does not fit.
    #[error("{op}: `{argument}`: expected {expected}, got {got}")]
    Shape {
        /// The op's name, as in `attn run --list`.
        op: String,
        /// The argument's name.
        argument: String,
        /// What would have fitted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A flag, option or value given by the user is wrong.
    #[error("{what}: {problem}; {remedy}")]
    Argument {
        /// The flag, option, tensor or value, as the user wrote it.
        what: String,
        /// What is wrong with it.
        problem: String,
        /// What to do instead.
        remedy: String,
    },
    /// A file cannot be read, understood or written.
    #[error("{}: {problem}; {remedy}", path.display())]
    File {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A device is missing or refuses work.
    #[error("device {device}: {problem}; {remedy}")]
    Device {
        /// The device, as `--device` names it.
        device: String,
        /// What is wrong.
        problem: String,
        /// How to get it, or what to use instead.
        remedy: String,
    },
    /// A kernel does not compile, or fails while running.
    #[error("kernel {kernel}: {problem}")]
    Kernel {
        /// The kernel's entry point and specialisation.
        kernel: String,
        /// The compiler's log, or the fault with its block, threads and line.
        problem: String,
    },
    /// The device has too little memory for the plan.
    #[error(
        "device {device}: {needed} bytes are needed, {free} are free; use a smaller batch or length, or another --device"
    )]
    Memory {
        /// The device.
        device: String,
        /// Bytes that the plan needs.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
}

impl Error {
    /// An [`Error::Shape`] from anything that prints.
    pub fn shape(
        op: impl Into<String>,
        argument: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Error::Shape { op: op.into(), argument: argument.into(), expected: expected.into(), got: got.into() }
    }

    /// An [`Error::Argument`] from anything that prints.
    pub fn argument(what: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::Argument { what: what.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::File`] from anything that prints.
    pub fn file(path: impl Into<PathBuf>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::File { path: path.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::Device`] from anything that prints.
    pub fn device(device: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::Device { device: device.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::Kernel`] from anything that prints.
    pub fn kernel(kernel: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Kernel { kernel: kernel.into(), problem: problem.into() }
    }
}
