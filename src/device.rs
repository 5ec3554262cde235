//! What a plan runs on.

use crate::error::Result;
use crate::op::{Backward, Forward, Op, Place, Spec, Update};
pub use crate::precision::Precision;
use std::sync::Arc;

/// Executes ops on memory of its own. Work runs in the order in which it was asked for.
pub trait Device: Send + Sync {
    /// As `--device` names it: `cpu`, `emulator`, `cuda:0`.
    fn name(&self) -> String;

    /// The precision of its floating-point tensors.
    fn precision(&self) -> Precision;

    /// Allocates, 256-byte aligned, or says how much is needed and free.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Frees.
    ///
    /// # Safety
    /// `address` came from `alloc(bytes)` of this device and nothing uses it any more.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Sets bytes.
    ///
    /// # Safety
    /// The range lies in one allocation of this device.
    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()>;

    /// Copies from the host.
    ///
    /// # Safety
    /// The range lies in one allocation of this device.
    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()>;

    /// Copies to the host, after all work so far.
    ///
    /// # Safety
    /// The range lies in one allocation of this device.
    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges lie in allocations of this device and do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Runs an op forward.
    ///
    /// # Safety
    /// The places lie in memory of this device, as the op's contract describes, and what is written overlaps nothing else.
    unsafe fn forward(&self, op: &dyn Op, io: &Forward<Place, Place>) -> Result<()>;

    /// Runs an op backward.
    ///
    /// # Safety
    /// As for [`Device::forward`].
    unsafe fn backward(&self, op: &dyn Op, io: &Backward<Place, Place>) -> Result<()>;

    /// What users should know of how an op runs here.
    fn remark(&self, op: &dyn Op, inputs: &[&Spec]) -> Result<Option<String>> {
        let _ = (op, inputs);
        Ok(None)
    }

    /// Rounds contiguous [`crate::op::Kind::Full`] elements to what the device stores.
    ///
    /// # Safety
    /// Both ranges lie in allocations of this device, hold this many elements and do not overlap.
    unsafe fn narrow(&self, from: u64, to: u64, elements: usize) -> Result<()> {
        let _ = (from, to, elements);
        unreachable!("this device stores what it computes")
    }

    /// Runs an update.
    ///
    /// # Safety
    /// The places lie in memory of this device and do not overlap.
    unsafe fn update(&self, update: &dyn Update, buffers: &[Place]) -> Result<()>;

    /// Calls `work` where this device's ops run best: on the CPU, inside its thread pool.
    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Waits for all work so far and reports what failed in it.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Milliseconds that `work` takes on the device, waiting for its end.
    fn time_ms(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.synchronize()?;
        let start = std::time::Instant::now();
        work()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Records what `work` launches, so that it can be replayed. `None`: not here; `work` has not been called.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
        let _ = work;
        Ok(None)
    }

    /// Runs what was captured.
    fn replay(&self, captured: usize) -> Result<()> {
        let _ = captured;
        unreachable!("this device captures nothing")
    }
}

/// One allocation, freed when dropped.
pub struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Allocates.
    pub fn new(device: Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(256);
        let address = device.alloc(bytes)?;
        Ok(Memory { device, address, bytes })
    }
    /// Its first byte's address.
    pub fn address(&self) -> u64 {
        self.address
    }
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by this device with this size; the plan that used it is gone with it.
        unsafe { self.device.free(self.address, self.bytes) }
    }
}
