//! What a kernel's machine code (SASS) says about its main loop, read from nvdisasm's listing of a cubin.
//!
//! A loop is a natural loop: a branch back to a label, with every instruction from which that branch can be reached
//! without passing the label; branches to one label make one loop. Loops inside it are part of it, their instructions
//! counted once, as unrolled ones are as often as they stand there. The main loop holds the tensor-core products,
//! where there are none the FFMAs: of the loops with at least nine tenths of the most of them, the smallest, so that
//! a loop around it (over heads, say) is not taken for it. Without either it is the loop of most instructions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// Changes whenever this file counts differently, so that nothing counted before is taken from the cache.
pub(super) const ANALYSIS: u32 = 2;

/// The instructions of a loop, each counted once, as one warp executes them in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loop {
    /// All of them.
    pub instructions: u32,
    /// Tensor-core products of a warp.
    pub hmma: u32,
    /// Tensor-core products of a warpgroup (wgmma).
    pub hgmma: u32,
    /// Loads of matrices from shared memory (ldmatrix), and stores of them.
    pub ldsm: u32,
    /// Loads from shared memory.
    pub lds: u32,
    /// Stores to shared memory.
    pub sts: u32,
    /// Loads from global memory, asynchronous copies to shared memory (LDGSTS) among them.
    pub ldg: u32,
    /// exp2, reciprocals and the like.
    pub mufu: u32,
    /// Multiply-adds in f32.
    pub ffma: u32,
    /// Additions and products in f32.
    pub fadd_fmul: u32,
    /// All that is not above: addresses, comparisons, conversions, shuffles, barriers, branches.
    pub other: u32,
    /// Floating-point operations of a warp, of tensor cores, FFMA, FADD and FMUL.
    pub flops: u64,
    /// Multiply-adds on tensor cores, of a warp; those of TF32 count twice, as they take twice as long as 16-bit ones.
    pub tensor_fmas: u64,
    /// Bytes that a warp moves between shared memory and registers, or copies there, with all of its lanes.
    pub shared_bytes: u64,
    /// Bytes that a warp loads from global memory with all of its lanes.
    pub global_bytes: u64,
}

struct Instruction<'a> {
    /// With its suffixes: `HMMA.16816.F32.BF16`.
    name: &'a str,
    /// Whether control may go on behind it.
    goes_on: bool,
    /// Whether it is there for its place alone, and does nothing.
    never: bool,
    target: Option<&'a str>,
}

/// A function of the listing: its instructions, and which of them each label names.
#[derive(Default)]
struct Function<'a> {
    instructions: Vec<Instruction<'a>>,
    labels: HashMap<&'a str, usize>,
}

/// The main loop of each entry in `nvdisasm --print-code`'s listing of a module; an entry without loops is not there.
pub fn main_loops(listing: &str) -> BTreeMap<String, Loop> {
    functions(listing).iter().filter_map(|(name, f)| Some((name.to_string(), main_loop(f)?))).collect()
}

fn functions(listing: &str) -> BTreeMap<&str, Function<'_>> {
    let mut list: BTreeMap<&str, Function> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines().map(str::trim) {
        let mut words = line.split([' ', '\t', ',']);
        if words.next() == Some(".section") {
            current = words.next().and_then(|name| name.strip_prefix(".text."));
        }
        let Some(name) = current else { continue };
        let function = list.entry(name).or_default();
        if let Some(label) = line.strip_suffix(':') {
            function.labels.insert(label, function.instructions.len());
        } else if let Some(instruction) = instruction(line) {
            function.instructions.push(instruction);
        }
    }
    list
}

/// A line such as ``/*0760*/ @!P0 BRA `(.L_x_0) ;``.
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let (address, text) = line.strip_prefix("/*")?.split_once("*/")?;
    // Lines of encodings alone start alike, with 64 bits in place of an address.
    if address.starts_with("0x") {
        return None;
    }
    let text = text.trim_start();
    let (guard, text) = match text.strip_prefix('@') {
        Some(rest) => rest.split_once(' ').map(|(guard, text)| (Some(guard), text.trim_start()))?,
        None => (None, text),
    };
    let name = text.split([' ', ';']).next().filter(|name| !name.is_empty())?;
    let operands = text[name.len()..].trim_start();
    let target = operands.split_once("`(").and_then(|(_, rest)| rest.split_once(')')).map(|(label, _)| label);
    let ends = match name.split('.').next().unwrap_or_default() {
        // One with a condition among its operands: `BRA.U !UP0, …`, `BRA.DIV UR4, …`.
        "BRA" | "JMP" => operands.starts_with("`("),
        "EXIT" | "RET" | "BRX" | "JMX" => true,
        _ => false,
    };
    let never = matches!(guard, Some("!PT" | "!UPT"));
    Some(Instruction { name, goes_on: !ends || guard.is_some_and(|g| g != "PT"), never, target })
}

