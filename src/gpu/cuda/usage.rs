//! What ptxas says about a kernel in NVRTC's log: registers, spills, shared memory, warnings.

use serde::{Deserialize, Serialize};

/// What one entry of a module takes on one architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The entry point.
    pub entry: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread: arrays that could not be kept in registers.
    pub stack: u32,
    /// Bytes a thread that are stored because registers ran out.
    pub spill_stores: u32,
    /// Bytes a thread that are loaded because registers ran out.
    pub spill_loads: u32,
    /// Bytes of static shared memory a block.
    pub static_shared: u32,
}

/// The usage of every entry and the warnings, from the log of a compilation with `--ptxas-options=-v`.
pub(super) fn parse(log: &str) -> (Vec<Usage>, Vec<String>) {
    let (mut list, mut warnings): (Vec<Usage>, Vec<String>) = (Vec::new(), Vec::new());
    let mut warning_open = false;
    for line in log.lines() {
        let info = line.strip_prefix("ptxas info").map(|rest| rest.trim_start().trim_start_matches(':').trim());
        if let Some(name) = info.and_then(|i| i.strip_prefix("Compiling entry function '")) {
            let entry = name.split('\'').next().unwrap_or_default().to_owned();
            list.push(Usage { entry, ..Usage::default() });
        } else if let Some(usage) = list.last_mut() {
            // Functions that were not inlined report their own stack and spills: the entry pays for them too.
            if line.contains("bytes stack frame") {
                usage.stack += number_before(line, "bytes stack frame");
                usage.spill_stores += number_before(line, "bytes spill stores");
                usage.spill_loads += number_before(line, "bytes spill loads");
            } else if info.is_some_and(|i| i.starts_with("Used ")) {
                usage.registers = usage.registers.max(number_before(line, "registers"));
                usage.static_shared = usage.static_shared.max(number_before(line, "bytes smem"));
            }
        }
        // C7508 (setmaxnreg ignored) and C7517 (wgmma serialised) come as information, and cost a Hopper kernel its speed.
        let costly = line.contains("C7508") || line.contains("C7517");
        if line.contains("warning") || costly {
            warnings.push(line.trim().to_owned());
            warning_open = !line.starts_with("ptxas");
        } else if line.trim().is_empty() || line.starts_with("ptxas") {
            warning_open = false;
        } else if let (true, Some(last)) = (warning_open, warnings.last_mut()) {
            // The compiler's warnings go on with the source line and a mark below it.
            last.push('\n');
            last.push_str(line);
        }
    }
    (list, warnings)
}

/// The number before `what`: 8 in `…, 8 bytes spill stores, …`; 0 where it is not there.
fn number_before(line: &str, what: &str) -> u32 {
    let before = line.split(what).next().filter(|before| before.len() < line.len());
    before.and_then(|text| text.split_whitespace().next_back()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ptxas_prints() {
        let log = "\
k.cu(3): warning #177-D: variable \"x\" was declared but never referenced
      int x;
          ^

ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'forward' for 'sm_80'
ptxas info    : Function properties for forward
    48 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 48 bytes cumulative stack size, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : (C7517) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function 'backward' for 'sm_80'
ptxas info    : Function properties for backward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 368 bytes cmem[0]
";
        let (list, warnings) = parse(log);
        assert_eq!(list.len(), 2);
        let forward = &list[0];
        assert_eq!((forward.registers, forward.stack, forward.static_shared), (40, 48, 1024));
        assert_eq!((forward.spill_stores, forward.spill_loads), (8, 12));
        assert_eq!((list[1].entry.as_str(), list[1].registers, list[1].static_shared), ("backward", 12, 0));
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].ends_with('^') && warnings[1].contains("C7517"));
    }
}
