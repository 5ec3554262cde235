//! Removes each barrier and each wait of each kernel in turn and shows that the validation cases notice.
//!
//!     cargo test --release --test barrier_mutation [-- FILE[:LINE]]
//!
//! A mutant runs the cases that launch its file, the cheapest first, each in all thread orders and copy policies, and stops
//! at the first that fails. One that survives is either not needed, and is then to be deleted, or the cases lack
//! one that catches it. Fences for memory order, which no emulator sees, are not touched: docs/proof.md lists them.

use attn_engine::Device;
use attn_engine::case::Case;
use attn_engine::device::Precision;
use attn_engine::gpu::cuda::Arch;
use attn_engine::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Mutation, Order};
use attn_engine::gpu::kernel::HEADERS;
use attn_engine::gpu::modules::launched_by;
use attn_engine::gpu::{Gpu, Module};
use attn_engine::ops::OPS;
use attn_engine::validate::{Expected, lacks, run_case};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

/// A case in a precision, what it launches, and what it should give (computed when first asked for).
struct Subject {
    op: &'static str,
    case: Case,
    precision: Precision,
    modules: Vec<Module>,
    elements: usize,
    expected: Option<Expected>,
}

fn subjects() -> Vec<Subject> {
    let arch = Arch::parse_list("sm_80").unwrap()[0];
    let mut all = Vec::new();
    for entry in OPS {
        // f16 has bf16's barriers: the same text with other conversions.
        for (case, precision) in (entry.cases)().iter().flat_map(|c| PRECISIONS.map(|p| (c.clone(), p))) {
            if lacks(&case, precision).unwrap().is_some() {
                continue;
            }
            let modules = launched_by(&case, precision, arch).unwrap().into_iter().map(|i| i.module).collect();
            let (graph, _) = case.build().unwrap();
            let elements = graph.data.iter().map(|(t, _)| graph.spec(*t).numel()).sum();
            all.push(Subject { op: entry.name, case, precision, modules, elements, expected: None });
        }
    }
    all.sort_by_key(|s| (!s.case.every_order, s.elements, s.precision));
    all
}

/// Up to the parenthesis that closes the first.
fn call_length(code: &str) -> usize {
    let mut depth = 0;
    let end = code.char_indices().find(|&(_, c)| {
        depth += (c == '(') as i32 - (c == ')') as i32;
        c == ')' && depth == 0
    });
    end.map_or(code.len(), |(i, _)| i + 1)
}

/// The barriers and waits of a text, of threads and of blocks: line and call.
fn barriers(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap();
        for name in ["__syncthreads", "__syncwarp", "cp_async_wait", "signal(", "await("] {
            if let Some(at) = code.find(name) {
                let end = at + call_length(&code[at..]);
                found.push((i + 1, code[at..end].to_string()));
            }
        }
    }
    found
}

fn mutations(subjects: &[Subject]) -> Vec<Mutation> {
    let mut files: BTreeMap<String, &str> = BTreeMap::new();
    for module in subjects.iter().flat_map(|s| &s.modules) {
        files.insert(format!("kernels/{}.cu", module.source), module.text);
    }
    // prelude.cuh defines the waits; it uses none.
    for (name, text) in HEADERS.iter().filter(|(name, _)| *name != "prelude.cuh") {
        files.insert(format!("kernels/{name}"), text);
    }
    let all = files.iter().flat_map(|(file, text)| {
        barriers(text).into_iter().map(|(line, call)| Mutation { file: file.clone(), line, call })
    });
    all.collect()
}

fn touches(module: &Module, file: &str) -> bool {
    let name = file.strip_prefix("kernels/").unwrap();
    name == format!("{}.cu", module.source) || includes(module.text, name)
}

/// Whether a text includes the header, itself or through headers that it includes.
fn includes(text: &str, name: &str) -> bool {
    let directly = |text: &str, name: &str| text.contains(&format!("#include \"{name}\""));
    directly(text, name)
        || HEADERS.iter().any(|(other, inner)| *other != name && directly(text, other) && includes(inner, name))
}

fn schedules() -> Vec<(Order, CopyPolicy)> {
    let orders = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];
    let policies = [CopyPolicy::Late, CopyPolicy::Early, CopyPolicy::Random(1)];
    policies.into_iter().flat_map(|p| orders.map(|o| (o, p))).collect()
}

/// What caught the mutant, or `None`.
fn caught_by(mutation: &Mutation, subjects: &mut [Subject]) -> Option<String> {
    let emulator = Arc::new(Emulator::mutated(EmulatorOptions::default(), mutation.clone()).unwrap());
    for s in subjects.iter_mut().filter(|s| s.modules.iter().any(|m| touches(m, &mutation.file))) {
        let expected = s.expected.get_or_insert_with(|| Expected::of(&s.case, s.precision).unwrap());
        let device: Arc<dyn Device> = Arc::new(Gpu::storing(s.precision, "emulator", emulator.clone()));
        for (order, copies) in schedules() {
            emulator.set_schedule(order, copies);
            let how = match run_case(&s.case, device.clone()) {
                Err(e) => e.to_string().lines().next().unwrap_or_default().to_string(),
                Ok(results) => match expected.compare(s.op, &s.case.name, &results).iter().find(|r| !r.passed) {
                    Some(row) => format!("{} error {:.0e}", row.tensor, row.error),
                    None => continue,
                },
            };
            let (op, case, precision) = (s.op, &s.case.name, s.precision);
            return Some(format!("{op} / {case} / {precision}, {order:?}, {copies:?}: {how}"));
        }
    }
    None
}

fn main() -> ExitCode {
    let start = Instant::now();
    let only = std::env::args().nth(1).filter(|a| !a.starts_with('-')).unwrap_or_default();
    let mut subjects = subjects();
    let chosen: Vec<Mutation> =
        mutations(&subjects).into_iter().filter(|m| format!("{}:{}:", m.file, m.line).contains(&only)).collect();
    let mut survived = 0;
    for m in &chosen {
        let begun = Instant::now();
        let caught = caught_by(m, &mut subjects);
        let seconds = begun.elapsed().as_secs_f64();
        let what = caught.as_deref().unwrap_or("SURVIVED: not needed, or no case needs it");
        println!("{}:{} {} ({seconds:.1} s): {what}", m.file, m.line, m.call);
        survived += caught.is_none() as usize;
    }
    println!(
        "barriers tried {}, caught {}, in {:.0} s",
        chosen.len(),
        chosen.len() - survived,
        start.elapsed().as_secs_f64()
    );
    println!("{} passed, {survived} failed", chosen.len() - survived);
    if survived == 0 && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