impl Function<'_> {
    /// Where execution may go on after instruction `i`.
    fn successors(&self, i: usize) -> Vec<usize> {
        let Instruction { name, goes_on, target, .. } = &self.instructions[i];
        // ptxas leaves loops through calls that never return, and calls subroutines that stand behind the kernel.
        let jumps = ["BRA", "JMP", "CALL"].contains(&name.split('.').next().unwrap_or_default());
        let target = target.filter(|_| jumps).and_then(|label| self.labels.get(label).copied());
        target.into_iter().chain(goes_on.then_some(i + 1)).filter(|&to| to < self.instructions.len()).collect()
    }

    /// Every natural loop, by the instruction that it starts with.
    fn loops(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        let n = self.instructions.len();
        let mut predecessors = vec![Vec::new(); n];
        let mut backward = Vec::new();
        // Only what can be reached: behind every kernel stands a branch to itself.
        let (mut reached, mut open) = (BTreeSet::new(), vec![0]);
        while let Some(i) = open.pop() {
            if i >= n || !reached.insert(i) {
                continue;
            }
            for to in self.successors(i) {
                predecessors[to].push(i);
                open.push(to);
                if to <= i {
                    backward.push((i, to));
                }
            }
        }
        let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (from, head) in backward {
            let (mut body, mut open) = (BTreeSet::from([head]), vec![from]);
            while let Some(i) = open.pop() {
                if body.insert(i) {
                    open.extend(&predecessors[i]);
                }
            }
            // Where the start is among them, the label can be passed by: code moved behind the kernel, and no loop.
            if head == 0 || !body.contains(&0) {
                loops.entry(head).or_default().extend(body);
            }
        }
        loops
    }
}

fn main_loop(function: &Function) -> Option<Loop> {
    let count = |body: &BTreeSet<usize>| {
        body.iter().fold(Loop::default(), |mut sum, &i| {
            let Instruction { name, never, .. } = function.instructions[i];
            sum.add(if never { "NOP" } else { name });
            sum
        })
    };
    let loops: Vec<Loop> = function.loops().values().map(count).collect();
    let measures: [fn(&Loop) -> u64; 2] = [|l| l.tensor_fmas, |l| l.ffma.into()];
    for measure in measures {
        let most = loops.iter().map(measure).max()?;
        if most > 0 {
            return loops.iter().filter(|l| 10 * measure(l) >= 9 * most).min_by_key(|l| l.instructions).copied();
        }
    }
    loops.into_iter().max_by_key(|l| l.instructions)
}

