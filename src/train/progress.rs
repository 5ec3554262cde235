//! Progress on stderr: a bar on a terminal, and now and then a line where there is none.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How long a step's speed counts in the average that is shown, in seconds.
const MEMORY: f64 = 5.0;
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Progress of steps that each handle the same number of tokens.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    what: &'static str,
    last: Instant,
    last_line: Instant,
    tokens_per_s: f64,
    seconds: f64,
}

impl Progress {
    /// From `done` of `total` steps.
    pub fn new(what: &'static str, done: u64, total: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}, {msg}, {eta} left");
        bar.set_style(style.expect("the template is right"));
        bar.set_prefix(what);
        bar.reset_eta();
        let now = Instant::now();
        Progress { bar, terminal, what, last: now, last_line: now, tokens_per_s: 0.0, seconds: 0.0 }
    }

    /// A step is done, whose speed was `tokens_per_s`.
    pub fn step(&mut self, done: u64, loss: f64, tokens_per_s: f64) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.seconds = (self.seconds + seconds).min(MEMORY);
        let share = if self.seconds > 0.0 { (seconds / self.seconds).min(1.0) } else { 1.0 };
        self.tokens_per_s += share * (tokens_per_s - self.tokens_per_s);
        self.bar.set_position(done);
        self.message(format!("loss {loss:.4}, {:.0} tokens/s", self.tokens_per_s));
    }

    /// So many are done.
    pub fn reached(&mut self, done: u64) {
        self.bar.set_position(done);
        self.message(String::new());
    }

    fn message(&mut self, message: String) {
        if !self.terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let (done, total, left) = (self.bar.position(), self.bar.length().unwrap_or(0), self.bar.eta());
            let comma = if message.is_empty() { "" } else { ", " };
            eprintln!("{} {done}/{total}{comma}{message}, {} s left", self.what, left.as_secs());
        }
        self.bar.set_message(message);
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
