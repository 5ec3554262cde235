//! The narrow waist between ops and whatever executes kernels: cudarc on a GPU, or the emulator on a CPU.

use super::kernel::Module;
use crate::error::Result;
use crate::precision::Precision;

/// A compiled entry point, valid for the driver that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function(pub usize);

/// A point in the device's stream of work, for timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(pub usize);

/// A captured sequence of launches that can be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured(pub usize);

/// Grid, block and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z. y and z at most 65,535.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
}

/// What a kernel may count on.
#[derive(Debug, Clone, PartialEq)]
pub struct Properties {
    /// Such as `NVIDIA H200` or `emulator (g++ 12.2)`.
    pub name: String,
    /// Compute capability times ten: 90 for Hopper. The emulator takes the code paths of 80.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory a block may ask for.
    pub shared_per_block: u32,
}

/// A row-major product C ← op(A)·op(B) + β·C, summed in f32.
/// Addresses and leading dimensions as in BLAS, but row-major: op(A) is m×k, op(B) k×n, C m×n.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matmul {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Inner length.
    pub k: usize,
    /// Address of A.
    pub a: u64,
    /// Elements from one row of A to the next.
    pub lda: usize,
    /// Whether op(A) is the transpose of what is stored.
    pub transpose_a: bool,
    /// Address of B.
    pub b: u64,
    /// Elements from one row of B to the next.
    pub ldb: usize,
    /// Whether op(B) is the transpose of what is stored.
    pub transpose_b: bool,
    /// Address of C.
    pub c: u64,
    /// Elements from one row of C to the next.
    pub ldc: usize,
    /// β: 0 overwrites (C may hold NaN), 1 accumulates.
    pub beta: f32,
    /// In what A and B are stored: f32, f16 or bf16.
    pub factors: Precision,
    /// In what C is stored: as the factors, or f32.
    pub product: Precision,
}

/// Executes kernels and owns device memory. Addresses are plain `u64`; one driver has one stream, in order.
pub trait Driver: Send + Sync {
    /// What kernels may count on.
    fn properties(&self) -> &Properties;

    /// Allocates, 256-byte aligned. [`crate::Error::Memory`] where it does not fit.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Frees what [`Driver::alloc`] gave.
    ///
    /// # Safety
    /// `address` came from `alloc` of this driver with the same `bytes`, and nothing uses it any more.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Sets bytes, in stream order.
    ///
    /// # Safety
    /// The range lies in one allocation of this driver.
    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()>;

    /// Copies from the host, in stream order; `data` may be dropped at return.
    ///
    /// # Safety
    /// The range lies in one allocation of this driver.
    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()>;

    /// Copies to the host after all work so far.
    ///
    /// # Safety
    /// The range lies in one allocation of this driver.
    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()>;

    /// Copies within the device, in stream order.
    ///
    /// # Safety
    /// Both ranges lie in allocations of this driver and do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Compiles a module (or finds it in a cache) and returns one entry of it.
    fn function(&self, module: &Module, entry: &str) -> Result<Function>;

    /// Launches. `arguments` are the kernel's parameters as bytes, in order; their number and sizes are
    /// checked against the kernel where the driver can ask.
    ///
    /// # Safety
    /// The arguments describe live memory of this driver as the kernel's author requires ([`super::kernel::Source::new`]).
    unsafe fn launch(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()>;

    /// As [`Driver::launch`], with all blocks running at once, so that they may wait for each other (`await` in
    /// `kernels/prelude.cuh`). More blocks than [`Driver::cooperative_blocks`] are an error.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch_cooperative(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()>;

    /// How many blocks of this size, with this shared memory, can run at once; 0 where the device cannot promise it.
    /// The launch's grid does not matter.
    fn cooperative_blocks(&self, function: Function, launch: Launch) -> Result<u32>;

    /// A library's matrix product, where there is one: `Ok(false)` means that the caller must use its own kernel.
    ///
    /// # Safety
    /// The matrices lie in live memory of this driver.
    unsafe fn matmul(&self, product: &Matmul) -> Result<bool>;

    /// Waits for all work so far and reports what failed in it.
    fn synchronize(&self) -> Result<()>;

    /// Marks the present point of the stream.
    fn record(&self) -> Result<Event>;

    /// Milliseconds between two marks, after waiting for the later. Frees neither: events are pooled.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64>;

    /// Starts recording launches instead of running them. `Ok(false)`: this driver cannot capture.
    fn begin_capture(&self) -> Result<bool>;

    /// Ends recording.
    fn end_capture(&self) -> Result<Captured>;

    /// Runs what was recorded.
    fn replay(&self, captured: Captured) -> Result<()>;

    /// Bytes free and in all.
    fn memory(&self) -> Result<(usize, usize)>;
}
