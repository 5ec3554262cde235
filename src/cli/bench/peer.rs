//! `--peer torch`: the same cases through PyTorch, in a Python process of its own that answers case by case, so that
//! its runs and ours alternate on the same machine.

use super::features::Features;
use super::measure::{Setting, median};
use super::recurrence::Recurrence;
use crate::device::Precision;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// How often ours and theirs take turns.
pub const ROUNDS: usize = 3;

/// What PyTorch's side does; its head describes the lines that go to and fro.
const SCRIPT: &str = include_str!("../../../benches/peers/attention_torch.py");

/// Whom to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// PyTorch, in the Python that `--python` names.
    Torch,
}

/// One backend of the peer on one case: a [`super::Row`]'s fields, with what only a peer has.
#[derive(Debug, Clone, Serialize)]
pub struct PeerRow {
    /// `torch`.
    pub peer: &'static str,
    /// Its version.
    pub version: String,
    /// Which of its implementations was forced.
    pub backend: String,
    /// The variant, as ours is called.
    pub variant: &'static str,
    /// As in our row.
    pub direction: &'static str,
    /// As in our row.
    pub device: String,
    /// As in our row.
    pub dtype: &'static str,
    /// As in our row.
    pub batch: usize,
    /// As in our row.
    pub heads: usize,
    /// As in our row.
    pub length: usize,
    /// As in our row.
    pub head_dim: usize,
    /// As in our row.
    pub causal: bool,
    /// As in our row.
    #[serde(flatten)]
    pub features: Features,
    /// As in our row.
    #[serde(flatten)]
    pub recurrence: Option<Recurrence>,
    /// `None` where it was refused, as in the four below.
    pub median_ms: Option<f64>,
    /// The fastest run.
    pub min_ms: Option<f64>,
    /// Counted as for our row: the same operations in the peer's time.
    pub tflops: Option<f64>,
    /// Counted as for our row.
    pub gbps: Option<f64>,
    /// The most device memory in use, where the peer can tell.
    pub peak_bytes: Option<usize>,
    /// Our median over its median, the median of all rounds: below 1 means that attn is faster.
    pub ratio: Option<f64>,
    /// Why the backend does not take this case.
    pub refused: Option<String>,
}

/// A peer's first answer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hello {
    Here { version: String, backends: BTreeMap<String, Vec<String>> },
    Missing { error: String },
}

/// Its answer to a case.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Timed { samples: Vec<f64>, peak_bytes: Option<usize> },
    Refused { refused: String },
}

/// All rounds of one backend on one case.
pub struct Compared {
    /// Which implementation.
    pub backend: String,
    /// Milliseconds, of all rounds.
    pub samples: Vec<f64>,
    /// Ours over theirs, by round.
    pub ratios: Vec<f64>,
    /// The most device memory, where known.
    pub peak_bytes: Option<usize>,
    /// Why it was not timed.
    pub refused: Option<String>,
}

/// The running peer. Dropping it ends it.
pub struct Peer {
    python: String,
    /// Its version, once it has said so.
    pub version: String,
    backends: BTreeMap<String, Vec<String>>,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it says besides, for when it fails.
    remarks: std::fs::File,
    /// The script: a file rather than an argument, since PyTorch's compiler wants to read its source again.
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Starts it on the device of this setting, with as many threads.
    ///
    /// # Errors
    /// If Python does not start, has no PyTorch, or its PyTorch does not reach the device.
    pub fn start(python: &str, setting: &Setting, threads: usize) -> Result<Peer> {
        let device = setting.device.name();
        if device == "emulator" {
            let remedy = "use --device cpu or cuda";
            return Err(Error::argument("--peer torch", "has nothing to compare with the emulator's times", remedy));
        }
        let temporary = |e: std::io::Error| {
            Error::file(std::env::temp_dir(), format!("cannot be written: {e}"), "set TMPDIR to a folder that can")
        };
        let folder = tempfile::tempdir().map_err(temporary)?;
        let script = folder.path().join("attention_torch.py");
        std::fs::write(&script, SCRIPT).map_err(temporary)?;
        let remarks = tempfile::tempfile().map_err(temporary)?;
        let stderr = remarks.try_clone().map_err(temporary)?;
        let mut command = Command::new(python);
        command.arg("-u").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(|e| {
            let remedy = "give --python the Python in which PyTorch is installed";
            Error::argument(format!("--python {python}"), format!("does not start: {e}"), remedy)
        })?;
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let mut peer = Peer {
            python: python.into(),
            version: String::new(),
            backends: BTreeMap::new(),
            child,
            input,
            output: BufReader::new(output),
            remarks,
            _folder: folder,
        };
        let hello = peer.exchange(&json!({
            "device": device, "threads": threads, "dtype": setting.dtype.name(),
            "tf32": setting.device.precision() == Precision::Tf32, "batch": setting.batch,
            "heads": setting.heads, "head_dim": setting.head_dim, "causal": setting.causal,
            "direction": setting.direction.name(), "features": setting.features, "recurrence": setting.recurrence,
        }))?;
        match hello {
            Hello::Here { version, backends } => (peer.version, peer.backends) = (version, backends),
            Hello::Missing { error } => {
                let remedy = if error.contains("CUDA") {
                    "install a PyTorch for CUDA there, or use --device cpu".to_owned()
                } else {
                    format!("run `{python} -m pip install torch`, or give --python the Python that has it")
                };
                return Err(Error::argument(format!("--peer torch: {python}"), error, remedy));
            }
        }
        Ok(peer)
    }

