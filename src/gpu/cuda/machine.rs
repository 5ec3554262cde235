//! What a multiprocessor of each architecture holds and does in a cycle: how many blocks of a kernel fit, and which of
//! its units a loop keeps busy longest.
//!
//! Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" (what it holds) and
//! "Arithmetic Instructions" (f32 and special functions); the whitepapers of A100, GA102, H100, AD102 and Blackwell
//! (tensor cores). GeForce boards of 8.6, 8.9 and 12.0 do half the products given here when they accumulate in f32.
//! No figure is measured: these are ceilings, for a loop whose loads never wait and never meet bank conflicts.

use serde::{Deserialize, Serialize};

use super::arch::Arch;
use super::sass::Loop;

/// Registers of a multiprocessor: the same on all of them.
const REGISTERS: u32 = 65536;
/// Schedulers of a multiprocessor, each with its own quarter of the registers; each issues one instruction a cycle.
const SCHEDULERS: u32 = 4;
/// Special functions (exp2, reciprocal) a cycle.
const SPECIAL: f64 = 16.0;
/// Bytes of shared memory a cycle: 32 banks of 4.
const SHARED_BYTES: f64 = 128.0;

/// One architecture's multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    threads: u32,
    blocks: u32,
    /// KiB of shared memory.
    shared: u32,
    /// Multiply-adds in f32 a cycle.
    ffma: f64,
    /// Multiply-adds of 16-bit numbers a cycle by HMMA, dense.
    hmma: f64,
    /// The same by HGMMA; 0 where there is none.
    hgmma: f64,
}

#[rustfmt::skip]
fn machine(arch: Arch) -> Machine {
    //                             threads     blocks      shared       ffma         hmma           hgmma
    let row = |threads, blocks, shared, ffma, hmma, hgmma| Machine { threads, blocks, shared, ffma, hmma, hgmma };
    match arch.sm {
        ..=79    => row(1024, 16,  64,  64.0,  512.0,    0.0),
        80..=85  => row(2048, 32, 164,  64.0, 1024.0,    0.0),
        87       => row(1536, 16, 164, 128.0,  512.0,    0.0),
        86 | 88  => row(1536, 16, 100, 128.0,  512.0,    0.0),
        89       => row(1536, 24, 100, 128.0,  512.0,    0.0),
        // HMMA reaches some 62 % of HGMMA there (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU", 2024).
        90..=99  => row(2048, 32, 228, 128.0, 1270.0, 2048.0),
        // What HMMA reaches beside tcgen05 is not published: A100's rate stands in.
        100..=119 => row(2048, 32, 228, 128.0, 1024.0,   0.0),
        _        => row(1536, 24, 100, 128.0,  512.0,    0.0),
    }
}

/// How many blocks of a kernel a multiprocessor holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Blocks; 0: not even one fits.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// The warps that a multiprocessor can hold.
    pub most_warps: u32,
    /// What runs out first.
    pub limit: &'static str,
}

/// How many blocks fit that take these registers a thread, bytes of shared memory and threads.
pub fn occupancy(arch: Arch, registers: u32, shared: u32, threads: u32) -> Occupancy {
    let m = machine(arch);
    let warps = threads.div_ceil(32).max(1);
    // A warp gets its registers in pieces of 256, from its scheduler's quarter.
    let warp_registers = (registers.max(1) * 32).next_multiple_of(256);
    let by_registers = match warp_registers * warps.next_multiple_of(SCHEDULERS) {
        ..=REGISTERS => REGISTERS / SCHEDULERS / warp_registers * SCHEDULERS / warps,
        _ => 0,
    };
    // From 8.0 on the system takes 1 KiB a block.
    let (reserved, piece) = if arch.sm >= 80 { (1024, 128) } else { (0, 256) };
    let by_shared = match (shared + reserved).next_multiple_of(piece) {
        0 => u32::MAX,
        bytes => m.shared * 1024 / bytes,
    };
    let limits = [
        (m.threads / (warps * 32), "threads"),
        (by_registers, "registers"),
        (by_shared, "shared memory"),
        (m.blocks, "blocks"),
    ];
    let (blocks, limit) = limits.into_iter().min_by_key(|l| l.0).expect("four of them");
    Occupancy { blocks, warps: blocks * warps, most_warps: m.threads / 32, limit }
}

