//! A driver that runs nothing and notes what would be compiled and launched: how the kernel gate learns every
//! specialisation that the launch code asks for on an architecture.

use super::driver::{Captured, Driver, Event, Function, Launch, Matmul, Properties};
use super::kernel::Module;
use crate::error::Result;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was asked for so far.
pub struct Recorder {
    properties: Properties,
    functions: Mutex<Vec<(Module, String)>>,
    /// Threads and bytes of dynamic shared memory, the most of each.
    launched: Mutex<BTreeMap<(Module, String), (u32, u32)>>,
    next: AtomicU64,
}

impl Recorder {
    /// A recorder that claims these properties.
    pub fn new(sm: u32, shared_per_block: u32) -> Self {
        let properties = Properties { name: format!("recorder (sm_{sm})"), sm, multiprocessors: 132, shared_per_block };
        // Addresses that no dereference survives; nothing dereferences them.
        Recorder { properties, functions: Mutex::default(), launched: Mutex::default(), next: AtomicU64::new(1 << 40) }
    }

    /// Every entry launched, with the most threads and dynamic shared memory that one of its launches wanted.
    pub fn launches(&self) -> Vec<(Module, String, u32, u32)> {
        self.launched.lock().unwrap().iter().map(|((m, e), &(t, s))| (m.clone(), e.clone(), t, s)).collect()
    }
}

impl Driver for Recorder {
    fn properties(&self) -> &Properties {
        &self.properties
    }
    fn alloc(&self, bytes: usize) -> Result<u64> {
        Ok(self.next.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed))
    }
    unsafe fn free(&self, _: u64, _: usize) {}
    unsafe fn fill(&self, _: u64, _: u8, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    unsafe fn download(&self, _: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0);
        Ok(())
    }
    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    fn function(&self, module: &Module, entry: &str) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap();
        functions.push((module.clone(), entry.into()));
        Ok(Function(functions.len() - 1))
    }
    unsafe fn launch(&self, function: Function, launch: Launch, _: &[&[u8]]) -> Result<()> {
        let entry = self.functions.lock().unwrap()[function.0].clone();
        let mut launched = self.launched.lock().unwrap();
        let (threads, shared) = launched.entry(entry).or_default();
        *threads = launch.block.iter().product::<u32>().max(*threads);
        *shared = launch.shared.max(*shared);
        Ok(())
    }
    unsafe fn launch_cooperative(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.launch(function, launch, arguments) }
    }
    fn cooperative_blocks(&self, _: Function, _: Launch) -> Result<u32> {
        Ok(self.properties.multiprocessors)
    }
    unsafe fn matmul(&self, _: &Matmul) -> Result<bool> {
        Ok(false)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn record(&self) -> Result<Event> {
        Ok(Event(0))
    }
    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f64> {
        Ok(0.0)
    }
    fn begin_capture(&self) -> Result<bool> {
        Ok(false)
    }
    fn end_capture(&self) -> Result<Captured> {
        Ok(Captured(0))
    }
    fn replay(&self, _: Captured) -> Result<()> {
        Ok(())
    }
    fn memory(&self) -> Result<(usize, usize)> {
        Ok((usize::MAX, usize::MAX))
    }
}
