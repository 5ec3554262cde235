//! The gate's report as text.

use std::collections::{BTreeMap, BTreeSet};

use super::gate::{MainLoop, Problem, Report, Row};
use super::sass::Loop;

impl Report {
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
            let modules: BTreeSet<&str> = rows.iter().map(|row| row.module.as_str()).collect();
            let mut cells = vec![source.to_owned(), entry.to_owned(), modules.len().to_string()];
            cells.extend(self.archs.iter().map(|arch| {
                let of: Vec<&Row> = rows.iter().copied().filter(|row| row.arch == *arch).collect();
                let most = |value: fn(&Row) -> u32| of.iter().map(|row| value(row)).max().unwrap_or(0);
                let shared = most(|row| row.static_shared + row.dynamic_shared);
                let fewest = of.iter().filter_map(|row| row.occupancy.map(|o| o.blocks)).min();
                let blocks = fewest.map(|n| format!(" {n}b")).unwrap_or_default();
                match (of.is_empty(), most(|row| row.spills)) {
                    (true, _) => "-".into(),
                    (_, 0) => format!("{}r {}{blocks}", most(|row| row.registers), kib(shared)),
                    (_, spills) => format!("{}r {}{blocks} SPILLS {spills}", most(|row| row.registers), kib(shared)),
                }
            }));
            table.add_row(cells);
        }
        let mut text = format!("{}\n", table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
        text.push_str(
            "(r: registers a thread; then shared memory a block; the most of all modules; b: blocks a multiprocessor\n",
        );
        text.push_str("holds, the fewest of all modules)\n");
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

    /// A line for each main loop, of every specialisation on every architecture; empty without `--sass`.
    pub fn main_loops(&self) -> String {
        let mut rows: Vec<(&Row, &MainLoop)> =
            self.rows.iter().filter_map(|row| Some((row, row.main_loop.as_ref()?))).collect();
        if rows.is_empty() {
            return String::new();
        }
        rows.sort_by_key(|(row, _)| (&row.source, &row.entry, &row.module));
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "main loop of",
            "arch",
            "threads",
            "blocks",
            "warps",
            "instr",
            "MMA",
            "MMA:rest",
            "LDSM",
            "LDS",
            "STS",
            "LDG",
            "MUFU",
            "FFMA",
            "other",
            "kFLOP",
            "KiB",
            "bound by",
            "cycles",
            "then",
        ]);
        let mut last = None;
        for (row, main) in rows {
            let Loop { instructions, hmma, hgmma, ldsm, lds, sts, ldg, mufu, ffma, fadd_fmul, other, .. } = main.counts;
            let mma = hmma + hgmma;
            let [first, second, ..] = main.cycles.ranking();
            let defines = row.module.strip_prefix(&row.source).unwrap_or_default();
            let name = format!("{}{defines}", row.entry);
            // Both are there where a main loop is.
            let known = |x: Option<String>| x.unwrap_or_default();
            table.add_row([
                if last.as_ref() == Some(&name) { String::new() } else { name.clone() },
                row.arch.clone(),
                known(row.threads.map(|n| n.to_string())),
                known(row.occupancy.map(|o| format!("{} ({})", o.blocks, o.limit))),
                known(row.occupancy.map(|o| format!("{}/{}", o.warps, o.most_warps))),
                instructions.to_string(),
                mma.to_string(),
                if mma > 0 { format!("{:.2}", f64::from(mma) / f64::from(instructions - mma)) } else { "-".into() },
                ldsm.to_string(),
                lds.to_string(),
                sts.to_string(),
                ldg.to_string(),
                mufu.to_string(),
                ffma.to_string(),
                (fadd_fmul + other).to_string(),
                format!("{:.1}", main.block_flops as f64 / 1e3),
                format!("{:.1}", main.block_bytes as f64 / 1024.0),
                first.0.into(),
                format!("{:.1}", first.1),
                format!("{} {:.1}", second.0, second.1),
            ]);
            last = Some(name);
        }
        for column in table.column_iter_mut().skip(4).take(13) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        let lines = table.to_string();
        let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
        format!("{}\n{LEGEND}", lines.join("\n"))
    }
}

/// What the columns of [`Report::main_loops`] are.
const LEGEND: &str = "\
(main loop: the smallest loop with at least nine tenths of the products on tensor cores, or of the FFMAs where there are
none, that any loop has; its instructions counted once, loops inside it too. blocks: what a multiprocessor holds, and
what runs out first; warps: of those it could hold. MMA:rest: instructions on tensor cores to all others. kFLOP, KiB:
what a block computes and loads from global memory in a pass. cycles: what a warp's pass keeps the slowest unit of the
multiprocessor busy, by published rates; then: the next. No wait and no bank conflict is in them.)
";

/// Shared memory, short.
fn kib(bytes: u32) -> String {
    match bytes {
        0 => "0".into(),
        1..1024 => format!("{bytes}B"),
        _ => format!("{:.1}K", f64::from(bytes) / 1024.0),
    }
}
