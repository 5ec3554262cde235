//! C = op(A)·op(B) + β·C by our own tiled kernel: what a GPU without cuBLASLt uses, and the emulator always. The
//! linear layer's cases exercise it in every transposition.

use crate::error::Result;
use crate::gpu::{Gpu, Launch, Matmul, Module, Source};
use crate::precision::Precision;

// SAFETY: rows and columns are compared with m, n and k before each load and store; the launch code takes those and the
// leading dimensions from the product, whose matrices lie in live places.
const SOURCE: Source = unsafe { Source::new("matmul", include_str!("../../kernels/matmul.cu"), &["matmul"]) };

/// Rows and columns of C that a block computes.
const TILE: usize = 64;

/// Launches the product.
pub fn launch(gpu: &Gpu, p: &Matmul) -> Result<()> {
    let mut module =
        Module::new(&SOURCE).define("TRANSPOSE_A", p.transpose_a as i32).define("TRANSPOSE_B", p.transpose_b as i32);
    if p.factors != Precision::F32 {
        module = module.define("STORAGE", p.factors).define("PRODUCT", p.product);
    }
    // Tiles along x, as rows may be many; y carries the columns.
    let grid = [p.m.div_ceil(TILE) as u32, p.n.div_ceil(TILE) as u32, 1];
    let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
    let sizes = [p.m, p.n, p.k].map(|x| x as i32);
    let rows = [p.lda, p.ldb, p.ldc].map(|x| x as i64);
    gpu.launch(
        &module,
        "matmul",
        launch,
        &[&sizes[0], &sizes[1], &sizes[2], &p.a, &rows[0], &p.b, &rows[1], &p.c, &rows[2], &p.beta],
    )
}
