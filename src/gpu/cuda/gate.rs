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
use super::nvrtc::Nvrtc;
use crate::error::{Error, Result};
use crate::gpu::kernel::Module;

/// A module that is launched somewhere, and what its launches ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateItem {
    /// What is compiled.
    pub module: Module,
    /// The most dynamic shared memory, in bytes, that any launch of an entry asks for; none where not named.
    pub dynamic_shared: BTreeMap<String, u32>,
    /// The architectures that launch it; empty for all.
    pub archs: Vec<Arch>,
}

impl GateItem {
    /// A module for all architectures, without dynamic shared memory.
    pub fn new(module: Module) -> Self {
        GateItem { module, dynamic_shared: BTreeMap::new(), archs: Vec::new() }
    }

    /// A launch of `entry` asks for this much dynamic shared memory.
    pub fn shared(mut self, entry: &str, bytes: u32) -> Self {
        let most = self.dynamic_shared.entry(entry.to_owned()).or_default();
        *most = bytes.max(*most);
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

/// One entry of one module on one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
/// `ATTN_KERNELS`. What is wrong with a kernel goes into the report; an error means that the gate could not run.
/// `progress` is called with what is done and the total.
pub fn build(
    items: &[GateItem],
    archs: &[Arch],
    out: Option<&Path>,
    jobs: usize,
    cache: &Cache,
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
                    let outcome = compile_one(item, arch, out, cache, nvrtc);
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
                for (entry, bytes) in &item.dynamic_shared {
                    let most = known.dynamic_shared.entry(entry.clone()).or_default();
                    *most = (*bytes).max(*most);
                }
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

fn compile_one(item: &GateItem, arch: Arch, out: Option<&Path>, cache: &Cache, nvrtc: &Nvrtc) -> Result<Outcome> {
    let module = &item.module;
    let mut outcome = Outcome::default();
    let problem = |kernel: String, problem: String| Problem { kernel, arch: arch.to_string(), problem };
    let inspected = match cache.inspect(module, arch, nvrtc) {
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

impl Report {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    /// A line for each entry with the most that any of its specialisations takes, then what is wrong.
    pub fn table(&self) -> String {
        let mut kernels: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            kernels.entry((&row.source, &row.entry)).or_default().push(row);
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let header = ["kernel", "entry", "modules"].into_iter().chain(self.archs.iter().map(String::as_str));
        table.set_header(header);
        for ((source, entry), rows) in kernels {
            let modules: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.module.as_str()).collect();
            let mut cells = vec![source.to_owned(), entry.to_owned(), modules.len().to_string()];
            cells.extend(self.archs.iter().map(|arch| {
                let of: Vec<&Row> = rows.iter().copied().filter(|row| row.arch == *arch).collect();
                let most = |value: fn(&Row) -> u32| of.iter().map(|row| value(row)).max().unwrap_or(0);
                let shared = most(|row| row.static_shared + row.dynamic_shared);
                match (of.is_empty(), most(|row| row.spills)) {
                    (true, _) => "-".into(),
                    (_, 0) => format!("{}r {}", most(|row| row.registers), kib(shared)),
                    (_, spills) => format!("{}r {} SPILLS {spills}", most(|row| row.registers), kib(shared)),
                }
            }));
            table.add_row(cells);
        }
        let mut text = format!("{}\n", table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
        text.push_str("(r: registers a thread; then shared memory a block; the most of all modules)\n");
        for (name, list) in [("warning", &self.warnings), ("FAILED", &self.problems)] {
            // The same on several architectures is said once.
            let mut said: Vec<(&Problem, Vec<&str>)> = Vec::new();
            for item in list {
                match said.iter_mut().find(|(p, _)| (&p.kernel, &p.problem) == (&item.kernel, &item.problem)) {
                    Some((_, archs)) => archs.push(&item.arch),
                    None => said.push((item, vec![&item.arch])),
                }
            }
            for (Problem { kernel, problem, .. }, archs) in said {
                text.push_str(&format!("{name}: {kernel} for {}: {problem}\n", archs.join(", ")));
            }
        }
        let verdict = if self.passed() { "passed".into() } else { format!("{} problems", self.problems.len()) };
        text.push_str(&format!(
            "{} compilations with NVRTC {} ({} from the cache, {} to PTX) in {:.1} s: {verdict}\n",
            self.compilations, self.nvrtc, self.cached, self.ptx, self.seconds
        ));
        text
    }
}

/// Shared memory, short.
fn kib(bytes: u32) -> String {
    match bytes {
        0 => "0".into(),
        1..1024 => format!("{bytes}B"),
        _ => format!("{:.1}K", f64::from(bytes) / 1024.0),
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
            item(1).shared("forward", 5).only(sm_80),
            item(2),
            item(1).shared("forward", 3).shared("backward", 4).only(sm_86).only(sm_80),
            item(2).only(sm_80),
        ];
        let merged = merge(&list);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].dynamic_shared, BTreeMap::from([("backward".into(), 4), ("forward".into(), 5)]));
        assert_eq!(merged[0].archs, [sm_80, sm_86]);
        assert!(merged[1].archs.is_empty() && merged[1].wants(sm_86) && !merged[0].wants(Arch::ALL[0]));
    }
}
