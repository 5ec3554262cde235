//! `attn bench`: attention variants over lengths: time, memory, error, and from where on the O(T) ones win.

mod analysis;
mod features;
mod measure;
mod peer;
mod plot;
mod recurrence;
mod report;
mod roofline;
mod tasks;

use super::device::{DeviceArgs, check_tf32, stored};
use super::{Status, devices, print, print_line};
use crate::error::{Error, Result};
use crate::io::Target;
use crate::io::tensors::Dtype;
use crate::ops::{Entry, OPS};
use crate::plot::Picture;
use features::Features;
use indicatif::{ProgressBar, ProgressStyle};
use measure::{Flush, Measured, Rounds, Setting, median};
use peer::{Peer, PeerRow, ROUNDS};
use recurrence::Recurrence;
use report::Results;
use roofline::{Fractions, Peaks};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the others are compared with.
const SOFTMAX: &str = "softmax-attention";
/// Without options the command ends within a minute: seconds after which no further length is begun.
const PATIENCE: f64 = 40.0;
/// Seconds that all rows together may take, where their number allows it.
const BUDGET: f64 = 20.0;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// The output.
    Forward,
    /// The gradients, after an untimed forward.
    Backward,
    /// One forward with its backward.
    Both,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
            Direction::Both => "both",
        }
    }
}

/// Compare attention variants, and recurrences, over lengths: time, memory, error
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  attn bench\n  attn bench --lengths 1024,4096,16384 --causal --direction both \
                        --out results\n  attn bench --variants softmax-attention --lengths 1024,4096 --peer torch \
                        --python venv/bin/python\n  attn bench --variants softmax-attention --window 256 --kv-heads 2 --dropout 0.1 \
                        --direction both\n  attn bench --variants softmax-attention,linear-attention,gru --lengths \
                        256,1024,4096\nThe last line is the answer in one sentence.")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Variants, by name: attention's, gru, rnn [default: attention's]
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    variants: Vec<String>,
    /// Lengths [default: 32 to 8192, as far as a minute reaches; on the emulator 16 to 64]
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    lengths: Vec<u32>,
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: u32,
    /// Heads
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    heads: u32,
    /// Size of a head
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    head_dim: u32,
    /// Let each query see only the keys up to its own position
    #[arg(long)]
    causal: bool,
    /// What tensors are stored in on a GPU or the emulator, and inputs and outputs rounded to on the CPU; arithmetic is
    /// f32 in 16 bits too
    #[arg(long, value_enum, default_value_t = Dtype::F32, hide_possible_values = true, value_name = "f64|f32|f16|bf16")]
    dtype: Dtype,
    /// On a GPU or the emulator: products of f32 tensors in TF32, in the variants that can
    #[arg(long)]
    tf32: bool,
    /// What to time; `both`: one forward with its backward
    #[arg(long, value_enum, default_value_t = Direction::Forward, hide_possible_values = true)]
    #[arg(value_name = "forward|backward|both")]
    direction: Direction,
    /// Folder for bench.json, bench.csv, bench.svg and bench.png
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run the same cases through PyTorch too, in turns with ours, and print both with the ratio of their times
    #[arg(long, value_enum, hide_possible_values = true, value_name = "torch")]
    peer: Option<peer::Name>,
    /// The Python in which PyTorch is installed
    #[arg(long, value_name = "PATH", default_value = "python3", requires = "peer")]
    python: String,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    features: features::Args,
    #[command(flatten)]
    recurrence: recurrence::Args,
}

/// What else can be compared.
#[derive(Debug, Clone, clap::Subcommand)]
enum Other {
    Tasks(tasks::TasksArgs),
}

/// One variant at one length.
#[derive(Debug, Clone, Serialize)]
struct Row {
    variant: &'static str,
    direction: &'static str,
    device: String,
    dtype: &'static str,
    batch: usize,
    heads: usize,
    length: usize,
    head_dim: usize,
    causal: bool,
    #[serde(flatten)]
    features: Features,
    /// Of a recurrence.
    #[serde(flatten)]
    recurrence: Option<Recurrence>,
    median_ms: f64,
    min_ms: f64,
    tflops: f64,
    gbps: f64,
    peak_bytes: usize,
    /// Against softmax attention on the same inputs; `None` for softmax attention itself, and for what does not
    /// approximate it.
    error: Option<f64>,
    /// On a GPU: what it reaches of the measured ceilings.
    #[serde(flatten)]
    roofline: Option<Fractions>,
}

/// Where results go besides stdout.
#[derive(Default)]
struct Files {
    json: Vec<Target>,
    csv: Option<Target>,
    pictures: Vec<Picture>,
}

