//! The kernel gate: compiles every kernel for every architecture on a machine without a GPU, and fails on what
//! would be wrong or slow on one: errors, spills, too much shared memory, wgmma that ptxas had to serialise.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::arch::Arch;
use super::cache::{self, Cache};
use super::machine::{self, Cycles, Occupancy};
use super::nvdisasm::Nvdisasm;
use super::nvrtc::Nvrtc;
use super::sass::Loop;
use crate::error::{Error, Result};
use crate::gpu::kernel::Module;

/// A module that is launched somewhere, and what its launches ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateItem {
    /// What is compiled.
    pub module: Module,
    /// The most dynamic shared memory, in bytes, that any launch of an entry asks for; none where not named.
    pub dynamic_shared: BTreeMap<String, u32>,
    /// The most threads of a block that any launch of an entry asks for.
    pub threads: BTreeMap<String, u32>,
    /// The architectures that launch it; empty for all.
    pub archs: Vec<Arch>,
}

impl GateItem {
    /// A module for all architectures, without dynamic shared memory.
    pub fn new(module: Module) -> Self {
        GateItem { module, dynamic_shared: BTreeMap::new(), threads: BTreeMap::new(), archs: Vec::new() }
    }

    /// A launch of `entry` asks for this much dynamic shared memory.
    pub fn shared(mut self, entry: &str, bytes: u32) -> Self {
        raise(&mut self.dynamic_shared, entry, bytes);
        self
    }

    /// A launch of `entry` asks for so many threads a block.
    pub fn threads(mut self, entry: &str, threads: u32) -> Self {
        raise(&mut self.threads, entry, threads);
        self
    }

    /// Only devices of this architecture (and of others named so) launch it.
    pub fn only(mut self, arch: Arch) -> Self {
        if !self.archs.contains(&arch) {
            self.archs.push(arch);
        }
        self
    }

    /// Whether it is to be compiled for this architecture.
    fn wants(&self, arch: Arch) -> bool {
        self.archs.is_empty() || self.archs.contains(&arch)
    }
}

/// The greater of what is known and `n`.
fn raise(map: &mut BTreeMap<String, u32>, entry: &str, n: u32) {
    let most = map.entry(entry.to_owned()).or_default();
    *most = n.max(*most);
}

/// What the machine code of an entry says, as one warp passes once through its main loop ([`super::sass`]).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MainLoop {
    /// Its instructions.
    #[serde(flatten)]
    pub counts: Loop,
    /// What each unit of a multiprocessor needs for them ([`super::machine`]).
    pub cycles: Cycles,
    /// The unit that needs most.
    pub bound: &'static str,
    /// Floating-point operations of all warps of a block.
    pub block_flops: u64,
    /// Bytes that they load from global memory.
    pub block_bytes: u64,
}

/// One entry of one module on one architecture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The source's name.
    pub source: String,
    /// The module with its defines.
    pub module: String,
    /// The entry point.
    pub entry: String,
    /// The architecture asked for.
    pub arch: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread.
    pub stack: u32,
    /// Bytes of spill stores and loads a thread.
    pub spills: u32,
    /// Bytes of static shared memory a block.
    pub static_shared: u32,
    /// Bytes of dynamic shared memory a block.
    pub dynamic_shared: u32,
    /// Threads a block.
    pub threads: Option<u32>,
    /// How many of its blocks a multiprocessor holds, where the threads are known.
    pub occupancy: Option<Occupancy>,
    /// Where it was asked for, there is a loop, and the threads are known.
    pub main_loop: Option<MainLoop>,
}

/// Something that fails the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The module with its defines, and the entry where one is at fault.
    pub kernel: String,
    /// The architecture.
    pub arch: String,
    /// What is wrong.
    pub problem: String,
}

/// What the gate found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The compiler's version, such as `13.0`.
    pub nvrtc: String,
    /// The architectures asked for.
    pub archs: Vec<String>,
    /// Pairs of module and architecture.
    pub compilations: usize,
    /// How many of those were found in the cache.
    pub cached: usize,
    /// How many gave PTX, because this NVRTC does not know the architecture.
    pub ptx: usize,
    /// Time taken.
    pub seconds: f64,
    /// Every entry on every architecture.
    pub rows: Vec<Row>,
    /// What fails the gate.
    pub problems: Vec<Problem>,
    /// Compiler warnings that do not.
    pub warnings: Vec<Problem>,
}