    /// One line there, one line back.
    fn exchange<A: for<'a> Deserialize<'a>>(&mut self, request: &Value) -> Result<A> {
        let sent = self.input.as_mut().map(|input| writeln!(input, "{request}").and_then(|()| input.flush()));
        let mut line = String::new();
        // Where it is gone, what it said last tells more than the broken pipe.
        let read = self.output.read_line(&mut line);
        if !matches!(sent, Some(Ok(()))) || !matches!(read, Ok(1..)) {
            return Err(self.failed("ended before it answered"));
        }
        serde_json::from_str(&line).map_err(|_| {
            let start: String = line.trim_end().chars().take(200).collect();
            self.failed(&format!("answered `{start}`, which is not what the script prints"))
        })
    }

    /// An error with the last lines that Python printed on stderr.
    fn failed(&mut self, problem: &str) -> Error {
        // Ended first, so that all it has to say is written.
        self.input = None;
        let _ = self.child.kill().and_then(|()| self.child.wait());
        let mut said = Vec::new();
        let _ = self.remarks.seek(SeekFrom::Start(0)).and_then(|_| self.remarks.read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(4)..].join("\n");
        let problem = if last.is_empty() { problem.into() } else { format!("{problem}:\n{last}\n") };
        let remedy = "see that --python names a Python that runs, with PyTorch 2.3 or later";
        Error::argument(format!("--peer torch: {}", self.python), problem, remedy)
    }

    /// What it has for a variant, ready to be timed.
    pub fn compared(&self, variant: &str) -> Vec<Compared> {
        let names = self.backends.get(variant).cloned().unwrap_or_default();
        let begun = |backend| Compared { backend, samples: vec![], ratios: vec![], peak_bytes: None, refused: None };
        names.into_iter().map(begun).collect()
    }

    /// Times one round of every backend that has not refused, for `seconds` each. `ours`: our median in this round.
    ///
    /// # Errors
    /// If the process ends, or answers something else.
    pub fn round(
        &mut self,
        list: &mut [Compared],
        variant: &str,
        length: usize,
        seconds: f64,
        ours: f64,
    ) -> Result<()> {
        for one in list.iter_mut().filter(|one| one.refused.is_none()) {
            let request = json!({ "variant": variant, "backend": one.backend, "length": length, "seconds": seconds });
            match self.exchange(&request)? {
                Answer::Timed { mut samples, peak_bytes } if !samples.is_empty() => {
                    samples.sort_by(f64::total_cmp);
                    one.ratios.push(ours / median(&samples));
                    one.samples.extend(samples);
                    one.peak_bytes = one.peak_bytes.max(peak_bytes);
                }
                Answer::Timed { .. } => return Err(self.failed("answered without a sample")),
                Answer::Refused { refused } => one.refused = Some(refused),
            }
        }
        Ok(())
    }

    /// The row of a backend. `work`: FLOPs and bytes, as for ours.
    pub fn row(
        &self,
        s: &Setting,
        variant: &'static str,
        length: usize,
        mut one: Compared,
        work: (f64, f64),
    ) -> PeerRow {
        one.samples.sort_by(f64::total_cmp);
        one.ratios.sort_by(f64::total_cmp);
        // One that gave up between two rounds has no figure that could be trusted.
        let timed = one.refused.is_none() && !one.samples.is_empty();
        let median_ms = timed.then(|| median(&one.samples));
        PeerRow {
            peer: "torch",
            version: self.version.clone(),
            backend: one.backend,
            variant,
            direction: s.direction.name(),
            device: s.device.name(),
            dtype: s.dtype(),
            batch: s.batch,
            heads: s.heads,
            length,
            head_dim: s.head_dim,
            causal: s.causal,
            features: s.features.clone(),
            recurrence: super::is_recurrent(variant).then_some(s.recurrence),
            median_ms,
            min_ms: timed.then(|| one.samples[0]),
            tflops: median_ms.map(|ms| work.0 / ms / 1e9),
            gbps: median_ms.map(|ms| work.1 / ms / 1e6),
            peak_bytes: one.peak_bytes,
            ratio: timed.then(|| median(&one.ratios)),
            refused: one.refused,
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends by itself at the end of its input, but not in the middle of a long case.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
