//! `attn validate`: every kernel, forward and backward, against the f64 oracle.

use super::Status;
use super::device::{Choice, DeviceArgs};
use crate::case::Case;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::cuda::Arch;
use crate::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Order, Sanitizer, reexec_with};
use crate::gpu::modules::launched_in;
use crate::io::write_atomically;
use crate::ops::{Entry, OPS};
use crate::validate::{Absent, Row, Schedule, validate};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Compare every op, forward and backward, with the f64 oracle
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn validate --device emulator --ops 'softmax*'\n\n\
    A tensor passes where its error is at most twice that of the plain computation plus 1e-10 (f64), 2e-6 (f32),\n\
    1e-3 (tf32, f16) or 8e-3 (bf16). Plain is the definition in f32, with results rounded where they are stored in 16 bits.\n\
    Exits with 1 where one does not.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Only ops whose name matches; * stands for anything
    #[arg(long, value_name = "GLOB", default_value = "*")]
    ops: String,
    /// Precisions: on the CPU f32 and f64; on a GPU or the emulator f32, f16, bf16 and tf32 [default: on the CPU and
    /// the emulator all, else f32]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    dtype: Vec<String>,
    /// Write all rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// On the emulator: every case in every thread order and copy policy, not only the marked ones
    #[arg(long)]
    all_orders: bool,
    /// On the emulator: run the kernels under AddressSanitizer or ThreadSanitizer
    #[arg(long, value_name = "address|thread", value_parser = sanitizer)]
    sanitize: Option<Sanitizer>,
    /// Print a line for every tensor, not one for every op
    #[arg(long)]
    verbose: bool,
}

fn sanitizer(text: &str) -> Result<Sanitizer, String> {
    match text {
        "address" => Ok(Sanitizer::Address),
        "thread" => Ok(Sanitizer::Thread),
        _ => Err("give address or thread".into()),
    }
}

/// Whether a name matches a pattern in which `*` stands for any text.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Every thread order with every copy policy.
fn schedules() -> Vec<(Order, CopyPolicy)> {
    let orders = [Order::Forward, Order::Reverse, Order::Random(1)];
    let policies = [CopyPolicy::Late, CopyPolicy::Early, CopyPolicy::Random(1)];
    orders.into_iter().flat_map(|o| policies.map(|p| (o, p))).collect()
}

fn precisions(args: &Args) -> Result<Vec<Precision>> {
    let choice = args.device.device;
    let known: &[Precision] = if choice == Choice::Cpu { &[Precision::F32, Precision::F64] } else { &Precision::GPU };
    if args.dtype.is_empty() {
        return Ok(if matches!(choice, Choice::Cpu | Choice::Emulator) {
            known.to_vec()
        } else {
            vec![Precision::F32]
        });
    }
    let names: Vec<&str> = known.iter().map(|p| p.name()).collect();
    let parse = |name: &String| {
        known.iter().copied().find(|p| p.name() == name).ok_or_else(|| {
            let problem = format!("is not validated with --device {choice}");
            Error::argument(format!("--dtype {name}"), problem, format!("give {}", names.join(", ")))
        })
    };
    args.dtype.iter().map(parse).collect()
}

/// Runs it.
///
/// # Errors
/// If the device is not here, nothing matches, or a case cannot run.
pub fn main(args: Args) -> Result<Status> {
    let start = Instant::now();
    let entries: Vec<&Entry> = OPS.iter().copied().filter(|e| matches(&args.ops, e.name)).collect();
    if entries.is_empty() {
        let names: Vec<&str> = OPS.iter().map(|e| e.name).collect();
        return Err(Error::argument(
            format!("--ops {}", args.ops),
            "matches no op",
            format!("there are {}", names.join(", ")),
        ));
    }
    if args.sanitize.is_some() && args.device.device != Choice::Emulator {
        return Err(Error::argument("--sanitize", "needs the emulator", "add --device emulator"));
    }
    let (mut rows, mut absent): (Vec<Row>, Vec<Absent>) = (Vec::new(), Vec::new());
    for precision in precisions(&args)? {
        if args.device.device == Choice::Emulator {
            absent.extend(on_emulator(&args, precision, &entries, &mut rows)?);
        } else {
            let device = args.device.open(precision)?;
            let once = |_: &Case| -> Vec<Schedule> { vec![(String::new(), Box::new(|| ()))] };
            absent.extend(validate(&entries, &device, &once, &mut |new| show(&args, new, &mut rows))?);
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).expect("rows are plain data");
        write_atomically(path, text.as_bytes())?;
    }
    super::print_line(summary(&entries, &rows, &absent))?;
    let failed = rows.iter().filter(|r| !r.passed).count();
    let seconds = start.elapsed().as_secs_f64();
    super::print_line(format!("{} passed, {failed} failed in {seconds:.1} s", rows.len() - failed))?;
    Ok(if failed == 0 { Status::Done } else { Status::Failed })
}