/// A file of a prebuilt folder, in its `index.json`.
#[derive(Debug, Clone, Serialize)]
struct Indexed {
    module: String,
    arch: String,
    entries: &'static [&'static str],
    file: String,
}

/// What one compilation adds to the report.
#[derive(Default)]
struct Outcome {
    rows: Vec<Row>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    file: Option<Indexed>,
    cached: bool,
    ptx: bool,
}

/// Compiles every item for every architecture, `jobs` at a time (0: one a core), and with `out` writes a folder for
/// `ATTN_KERNELS`. With a disassembler the rows say what the main loops do. What is wrong with a kernel goes into the report; an error means that the gate could not run.
/// `progress` is called with what is done and the total.
pub fn build(
    items: &[GateItem],
    archs: &[Arch],
    out: Option<&Path>,
    jobs: usize,
    cache: &Cache,
    disassembler: Option<&Nvdisasm>,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report> {
    let started = Instant::now();
    let nvrtc = Nvrtc::get()?;
    let items = merge(items);
    let tasks: Vec<(&GateItem, Arch)> =
        items.iter().flat_map(|item| archs.iter().filter(|a| item.wants(**a)).map(move |a| (item, *a))).collect();
    let outcomes: Vec<Mutex<Option<Result<Outcome>>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let workers = if jobs == 0 { cores } else { jobs }.min(tasks.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < tasks.len()) {
                    let (item, arch) = tasks[index];
                    let outcome = compile_one(item, arch, out, cache, nvrtc, disassembler);
                    *outcomes[index].lock().unwrap_or_else(|p| p.into_inner()) = Some(outcome);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, tasks.len());
                }
            });
        }
    });
    let (major, minor) = nvrtc.version();
    let mut report = Report {
        nvrtc: format!("{major}.{minor}"),
        archs: archs.iter().map(Arch::to_string).collect(),
        compilations: tasks.len(),
        cached: 0,
        ptx: 0,
        seconds: 0.0,
        rows: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let mut files = Vec::new();
    for outcome in outcomes {
        let outcome = outcome.into_inner().unwrap_or_else(|p| p.into_inner()).expect("every task was taken")?;
        report.cached += usize::from(outcome.cached);
        report.ptx += usize::from(outcome.ptx);
        report.rows.extend(outcome.rows);
        report.problems.extend(outcome.problems);
        report.warnings.extend(outcome.warnings);
        files.extend(outcome.file);
    }
    if let Some(folder) = out {
        let index = serde_json::json!({ "nvrtc": report.nvrtc, "files": files });
        write(folder, "index.json", format!("{index:#}\n").as_bytes())?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// One item a module: the same one comes from many cases, with more or less shared memory.
fn merge(items: &[GateItem]) -> Vec<GateItem> {
    let mut merged: BTreeMap<&Module, GateItem> = BTreeMap::new();
    for item in items {
        match merged.get_mut(&item.module) {
            None => drop(merged.insert(&item.module, item.clone())),
            Some(known) => {
                item.dynamic_shared.iter().for_each(|(entry, &n)| raise(&mut known.dynamic_shared, entry, n));
                item.threads.iter().for_each(|(entry, &n)| raise(&mut known.threads, entry, n));
                // An empty list means all: it must not become a list of the other's.
                if known.archs.is_empty() || item.archs.is_empty() {
                    known.archs.clear();
                } else {
                    known.archs.extend(item.archs.iter().filter(|a| !known.archs.contains(a)).collect::<Vec<_>>());
                }
            }
        }
    }
    merged.into_values().collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    cache::write_whole(&path, bytes)
        .map_err(|e| Error::file(path, e.to_string(), "give --out a folder that can be written"))
}

fn compile_one(
    item: &GateItem,
    arch: Arch,
    out: Option<&Path>,
    cache: &Cache,
    nvrtc: &Nvrtc,
    disassembler: Option<&Nvdisasm>,
) -> Result<Outcome> {
    let module = &item.module;
    let mut outcome = Outcome::default();
    let problem = |kernel: String, problem: String| Problem { kernel, arch: arch.to_string(), problem };
    let inspected = match cache.inspect(module, arch, nvrtc, disassembler) {
        Ok(inspected) => inspected,
        Err(Error::Kernel { problem: log, .. }) => {
            outcome.problems.push(problem(module.to_string(), log));
            return Ok(outcome);
        }
        Err(other) => return Err(other),
    };
    (outcome.cached, outcome.ptx) = (inspected.cached, inspected.ptx);
    for warning in inspected.warnings {
        let costly = warning.contains("C7508") || warning.contains("C7517");
        let list = if costly { &mut outcome.problems } else { &mut outcome.warnings };
        list.push(problem(module.to_string(), warning));
    }
    for entry in module.entries {
        let kernel = format!("{entry} of {module}");
        let Some(usage) = inspected.usage.iter().find(|usage| usage.entry == *entry) else {
            // PTX has no usage before the GPU's driver compiles it.
            if !inspected.ptx {
                outcome.problems.push(problem(kernel, "declared, but not in the compiled module".into()));
            }
            continue;
        };
        let dynamic_shared = item.dynamic_shared.get(*entry).copied().unwrap_or(0);
        let (shared, limit) = (usage.static_shared.saturating_add(dynamic_shared), arch.shared_per_block());
        let spills = usage.spill_stores + usage.spill_loads;
        if spills > 0 {
            let text = format!(
                "spills: {} bytes stored, {} loaded with {} registers",
                usage.spill_stores, usage.spill_loads, usage.registers
            );
            outcome.problems.push(problem(kernel.clone(), text));
        }
        if shared > limit {
            let text = format!(
                "{shared} bytes of shared memory ({} static, {dynamic_shared} dynamic), a block has {limit}",
                usage.static_shared
            );
            outcome.problems.push(problem(kernel, text));
        }
        let threads = item.threads.get(*entry).copied();
        let found = inspected.loops.as_ref().filter(|_| disassembler.is_some()).and_then(|loops| loops.get(*entry));
        outcome.rows.push(Row {
            source: module.source.to_owned(),
            module: module.to_string(),
            entry: (*entry).to_owned(),
            arch: arch.to_string(),
            registers: usage.registers,
            stack: usage.stack,
            spills,
            static_shared: usage.static_shared,
            dynamic_shared,
            threads,
            occupancy: threads.map(|threads| machine::occupancy(inspected.target, usage.registers, shared, threads)),
            main_loop: found.zip(threads).map(|(counts, n)| MainLoop::new(inspected.target, *counts, n)),
        });
    }
    if let Some(folder) = out {
        let compiled = cache.compile(module, arch, nvrtc)?;
        outcome.cached &= compiled.cached;
        let file = cache::file_name(module, arch, compiled.ptx, None);
        write(folder, &file, &compiled.code)?;
        outcome.file =
            Some(Indexed { module: module.to_string(), arch: arch.to_string(), entries: module.entries, file });
    }
    Ok(outcome)
}

impl MainLoop {
    fn new(arch: Arch, counts: Loop, threads: u32) -> MainLoop {
        let (cycles, warps) = (machine::cycles(arch, &counts), u64::from(threads.div_ceil(32)));
        let (block_flops, block_bytes) = (warps * counts.flops, warps * counts.global_bytes);
        MainLoop { counts, cycles, bound: cycles.ranking()[0].0, block_flops, block_bytes }
    }
}

impl Report {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernel::Source;

    #[test]
    fn items_of_one_module_become_one() {
        // SAFETY: never compiled or launched.
        const SOURCE: Source = unsafe { Source::new("twice", "", &["forward"]) };
        let item = |n: u32| GateItem::new(Module::new(&SOURCE).define("N", n));
        let [sm_80, sm_86] = [Arch::ALL[1], Arch::ALL[2]];
        let list = [
            item(1).shared("forward", 5).threads("forward", 64).only(sm_80),
            item(2),
            item(1).shared("forward", 3).shared("backward", 4).threads("forward", 128).only(sm_86).only(sm_80),
            item(2).only(sm_80),
        ];
        let merged = merge(&list);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].dynamic_shared, BTreeMap::from([("backward".into(), 4), ("forward".into(), 5)]));
        assert_eq!(merged[0].threads, BTreeMap::from([("forward".into(), 128)]));
        assert_eq!(merged[0].archs, [sm_80, sm_86]);
        assert!(merged[1].archs.is_empty() && merged[1].wants(sm_86) && !merged[0].wants(Arch::ALL[0]));
    }
}
