//! Kernels under AddressSanitizer or ThreadSanitizer.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::compile::Compiler;
use crate::error::{Error, Result};

/// The variable that says under which sanitizer this process runs.
const MARKER: &str = "ATTN_SANITIZER";

/// What the compiler adds to the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sanitizer {
    /// Accesses outside of device or shared memory, misaligned vector accesses, overflow of signed integers.
    Address,
    /// Data races between the threads of a block, and between blocks.
    Thread,
}

impl Sanitizer {
    /// `address` or `thread`.
    pub fn name(self) -> &'static str {
        match self {
            Sanitizer::Address => "address",
            Sanitizer::Thread => "thread",
        }
    }

    fn library(self) -> &'static str {
        match self {
            Sanitizer::Address => "libasan.so",
            Sanitizer::Thread => "libtsan.so",
        }
    }

    /// A report ends the process with status 66.
    fn options(self) -> (&'static str, &'static str) {
        match self {
            // Leaks are not the kernels' business, and stacks are not kept after return, because ours are
            // switched. SIGILL is what misalignment and overflow end in.
            Sanitizer::Address => (
                "ASAN_OPTIONS",
                "exitcode=66:detect_leaks=0:detect_stack_use_after_return=0:handle_sigill=1:allocator_may_return_null=1",
            ),
            // The interceptors must not judge this program, whose own synchronisation the sanitizer does not see.
            Sanitizer::Thread => (
                "TSAN_OPTIONS",
                "exitcode=66:halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0:\
                 report_thread_leaks=0:report_mutex_bugs=0:detect_deadlocks=0",
            ),
        }
    }

    /// Whether this process was started by [`reexec_with`] for it.
    pub fn is_active(self) -> bool {
        std::env::var_os(MARKER).is_some_and(|v| v == self.name())
    }

    /// Whether the compiler comes with it; the error says how to get it.
    pub fn available(self) -> Result<()> {
        self.find().map(|_| ())
    }

    fn find(self) -> Result<std::path::PathBuf> {
        let compiler = Compiler::find(None)?;
        let library = self.library();
        let refuse = |problem: String| {
            let remedy = "install g++ with its sanitizers (Debian: `apt-get install g++`), and name it in $CXX";
            Error::device("emulator", problem, remedy)
        };
        // What clang++ instruments does not fit the libraries of g++, and its own are not made to be preloaded.
        if compiler.name().starts_with("clang") {
            return Err(refuse(format!("the sanitizers need g++, and the compiler is {}", compiler.name())));
        }
        compiler.library(library).ok_or_else(|| refuse(format!("{} has no {library}", compiler.name())))
    }
}

/// Starts this program once more, with the same arguments, under a sanitizer: its library must be loaded before
/// all others. Returns at once where that has happened already, and otherwise only on failure. A report of the
/// sanitizer goes to stderr and ends the process with status 66.
pub fn reexec_with(sanitizer: Sanitizer) -> Result<()> {
    if sanitizer.is_active() {
        return Ok(());
    }
    let library = sanitizer.find()?;
    let fail = |e: std::io::Error| {
        Error::device(
            "emulator",
            format!("cannot start this program under lib{}: {e}", sanitizer.name()),
            "run it without --sanitize",
        )
    };
    let program = std::env::current_exe().map_err(fail)?;
    let (variable, ours) = sanitizer.options();
    let options = match std::env::var(variable) {
        Ok(theirs) if !theirs.is_empty() => format!("{ours}:{theirs}"),
        _ => ours.to_string(),
    };
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let mut command = Command::new(program);
    if let Some(name) = name {
        command.arg0(name);
    }
    Err(fail(
        command.args(arguments).env("LD_PRELOAD", library).env(MARKER, sanitizer.name()).env(variable, options).exec(),
    ))
}
