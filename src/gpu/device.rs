//! A device made of a [`Driver`]: what ops use to launch.

use super::arguments::Argument;
use super::driver::{Captured, Driver, Launch, Matmul, Properties};
use super::kernel::{Module, Source};
use crate::device::{Device, Precision};
use crate::error::Result;
use crate::op::{Backward, Forward, Gradient, Kind, Op, Place, Spec, Update};
use crate::ops::{matmul, narrow};
use std::sync::Arc;

/// Executes ops through their kernels: stores f32, f16 or bf16 and computes in f32.
pub struct Gpu {
    name: String,
    driver: Arc<dyn Driver>,
    precision: Precision,
}

impl Gpu {
    /// A device on this driver, called `name` (`cuda:0`, `emulator`), that stores f32.
    pub fn new(name: impl Into<String>, driver: Arc<dyn Driver>) -> Self {
        Self::storing(Precision::F32, name, driver)
    }

    /// The same with another precision.
    ///
    /// # Panics
    /// With f64, in which no kernel computes.
    pub fn storing(precision: Precision, name: impl Into<String>, driver: Arc<dyn Driver>) -> Self {
        assert!(precision != Precision::F64, "kernels compute in f32");
        Gpu { name: name.into(), driver, precision }
    }

    /// What it stores: f32, f16 or bf16. Tensors of [`crate::op::Kind::Real`] are of this type, `real` in kernels.
    pub fn storage(&self) -> Precision {
        self.precision.storage()
    }

    /// Whether attention's products of f32 tensors may be in TF32.
    pub fn tf32(&self) -> bool {
        self.precision == Precision::Tf32
    }

    /// The source specialised to what this device stores: defines STORAGE where that is not f32.
    pub fn module(&self, source: &Source) -> Module {
        let module = Module::new(source);
        if self.storage() == Precision::F32 { module } else { module.define("STORAGE", self.storage()) }
    }

    /// The driver underneath.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// What kernels may count on.
    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// Launches `entry` of `module`. An empty grid launches nothing.
    pub fn launch(&self, module: &Module, entry: &str, launch: Launch, arguments: &[&dyn Argument]) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.driver.function(module, entry)?;
        let bytes: Vec<&[u8]> = arguments.iter().map(|a| a.bytes()).collect();
        // SAFETY: the source's author vouched for every argument that launch code can pass (`Source::new`), and
        // places come from live plans.
        unsafe { self.driver.launch(function, launch, &bytes) }
    }

    /// As [`Gpu::launch`], with all blocks running at once, so that they may wait for each other. More than
    /// [`Gpu::cooperative_blocks`] are an error.
    pub fn launch_cooperative(
        &self,
        module: &Module,
        entry: &str,
        launch: Launch,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.driver.function(module, entry)?;
        let bytes: Vec<&[u8]> = arguments.iter().map(|a| a.bytes()).collect();
        // SAFETY: as for `launch`.
        unsafe { self.driver.launch_cooperative(function, launch, &bytes) }
    }

    /// How many blocks like these can run at once, whatever the grid; 0 where the device cannot promise it.
    pub fn cooperative_blocks(&self, module: &Module, entry: &str, launch: Launch) -> Result<u32> {
        self.driver.cooperative_blocks(self.driver.function(module, entry)?, launch)
    }

    /// Launches with one thread for each of `n` elements, 256 a block.
    pub fn launch_flat(&self, module: &Module, entry: &str, n: usize, arguments: &[&dyn Argument]) -> Result<()> {
        let launch = Launch { grid: [n.div_ceil(256) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        self.launch(module, entry, launch, arguments)
    }

    /// Zeroes a contiguous place.
    pub fn zero(&self, place: &Place) -> Result<()> {
        debug_assert!(crate::cpu::strided::is_contiguous(&place.shape, &place.strides));
        // SAFETY: a place lies in live memory of its plan's device.
        unsafe { self.driver.fill(place.address, 0, place.numel() * self.bytes(place.kind)) }
    }

    /// Bytes of an element.
    pub fn bytes(&self, kind: Kind) -> usize {
        if kind == Kind::Real { self.precision.bytes() } else { 4 }
    }

    /// The place of a contiguous gradient, ready for `+=`: zeroed where nothing has been written yet.
    pub fn added<'a>(&self, gradient: &'a Gradient<Place>) -> Result<&'a Place> {
        if !gradient.accumulate {
            self.zero(&gradient.to)?;
        }
        Ok(&gradient.to)
    }

    /// C ← op(A)·op(B) + β·C, by the driver's library or by our own kernel.
    pub fn matmul(&self, product: &Matmul) -> Result<()> {
        // SAFETY: addresses come from places of live plans.
        if unsafe { self.driver.matmul(product)? } { Ok(()) } else { matmul::launch(self, product) }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.driver.alloc(bytes)
    }

    // SAFETY of the forwarding below: the callers' words are the driver's conditions.
    unsafe fn free(&self, address: u64, bytes: usize) {
        unsafe { self.driver.free(address, bytes) }
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        unsafe { self.driver.fill(address, value, bytes) }
    }

    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        unsafe { self.driver.upload(address, data) }
    }

    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        unsafe { self.driver.download(address, data) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        unsafe { self.driver.copy(to, from, bytes) }
    }

    unsafe fn forward(&self, op: &dyn Op, io: &Forward<Place, Place>) -> Result<()> {
        op.forward_gpu(self, io)
    }

    unsafe fn backward(&self, op: &dyn Op, io: &Backward<Place, Place>) -> Result<()> {
        op.backward_gpu(self, io)
    }

    fn remark(&self, op: &dyn Op, inputs: &[&Spec]) -> Result<Option<String>> {
        op.remark(self, inputs)
    }

    unsafe fn narrow(&self, from: u64, to: u64, elements: usize) -> Result<()> {
        narrow::launch(self, from, to, elements)
    }

    unsafe fn update(&self, update: &dyn Update, buffers: &[Place]) -> Result<()> {
        update.update_gpu(self, buffers)
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn time_ms(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = self.driver.record()?;
        work()?;
        let end = self.driver.record()?;
        self.driver.elapsed_ms(start, end)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
        if !self.driver.begin_capture()? {
            return Ok(None);
        }
        let worked = work();
        let captured = self.driver.end_capture();
        worked?;
        Ok(Some(captured?.0))
    }

    fn replay(&self, captured: usize) -> Result<()> {
        self.driver.replay(Captured(captured))
    }
}
