//! Which tiles the kernels of softmax attention work in, and why.
//!
//! Tensor cores (sm_80 and later, head sizes to 256; `kernels/tiles_mma.cuh`): a block owns M = 16·groups·warps rows,
//! which stay in shared memory, and meets N at a time. What bounds the choice:
//! - registers, 255 a thread: a warp's sums take 4·groups numbers a thread for each 8 columns of a head, its scores as
//!   many for each 8 of N. Two groups a warp halve what each product reads from shared memory;
//! - shared memory, 99 KB a block on sm_86, 89 and 120: forward holds M + N rows of keys and N of values, backward
//!   M + N of both; a row is padded to a multiple of 16 numbers plus 16 bytes.
//!
//! Ordinary arithmetic (`kernels/tiles_f32.cuh`): 64×64 tiles, heads of any size in slices of at most 128 columns.

use crate::gpu::{Gpu, Module};

/// Tiles of one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// Groups of 16 rows that a warp owns; 0: ordinary arithmetic.
    groups: usize,
    warps: usize,
    n: usize,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Tile {
    /// M: rows that a block owns.
    pub fn rows(&self) -> usize {
        if self.groups == 0 { 64 } else { 16 * self.groups * self.warps }
    }
    /// N: rows that it meets at a time.
    pub fn columns(&self) -> usize {
        self.n
    }
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        32 * self.warps as u32
    }
    fn define(&self) -> String {
        format!("{},{},{}", self.groups, self.warps, self.n)
    }
}

/// Tiles of all kernels for a pair of head sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    pub forward: Tile,
    pub dq: Tile,
    pub dkdv: Tile,
    /// dkdv where it sums dq too.
    pub unordered: Tile,
    /// 2 where dk and dv are summed by blocks of their own, as registers do not hold both.
    pub parts: usize,
    columns: (usize, usize),
    tensor: bool,
}

/// The largest head size of the tensor cores' kernels.
const LARGEST: usize = 256;
/// Shared memory of a block on sm_86, the least of those that have tensor cores for these kernels.
const SHARED: u32 = 101_376;

impl Tiles {
    /// For these head sizes on this device.
    pub fn of(gpu: &Gpu, (key_dim, value_dim): (usize, usize), positive_scale: bool, features: bool) -> Tiles {
        let wanted = gpu.storage().bytes() == 2 || gpu.tf32();
        let tensor = wanted && gpu.properties().sm >= 80 && key_dim.max(value_dim) <= LARGEST && positive_scale;
        if tensor {
            Self::tensor(gpu.storage().bytes(), (key_dim, value_dim), features)
        } else {
            Self::ordinary(key_dim, value_dim)
        }
    }

    fn tensor(bytes: usize, (key_dim, value_dim): (usize, usize), features: bool) -> Tiles {
        let columns = (key_dim.next_multiple_of(16), value_dim.next_multiple_of(16));
        // Groups, warps, N of forward, dq and dkdv. What features need beside the products takes registers from N.
        let (forward, dq, dkdv) = match (bytes, columns.0.max(columns.1), features) {
            (_, ..=64, false) => ([2, 4, 64], [1, 4, 64], [1, 4, 64]),
            (2, ..=64, true) => ([2, 4, 32], [1, 4, 64], [1, 4, 64]),
            (_, ..=64, true) => ([2, 4, 32], [1, 4, 32], [1, 4, 32]),
            (2, ..=128, false) => ([2, 4, 32], [1, 4, 64], [1, 4, 32]),
            (_, ..=128, _) => ([1, 4, 64], [1, 4, 32], [1, 4, 32]),
            // M + 2N = 192 rows of 512 + 16 bytes are all that sm_86 has: 101,376 bytes.
            (2, _, false) => ([1, 4, 64], [1, 4, 32], [1, 4, 32]),
            (2, _, true) => ([1, 4, 32], [1, 4, 32], [1, 4, 16]),
            (_, _, _) => ([1, 2, 32], [1, 2, 16], [1, 2, 16]),
        };
        let row = |columns: usize| columns * bytes + 16;
        let (key, value) = (row(columns.0), row(columns.1));
        let tile = |[groups, warps, n]: [usize; 3], shared: &dyn Fn(usize, usize) -> usize| {
            let m = 16 * groups * warps;
            Tile { groups, warps, n, shared: shared(m, n) as u32 }
        };
        let backward = |m, n| (m + n) * (key + value);
        // Besides, M rows of N weights, in which the warps hand over what they have for dq.
        let one_pass = |m, n| backward(m, n) + m * row(n);
        let of_one_pass = |[groups, warps, n]: [usize; 3]| tile([groups, warps, n], &one_pass);
        // What is summed for dq takes registers, of N or of the warps: with more, sm_100a and sm_120 spill.
        let widest = match (bytes, columns.0.max(columns.1)) {
            (2, ..=64) => dkdv,
            (2, _) => [1, 4, 16],
            (_, ..=64) => [1, 4, 32],
            (_, _) => [1, 2, 16],
        };
        let unordered = [widest, [1, 2, 16], [1, 1, 16]].into_iter().map(of_one_pass).find(|t| t.shared <= SHARED);
        let parts = if columns.0.max(columns.1) > 128 { 2 } else { 1 };
        let forward = tile(forward, &|m, n| (m + n) * key + n * value);
        let (dq, dkdv) = (tile(dq, &backward), tile(dkdv, &backward));
        let unordered = unordered.expect("32 rows of at most 256 numbers fit");
        Tiles { forward, dq, dkdv, unordered, parts, columns, tensor: true }
    }

    fn ordinary(key_dim: usize, value_dim: usize) -> Tiles {
        let slice = |columns: usize| [16, 32, 64].into_iter().find(|&s| columns <= s).unwrap_or(128);
        let slice = slice(key_dim.max(value_dim));
        // Two pieces of 64 rows of 32 + 4 columns (a tile of weights overlays them), and 64 rows of a slice.
        let shared = 4 * (2 * 64 * 36 + 64 * slice) as u32;
        let tile = Tile { groups: 0, warps: 8, n: 64, shared };
        Tiles { forward: tile, dq: tile, dkdv: tile, unordered: tile, parts: 1, columns: (slice, slice), tensor: false }
    }

    /// Blocks among which the columns of what is written are split.
    pub fn slices(&self, columns: usize) -> usize {
        if self.tensor { 1 } else { columns.div_ceil(self.columns.0) }
    }

    /// Forward's module of these tiles.
    pub fn forward_module(&self, module: Module) -> Module {
        let module = self.module(module);
        if self.tensor { module.define("FORWARD", self.forward.define()) } else { module }
    }

    /// Backward's: in two kernels, or `unordered` in one.
    pub fn backward_module(&self, module: Module, unordered: bool) -> Module {
        let module = self.module(module).define("PARTS", self.parts).define("UNORDERED", unordered as u8);
        let dkdv = if unordered { &self.unordered } else { &self.dkdv };
        if self.tensor { module.define("DQ", self.dq.define()).define("DKDV", dkdv.define()) } else { module }
    }

    fn module(&self, module: Module) -> Module {
        let module = module.define("KEY_COLUMNS", self.columns.0).define("VALUE_COLUMNS", self.columns.1);
        module.define("TENSOR_CORES", self.tensor as u8)
    }
}