impl Loop {
    fn add(&mut self, name: &str) {
        let mut parts = name.split('.');
        let base = parts.next().unwrap_or_default();
        let parts: Vec<&str> = parts.collect();
        // Bytes that a warp moves at the width in the name; 4 a lane where it has none.
        let bytes = || {
            let each = parts.iter().find_map(|&part| match part {
                "U8" | "S8" => Some(1),
                "U16" | "S16" => Some(2),
                "64" => Some(8),
                "128" => Some(16),
                _ => None,
            });
            32 * each.unwrap_or(4)
        };
        self.instructions += 1;
        match base {
            "HMMA" | "HGMMA" => {
                // `16816` is m16n8k16; `64x128x16` a warpgroup's m64n128k16, of which a warp has a quarter.
                let fmas = parts.iter().find_map(|&part| match part {
                    "16816" => Some(2048),
                    "1688" => Some(1024),
                    "1684" => Some(512),
                    _ => {
                        let sizes: Result<Vec<u64>, _> = part.split('x').map(str::parse).collect();
                        sizes.ok().filter(|s| s.len() == 3).map(|s| s.iter().product::<u64>() / 4)
                    }
                });
                let fmas = fmas.unwrap_or(0);
                *(if base == "HMMA" { &mut self.hmma } else { &mut self.hgmma }) += 1;
                self.flops += 2 * fmas;
                self.tensor_fmas += if parts.contains(&"TF32") { 2 * fmas } else { fmas };
            }
            // Matrices of 8×8 elements of 16 bits: one, two or four.
            "LDSM" | "STSM" => {
                self.ldsm += 1;
                let matrices = parts.last().and_then(|part| part.parse().ok()).filter(|n| [2, 4].contains(n));
                self.shared_bytes += 128 * matrices.unwrap_or(1);
            }
            "LDS" => {
                self.lds += 1;
                self.shared_bytes += bytes();
            }
            "STS" => {
                self.sts += 1;
                self.shared_bytes += bytes();
            }
            "LDG" | "LDGSTS" => {
                self.ldg += 1;
                self.global_bytes += bytes();
                self.shared_bytes += if base == "LDGSTS" { bytes() } else { 0 };
            }
            "MUFU" => self.mufu += 1,
            "FFMA" => {
                self.ffma += 1;
                self.flops += 64;
            }
            // Blackwell's pairs: two of each in one instruction, at the lanes of two.
            "FFMA2" => {
                self.ffma += 2;
                self.flops += 128;
            }
            "FADD" | "FMUL" => {
                self.fadd_fmul += 1;
                self.flops += 32;
            }
            "FADD2" | "FMUL2" => {
                self.fadd_fmul += 2;
                self.flops += 64;
            }
            _ => self.other += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listing of a function `f` from its lines; those without a colon get an address.
    fn listing(lines: &str) -> String {
        let line = |(i, line): (usize, &str)| match line.ends_with(':') {
            true => format!("{line}\n"),
            false => format!("        /*{i:04x}*/                   {line} ;\n"),
        };
        let lines: String = lines.lines().map(str::trim).enumerate().map(line).collect();
        format!("\t.section\t.text.f,\"ax\",@progbits\nf:\n{lines}")
    }

    fn main_of(lines: &str) -> Option<Loop> {
        main_loops(&listing(lines)).remove("f")
    }

    #[test]
    fn a_loop_on_tensor_cores_is_counted() {
        let found = main_loops(include_str!("../../../tests/sass/tiles-sm_120.txt"));
        let expected = Loop {
            instructions: 78,
            hmma: 8,
            ldsm: 8,
            ldg: 4,
            mufu: 4,
            ffma: 4,
            fadd_fmul: 4,
            // Twelve loads among them that are never executed.
            other: 46,
            flops: 4 * 2 * (2048 + 1024) + 4 * 64 + 4 * 32,
            // TF32 products take twice as long.
            tensor_fmas: 4 * (2048 + 2 * 1024),
            // ldmatrix of four and of two, and what is copied there.
            shared_bytes: 4 * (512 + 256) + 4 * 512,
            global_bytes: 4 * 512,
            ..Loop::default()
        };
        assert_eq!(found, BTreeMap::from([("tiles".to_string(), expected)]));
    }

    #[test]
    fn the_loop_over_tiles_is_found_with_all_that_is_in_it() {
        let found = main_loops(include_str!("../../../tests/sass/loops-sm_80.txt"));
        // From .L_x_274 to the branch back to it, six loops inside.
        let expected = Loop {
            instructions: 91,
            lds: 8,
            sts: 8,
            mufu: 10,
            ffma: 16,
            fadd_fmul: 10,
            other: 39,
            flops: 16 * 64 + 10 * 32,
            shared_bytes: 4 * 512 + 4 * 128 + 8 * 128,
            ..Loop::default()
        };
        assert_eq!(found, BTreeMap::from([("softmax_attention_forward".to_string(), expected)]));
    }

    #[test]
    fn of_nested_loops_the_smallest_with_nearly_all_products() {
        let inner = ".L_1:\nFFMA R1, R2, R3, R1\nFFMA R1, R2, R3, R1\n@P0 BRA `(.L_1)\n";
        let nested = |more: &str| format!(".L_0:\nMOV R1, R2\n{more}{inner}BRA.U UP0, `(.L_0)\nEXIT");
        assert_eq!(main_of(&nested("")).unwrap().instructions, 3);
        assert_eq!(main_of(&nested("FFMA R1, R2, R3, R1\n")).unwrap().instructions, 6);
        // Tensor cores go before FFMA, however many.
        let other = format!(".L_2:\nHMMA.1688.F32 R4, R8, R6, R4\n@!P1 BRA `(.L_2)\n{}", nested(""));
        let found = main_of(&other).unwrap();
        assert_eq!((found.instructions, found.hmma, found.tensor_fmas), (2, 1, 1024));
    }

    #[test]
    fn what_only_looks_like_a_loop_is_none() {
        assert_eq!(main_of("MOV R1, R2\nEXIT\n.L_0:\nBRA `(.L_0)"), None);
        // Code moved behind the kernel, which branches back to where it left.
        let moved = "BRA.DIV UR4, `(.L_1)\n.L_0:\nMOV R1, R2\nEXIT\n.L_1:\nSHFL.IDX P0, R1, R2, R3, R4\nBRA `(.L_0)";
        assert_eq!(main_of(moved), None);
        // A label that is no jump's, and a function without a line.
        assert_eq!(main_of(".L_0:\nBSSY B0, `(.L_0)\nEXIT"), None);
        assert!(main_loops("\t.section\t.text.f\n").is_empty() && main_loops("").is_empty());
    }

    #[test]
    fn code_moved_out_of_a_loop_belongs_to_it() {
        let lines = "MOV R0, R1\n.L_0:\nLDG.E.64 R2, [R4.64]\n@P1 BRA `(.L_2)\n.L_1:\nSTS.U16 [R3], R2\n@P0 BRA `(.L_0)\n\
                     EXIT\n.L_2:\nMUFU.EX2 R2, R2\nBRA `(.L_1)";
        let found = main_of(lines).unwrap();
        assert_eq!((found.instructions, found.mufu, found.other), (6, 1, 3));
        assert_eq!((found.global_bytes, found.shared_bytes), (256, 64));
    }

    #[test]
    fn products_of_a_warpgroup_and_pairs_of_f32() {
        let lines = ".L_0:\nHGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24\nFFMA2 R4, R6, R8, R4\n@P0 BRA `(.L_0)\nEXIT";
        let found = main_of(lines).unwrap();
        assert_eq!((found.hgmma, found.tensor_fmas, found.ffma), (1, 64 * 128 * 16 / 4, 2));
        assert_eq!(found.flops, 2 * 64 * 128 * 16 / 4 + 128);
    }
}
