//! Training: a loop that knows nothing of a model but its loss, and what it leaves on disk.

mod answers;
pub mod bootstrap;
pub mod checkpoint;
pub mod classify;
pub mod classify_files;
pub mod directory;
mod evaluate;
pub mod log;
pub mod metrics;
pub mod perplexities;
mod progress;
mod run;
mod schedule;
mod step;
mod tensorboard;
mod watch;

pub use answers::{Answers, Score};
pub use evaluate::{Evaluation, Evaluator};
pub use log::Log;
pub use progress::Progress;
pub use run::{Ended, Hooks, Kept, Timing, interrupted_by_ctrl_c, run};
pub use schedule::{Schedule, ScheduleName};
pub use step::{StepOptions, TrainingStep};
pub use watch::Watch;