impl Files {
    fn new(args: &Args) -> Result<Files> {
        let mut files = Files::default();
        if let Some(path) = &args.json {
            files.json.push(Target::new(path)?);
        }
        if let Some(folder) = &args.out {
            let refused = |e: std::io::Error| {
                Error::file(folder, format!("cannot be made: {}", e.kind()), "give --out a folder you may write to")
            };
            std::fs::create_dir_all(folder).map_err(refused)?;
            files.json.push(Target::new(&folder.join("bench.json"))?);
            files.csv = Some(Target::new(&folder.join("bench.csv"))?);
            files.pictures = Picture::both(folder, "bench")?.into();
        }
        Ok(files)
    }
}

/// max|x − reference| / max(max|reference|, 0.1).
fn error(x: &[f64], reference: &[f64]) -> f64 {
    let largest = reference.iter().fold(0.1f64, |m, r| m.max(r.abs()));
    // `max` would drop a NaN.
    let worst = |m: f64, d: f64| if d > m || d.is_nan() { d } else { m };
    x.iter().zip(reference).map(|(x, r)| (x - r).abs() / largest).fold(0.0, worst)
}

/// Whether it is one of [`recurrence::NAMES`].
fn is_recurrent(name: &str) -> bool {
    recurrence::NAMES.contains(&name)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Entry>> {
    let attention = |e: &&Entry| e.attention.is_some();
    if names.is_empty() {
        return Ok(OPS.iter().copied().filter(attention).collect());
    }
    let known: Vec<&Entry> = OPS.iter().copied().filter(|e| attention(e) || is_recurrent(e.name)).collect();
    let mut list: Vec<&Entry> = Vec::new();
    for name in names {
        let entry = known.iter().find(|e| e.name == name).ok_or_else(|| {
            let all: Vec<&str> = known.iter().map(|e| e.name).collect();
            Error::argument(
                format!("--variants {name}"),
                "is neither an attention variant nor a recurrence",
                format!("use {}", all.join(", ")),
            )
        })?;
        if !list.iter().any(|e| e.name == entry.name) {
            list.push(entry);
        }
    }
    Ok(list)
}

/// Whether a variant's work grows as T: twice the length, twice the operations (and not four times).
fn is_linear(setting: &Setting, entry: &Entry) -> bool {
    let flops = |length| setting.cost(entry, length).map_or(0.0, |c| c.forward_flops + c.backward_flops);
    flops(1 << 17) < 3.0 * flops(1 << 16)
}

/// The entries that have kernels for what the device stores. One that was asked for and has none is an error; of the
/// others stderr says so.
fn with_kernels(setting: &Setting, entries: Vec<&'static Entry>, args: &Args) -> Result<Vec<&'static Entry>> {
    let mut list = Vec::new();
    for entry in entries {
        let checked = || {
            let graph = setting.record(entry, 1)?.graph;
            match args.tf32 {
                true => check_tf32(&graph, &*setting.device)?,
                false => graph.check(setting.device.precision())?,
            }
            graph.remarks(&*setting.device)?.iter().for_each(|remark| eprintln!("note: {remark}"));
            Ok(())
        };
        match setting.features.check(entry.name).and_then(|()| checked()) {
            Ok(()) => list.push(entry),
            Err(e) if !args.variants.is_empty() => return Err(e),
            Err(e) => eprintln!("{} is left out: {e}", entry.name),
        }
    }
    if list.is_empty() {
        return Err(Error::argument(
            "--dtype",
            "no variant has kernels for it here",
            "use --dtype f32, or --device cpu",
        ));
    }
    Ok(list)
}

/// Runs the command.
///
/// # Errors
/// If an option does not fit, the device or its memory is missing, or a file cannot be written; and when interrupted.
pub fn main(args: Args) -> Result<Status> {
    if let Some(Other::Tasks(args)) = args.other {
        return tasks::main(args);
    }
    let mut entries = chosen(&args.variants)?;
    let device = args.device.open(stored(args.dtype, args.tf32)?)?;
    let threads = args.device.threads.map(usize::from);
    let files = Files::new(&args)?;
    let mut lengths: Vec<usize> = match device.name().as_str() {
        "emulator" if args.lengths.is_empty() => vec![16, 32, 64],
        _ if args.lengths.is_empty() => (5..14).map(|e| 1 << e).collect(),
        _ => args.lengths.iter().map(|&n| n as usize).collect(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    let [batch, heads, head_dim] = [args.batch, args.heads, args.head_dim].map(|n| n as usize);
    let features = Features::new(&args.features, heads)?;
    let longest = lengths.last().copied().unwrap_or(1);
    let elements = [batch, heads, longest].iter().try_fold(head_dim, |p, &n| p.checked_mul(n));
    if elements.is_none_or(|n| n > 1 << 40) {
        let remedy = "use fewer heads, a smaller batch or shorter lengths";
        return Err(Error::argument(
            "--batch × --heads × --lengths × --head-dim",
            "is more than any device holds",
            remedy,
        ));
    }

    // One Ctrl-C ends the measuring, a second one the process.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });

    let (dtype, direction, causal) = (args.dtype, args.direction, args.causal);
    let recurrent = entries.iter().any(|e| is_recurrent(e.name));
    let recurrence = Recurrence::new(&args.recurrence, heads * head_dim, recurrent, causal)?;
    let setting = Setting { device, dtype, direction, batch, heads, head_dim, causal, features, recurrence };
    entries = with_kernels(&setting, entries, &args)?;
    let linear: Vec<&str> = entries.iter().filter(|e| is_linear(&setting, e)).map(|e| e.name).collect();
    let is_linear = |name: &str| linear.contains(&name);
    let place = devices::describe(&setting.device.name(), threads);

    let peer = match args.peer {
        Some(peer::Name::Torch) => {
            let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
            Some(Peer::start(&args.python, &setting, threads.unwrap_or_else(cores))?)
        }
        None => None,
    };
    let mut bench = Bench {
        setting: &setting,
        entries: &entries,
        files: &files,
        is_linear: &is_linear,
        peaks: Peaks::of_gpu(&setting.device)?,
        peers: peer.is_some().then(Vec::new),
        peer,
        rows: vec![],
    };
    bench.run(&lengths, args.lengths.is_empty(), &interrupted)?;
    let Bench { rows, peers, peaks, .. } = bench;
    if !rows.is_empty() {
        let (exponents, crossovers) = (analysis::exponents(&rows), analysis::crossovers(&rows, &is_linear));
        let title = format!("{} {} on {place}", subject(&entries), plot::verb(direction));
        let titles = (title, subtitle(&setting, &entries));
        let drawing = plot::chart(titles, &rows, &exponents, &crossovers, &is_linear).draw();
        files.pictures.iter().try_for_each(|picture| picture.write(&drawing))?;
        let peers = peers.as_deref().unwrap_or_default();
        print_line(report::table(&rows, peers))?;
        print(report::notes(peers, peaks))?;
        print(report::findings(&exponents, &crossovers))?;
        if !interrupted.load(Ordering::Relaxed) {
            print_line(analysis::sentence(&rows, &crossovers, &is_linear, &place))?;
        }
    }
    if interrupted.load(Ordering::Relaxed) {
        let (done, all) = (rows.len(), lengths.len() * entries.len());
        let kept = if files.json.is_empty() { "use --out to keep them" } else { "the files hold them" };
        return Err(Error::argument("attn bench", format!("was interrupted after {done} of {all} rows"), kept));
    }
    Ok(Status::Done)
}

/// What the figure is about.
fn subject(entries: &[&Entry]) -> &'static str {
    match [false, true].map(|recurrent| entries.iter().any(|e| is_recurrent(e.name) == recurrent)) {
        [true, true] => "Attention and recurrences,",
        [false, true] => "Recurrences",
        _ => "Attention",
    }
}

fn subtitle(s: &Setting, entries: &[&Entry]) -> String {
    let mask = if s.causal { "causal" } else { "no mask" };
    let dtype = s.dtype();
    let features = s.features.summary(s.heads);
    let features = if features.is_empty() { features } else { format!(" · {features}") };
    let (batch, heads, dim) = (s.batch, s.heads, s.head_dim);
    let mut parts = vec![format!("batch {batch}")];
    if entries.iter().any(|e| !is_recurrent(e.name)) {
        parts.push(format!("{heads} heads of size {dim} · {mask}{features}"));
    }
    if entries.iter().any(|e| is_recurrent(e.name)) {
        parts.push(s.recurrence.summary());
    }
    format!("{} · {dtype} · median of repeated runs", parts.join(" · "))
}

struct Bench<'a> {
    setting: &'a Setting,
    entries: &'a [&'static Entry],
    files: &'a Files,
    is_linear: &'a dyn Fn(&str) -> bool,
    peaks: Option<Peaks>,
    peer: Option<Peer>,
    rows: Vec<Row>,
    /// Empty is not the same as nobody to compare with.
    peers: Option<Vec<PeerRow>>,
}

impl Bench<'_> {
    /// Measures every length, the shortest first. `by_default`: lengths that nobody asked for may be left out.
    fn run(&mut self, lengths: &[usize], by_default: bool, interrupted: &AtomicBool) -> Result<()> {
        let all = lengths.len() * self.entries.len();
        let seconds = (BUDGET / all as f64).clamp(0.02, 1.0);
        let bar = ProgressBar::new(all as u64);
        let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len} {elapsed}");
        bar.set_style(style.expect("a valid template"));
        let flush = Flush::new(&self.setting.device)?;
        let start = Instant::now();
        let mut last = 0.0;
        // Softmax attention first: the others are compared with its output.
        let mut order = self.entries.to_vec();
        order.sort_by_key(|e| e.name != SOFTMAX);
        let softmax = OPS.iter().find(|e| e.name == SOFTMAX);
        for (i, &length) in lengths.iter().enumerate() {
            // A length takes up to four times as long as half of it.
            let begun = start.elapsed().as_secs_f64();
            if by_default && i > 2 && begun + 4.0 * last > PATIENCE {
                bar.suspend(|| {
                    eprintln!("T = {length} and longer are left out to end within a minute; --lengths asks for them")
                });
                break;
            }
            let mut reference: Option<Vec<f64>> = None;
            for entry in &order {
                bar.set_message(format!("{} T={length}", entry.name));
                let Some(measured) = self.measure(entry, length, seconds, flush.as_ref(), interrupted)? else {
                    return Ok(());
                };
                let compared = match (&reference, softmax) {
                    _ if entry.name == SOFTMAX || is_recurrent(entry.name) => None,
                    (Some(r), _) => Some(error(&measured.out, r)),
                    (None, Some(softmax)) => {
                        let r = reference.insert(self.setting.output(softmax, length)?);
                        Some(error(&measured.out, r))
                    }
                    (None, None) => None,
                };
                self.add(entry.name, length, &measured, compared)?;
                if entry.name == SOFTMAX {
                    reference = Some(measured.out);
                }
                bar.inc(1);
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            last = start.elapsed().as_secs_f64() - begun;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Measures ours, and in turns with it the peer's, whose rows are kept. `None`: interrupted.
    fn measure(
        &mut self,
        entry: &Entry,
        length: usize,
        seconds: f64,
        flush: Option<&Flush>,
        interrupted: &AtomicBool,
    ) -> Result<Option<Measured>> {
        let count = if self.peer.is_some() { ROUNDS } else { 1 };
        let mut compared = self.peer.as_ref().map_or(vec![], |peer| peer.compared(entry.name));
        let mut after = |ours: &[f64]| match &mut self.peer {
            Some(peer) => peer.round(&mut compared, entry.name, length, seconds / count as f64, median(ours)),
            None => Ok(()),
        };
        let rounds = Rounds { seconds, count, after: &mut after };
        let measured = match self.setting.measure(entry, length, rounds, flush, interrupted) {
            // Ctrl-C reaches the peer too, and ends it.
            Err(_) if interrupted.load(Ordering::Relaxed) => None,
            other => other?,
        };
        if let (Some(m), Some(peer), Some(peers)) = (&measured, &self.peer, &mut self.peers) {
            peers.extend(compared.into_iter().map(|one| peer.row(self.setting, entry.name, length, one, m.work)));
        }
        Ok(measured)
    }

    /// Keeps a row, in the order in which variants were asked for, and saves all so far.
    fn add(&mut self, variant: &'static str, length: usize, m: &Measured, error: Option<f64>) -> Result<()> {
        let s = self.setting;
        let median_ms = m.median();
        let (tflops, gbps) = (m.work.0 / median_ms / 1e9, m.work.1 / median_ms / 1e6);
        self.rows.push(Row {
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
            recurrence: is_recurrent(variant).then_some(s.recurrence),
            median_ms,
            min_ms: m.samples[0],
            tflops,
            gbps,
            peak_bytes: m.peak_bytes,
            error,
            roofline: self.peaks.map(|peaks| peaks.fractions(tflops, gbps)),
        });
        let position = |name: &str| self.entries.iter().position(|e| e.name == name);
        self.rows.sort_by_key(|r| (position(r.variant), r.length));
        // Stable: backends stay in the peer's order.
        self.peers.iter_mut().for_each(|peers| peers.sort_by_key(|r| (position(r.variant), r.length)));
        let results = Results {
            rows: &self.rows,
            exponents: &analysis::exponents(&self.rows),
            crossovers: &analysis::crossovers(&self.rows, self.is_linear),
            peers: self.peers.as_deref(),
            roofline: self.peaks,
        };
        for to in &self.files.json {
            report::write_json(to, &results)?;
        }
        self.files.csv.as_ref().map_or(Ok(()), |to| report::write_csv(to, &self.rows))
    }
}