fn on_emulator(args: &Args, precision: Precision, entries: &[&Entry], rows: &mut Vec<Row>) -> Result<Vec<Absent>> {
    if let Some(sanitizer) = args.sanitize {
        reexec_with(sanitizer)?;
    }
    let threads = args.device.threads.map_or(0, usize::from);
    let options = EmulatorOptions { threads, sanitize: args.sanitize, ..Default::default() };
    let emulator = Arc::new(Emulator::new(options)?);
    let start = Instant::now();
    let items = launched_in(&[precision], entries, &Arch::parse_list("sm_80")?)?;
    let modules: Vec<_> = items.into_iter().map(|i| i.module).collect();
    emulator.prefetch(&modules)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{precision}: {} modules compiled or found in {seconds:.1} s", modules.len());
    let device: Arc<dyn Device> = Arc::new(Gpu::storing(precision, "emulator", emulator.clone()));
    let left_out = Cell::new(0);
    let ways = |case: &Case| -> Vec<Schedule> {
        let all = schedules();
        if case.large && args.sanitize.is_some() {
            left_out.set(left_out.get() + 1);
            return Vec::new();
        }
        // A large case is the same blocks many times over: one order, whatever is asked for.
        let every = (case.every_order || args.all_orders) && !case.large;
        let chosen = if every { all } else { vec![all[case.seed() as usize % all.len()]] };
        let label = |(order, copies): (Order, CopyPolicy)| {
            let text = format!("{order:?}, {copies:?}");
            if every { text.to_lowercase().replace("(1)", "") } else { String::new() }
        };
        let prepare = |(order, copies): (Order, CopyPolicy)| -> Box<dyn Fn()> {
            let emulator = emulator.clone();
            Box::new(move || emulator.set_schedule(order, copies))
        };
        chosen.into_iter().map(|way| (label(way), prepare(way))).collect()
    };
    let absent = validate(entries, &device, &ways, &mut |new| show(args, new, rows))?;
    if left_out.get() > 0 {
        let why = "many blocks of what smaller cases do; they run without --sanitize";
        super::print_line(format!("left out under the sanitizer: {} large cases, {why}", left_out.get()))?;
    }
    Ok(absent)
}

/// Failures at once, on stdout; everything where asked.
fn show(args: &Args, new: &[Row], rows: &mut Vec<Row>) {
    for row in new.iter().filter(|r| args.verbose || !r.passed) {
        let verdict = if row.passed { "ok" } else { "FAILED" };
        let Row { op, case, tensor, dtype, error, bound, .. } = row;
        let line = format!("{verdict:6} {op:26} {case:50} {tensor:12} {dtype} error {error:.1e} bound {bound:.1e}");
        // A closed stdout must not end the comparison; its exit code still counts.
        let _ = super::print_line(line);
    }
    rows.extend_from_slice(new);
}

/// A line an op and dtype: tensors compared, the largest error, how near to its bound one came, and which cases the
/// dtype does not have.
fn summary(entries: &[&Entry], rows: &[Row], absent: &[Absent]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["op", "dtype", "tensors", "max error", "of its bound", "verdict"]);
    let mut by_op: BTreeMap<(usize, &str), (Vec<&Row>, usize)> = BTreeMap::new();
    let index = |op: &str| entries.iter().position(|e| e.name == op).unwrap_or(usize::MAX);
    for row in rows {
        by_op.entry((index(&row.op), row.dtype)).or_default().0.push(row);
    }
    for case in absent {
        by_op.entry((index(&case.op), case.dtype)).or_default().1 += 1;
    }
    for ((op, dtype), (rows, absent)) in by_op {
        let name = entries.get(op).map_or("", |e| e.name);
        if rows.is_empty() {
            table.add_row([name, dtype, "0", "", "", &format!("not in {dtype}")]);
            continue;
        }
        let most = |f: fn(&Row) -> f64| rows.iter().map(|r| f(r)).fold(0.0, f64::max);
        let failed = rows.iter().filter(|r| !r.passed).count();
        let verdict = if failed == 0 { "passed".into() } else { format!("{failed} FAILED") };
        table.add_row([
            name.into(),
            dtype.into(),
            rows.len().to_string(),
            format!("{:.1e}", most(|r| r.error)),
            format!("{:.0} %", most(|r| r.error / r.bound) * 100.0),
            if absent == 0 { verdict } else { format!("{verdict}; {absent} cases not in {dtype}") },
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        assert!(matches("*", "softmax-attention") && matches("softmax*", "softmax-attention"));
        assert!(matches("*attention", "softmax-attention") && matches("s*-*n", "softmax-attention"));
        assert!(!matches("softmax", "softmax-attention") && !matches("*x", "softmax-attention"));
        assert!(matches("add", "add") && !matches("add", "adds"));
    }
}