/// The cycles of a multiprocessor that one warp's pass through a loop takes from each unit, were it alone the limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cycles {
    /// The schedulers: one instruction each a cycle.
    pub issue: f64,
    /// The tensor cores.
    pub tensor: f64,
    /// The f32 units: FFMA, FADD, FMUL.
    pub f32: f64,
    /// Special functions.
    pub mufu: f64,
    /// Shared memory, every lane at another address; what HGMMA reads there by itself is not in it.
    pub shared: f64,
}

/// What one pass through this loop takes.
pub fn cycles(arch: Arch, l: &Loop) -> Cycles {
    let m = machine(arch);
    // A loop has one kind of them or the other.
    let rate = if l.hgmma > 0 && m.hgmma > 0.0 { m.hgmma } else { m.hmma };
    Cycles {
        issue: f64::from(l.instructions) / f64::from(SCHEDULERS),
        tensor: l.tensor_fmas as f64 / rate,
        f32: f64::from(l.ffma + l.fadd_fmul) * 32.0 / m.ffma,
        mufu: f64::from(l.mufu) * 32.0 / SPECIAL,
        shared: l.shared_bytes as f64 / SHARED_BYTES,
    }
}

impl Cycles {
    /// The units by the cycles they take, the longest first: that one bounds the loop.
    pub fn ranking(&self) -> [(&'static str, f64); 5] {
        let Cycles { issue, tensor, f32, mufu, shared } = *self;
        let mut list = [("tensor", tensor), ("shared", shared), ("f32", f32), ("mufu", mufu), ("issue", issue)];
        list.sort_by(|a, b| b.1.total_cmp(&a.1));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(name: &str) -> Arch {
        name.parse().unwrap()
    }

    #[test]
    fn blocks_that_fit() {
        // As NVIDIA's occupancy calculator has them.
        let found = |name: &str, registers, shared, threads| {
            let o = occupancy(arch(name), registers, shared, threads);
            (o.blocks, o.warps, o.limit)
        };
        assert_eq!(found("80", 32, 0, 256), (8, 64, "threads"));
        assert_eq!(found("80", 33, 0, 256), (6, 48, "registers"));
        assert_eq!(found("80", 255, 0, 128), (2, 8, "registers"));
        assert_eq!(found("80", 168, 0, 384), (1, 12, "registers"));
        assert_eq!(found("80", 128, 0, 1024), (0, 0, "registers"));
        assert_eq!(found("86", 40, 48 << 10, 128), (2, 8, "shared memory"));
        assert_eq!(found("90", 64, 113 << 10, 128), (2, 8, "shared memory"));
        assert_eq!(found("90", 64, 114 << 10, 128), (1, 4, "shared memory"));
        assert_eq!(found("75", 16, 32 << 10, 64), (2, 4, "shared memory"));
        assert_eq!(found("80", 16, 0, 32), (32, 32, "blocks"));
        assert_eq!(found("120", 16, 0, 256), (6, 48, "threads"));
        assert_eq!(occupancy(arch("90"), 16, 0, 256).most_warps, 64);
    }

    #[test]
    fn tables_agree_on_shared_memory() {
        // A block may have all of it but the KiB that the system takes.
        for a in Arch::ALL {
            let reserved = if a.sm >= 80 { 1 } else { 0 };
            assert_eq!(machine(a).shared - reserved, a.shared_per_block() / 1024, "{a}");
        }
    }

    #[test]
    fn the_slowest_unit_is_named() {
        // FlashAttention's shape on an A100, a warp's 16 × 64 scores at head size 64: 2·16·64·64 multiply-adds in 64
        // products, 32 exponentials a lane, 32 ldmatrix of 512 bytes.
        let tile = Loop {
            instructions: 400,
            hmma: 64,
            tensor_fmas: 64 * 2048,
            mufu: 32,
            ffma: 32,
            shared_bytes: 32 * 512,
            ..Loop::default()
        };
        let on = cycles(arch("80"), &tile);
        assert_eq!(on, Cycles { issue: 100.0, tensor: 128.0, f32: 16.0, mufu: 64.0, shared: 128.0 });
        assert_eq!(on.ranking()[0], ("tensor", 128.0));
        assert_eq!(cycles(arch("86"), &tile).ranking()[0], ("tensor", 256.0));
        assert_eq!(cycles(arch("90"), &tile).ranking()[0], ("shared", 128.0));
        let warpgroup = Loop { hgmma: 8, hmma: 0, ..tile };
        assert_eq!(cycles(arch("90"), &warpgroup).tensor, 64.0);
    }
}
