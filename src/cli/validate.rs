//! `attn validate`: every kernel, forward and backward, against the f64 oracle.

use super::Status;
use super::device::{Choice, DeviceArgs};
use crate::case::Case;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::cuda::Arch;
use crate::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Order, Sanitizer, reexec_with};
use crate::gpu::modules::launched;
use crate::io::write_atomically;
use crate::ops::{Entry, OPS};
use crate::validate::{Row, Schedule, validate};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Compare every op, forward and backward, with the f64 oracle
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  attn validate --device emulator --ops 'softmax*'\n\n\
    A tensor passes where its error is at most twice that of plain f32 arithmetic plus 2e-6 (f64: 1e-10).\n\
    Exits with 1 where one does not.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Only ops whose name matches; * stands for anything
    #[arg(long, value_name = "GLOB", default_value = "*")]
    ops: String,
    /// Precisions: f32, and on the CPU f64
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
fn matches(pattern: &str, name: &str) -> bool {
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
    let default = if args.device.device == Choice::Cpu { vec!["f32", "f64"] } else { vec!["f32"] };
    let given: Vec<&str> = args.dtype.iter().map(String::as_str).collect();
    let list = if given.is_empty() { default } else { given };
    let parse = |name: &str| match name {
        "f32" => Ok(Precision::F32),
        "f64" => Ok(Precision::F64),
        _ => Err(Error::argument(format!("--dtype {name}"), "is not validated", "give f32, or with --device cpu f64")),
    };
    list.into_iter().map(parse).collect()
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
    let mut rows: Vec<Row> = Vec::new();
    for precision in precisions(&args)? {
        if args.device.device == Choice::Emulator && precision == Precision::F32 {
            on_emulator(&args, &entries, &mut rows)?;
        } else {
            let device = args.device.open(precision)?;
            let once = |_: &Case| -> Vec<Schedule> { vec![(String::new(), Box::new(|| ()))] };
            validate(&entries, &device, &once, &mut |new| show(&args, new, &mut rows))?;
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).expect("rows are plain data");
        write_atomically(path, text.as_bytes())?;
    }
    super::print_line(summary(&entries, &rows))?;
    let failed = rows.iter().filter(|r| !r.passed).count();
    let seconds = start.elapsed().as_secs_f64();
    super::print_line(format!("{} passed, {failed} failed in {seconds:.1} s", rows.len() - failed))?;
    Ok(if failed == 0 { Status::Done } else { Status::Failed })
}

fn on_emulator(args: &Args, entries: &[&Entry], rows: &mut Vec<Row>) -> Result<()> {
    if let Some(sanitizer) = args.sanitize {
        reexec_with(sanitizer)?;
    }
    let threads = args.device.threads.map_or(0, usize::from);
    let options = EmulatorOptions { threads, sanitize: args.sanitize, ..Default::default() };
    let emulator = Arc::new(Emulator::new(options)?);
    let start = Instant::now();
    let modules: Vec<_> = launched(entries, &Arch::parse_list("sm_80")?)?.into_iter().map(|i| i.module).collect();
    emulator.prefetch(&modules)?;
    eprintln!("{} modules compiled or found in {:.1} s", modules.len(), start.elapsed().as_secs_f64());
    let device: Arc<dyn Device> = Arc::new(Gpu::new("emulator", emulator.clone()));
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
    validate(entries, &device, &ways, &mut |new| show(args, new, rows))?;
    if left_out.get() > 0 {
        let why = "many blocks of what smaller cases do; they run without --sanitize";
        super::print_line(format!("left out under the sanitizer: {} large cases, {why}", left_out.get()))?;
    }
    Ok(())
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

/// A line an op and dtype: tensors compared, the largest error and how near to its bound one came.
fn summary(entries: &[&Entry], rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["op", "dtype", "tensors", "max error", "of its bound", "verdict"]);
    let mut by_op: BTreeMap<(usize, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let index = entries.iter().position(|e| e.name == row.op).unwrap_or(usize::MAX);
        by_op.entry((index, row.dtype)).or_default().push(row);
    }
    for ((_, dtype), rows) in by_op {
        let most = |f: fn(&Row) -> f64| rows.iter().map(|r| f(r)).fold(0.0, f64::max);
        let failed = rows.iter().filter(|r| !r.passed).count();
        table.add_row([
            rows[0].op.clone(),
            dtype.into(),
            rows.len().to_string(),
            format!("{:.1e}", most(|r| r.error)),
            format!("{:.0} %", most(|r| r.error / r.bound) * 100.0),
            if failed == 0 { "passed".into() } else { format!("{failed} FAILED") },
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
