//! A driver that executes nothing and notes what would be compiled and launched: run the ops once on it, and it
//! gives the list for the kernel gate.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::arch::Arch;
use super::gate::GateItem;
use crate::error::{Error, Result};
use crate::gpu::driver::{Captured, Driver, Event, Function, Launch, Matmul, Properties};
use crate::gpu::kernel::Module;

/// Pretends to be a GPU of one architecture. Downloads give zeros; matrix products are left to own kernels.
pub struct Recorder {
    arch: Arch,
    properties: Properties,
    next: AtomicU64,
    seen: Mutex<Vec<(Module, String, u32)>>,
}

impl Recorder {
    /// A GPU of this architecture with its shared memory and the multiprocessors of a large one.
    pub fn new(arch: Arch) -> Self {
        let properties = Properties {
            name: format!("a GPU of {arch}"),
            sm: arch.sm,
            multiprocessors: 132,
            shared_per_block: arch.shared_per_block(),
        };
        Recorder { arch, properties, next: AtomicU64::new(1 << 40), seen: Mutex::default() }
    }

    /// What was asked for, for this architecture. [`super::gate::build`] merges the items of several recorders.
    pub fn items(&self) -> Vec<GateItem> {
        let seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let item = |(module, entry, shared): &(Module, String, u32)| {
            GateItem::new(module.clone()).only(self.arch).shared(entry, *shared)
        };
        seen.iter().map(item).collect()
    }
}

impl Driver for Recorder {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        Ok(self.next.fetch_add((bytes as u64).next_multiple_of(256).max(256), Ordering::Relaxed))
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
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = seen.iter().position(|(m, e, _)| e == entry && m == module);
        Ok(Function(known.unwrap_or_else(|| {
            seen.push((module.clone(), entry.to_owned(), 0));
            seen.len() - 1
        })))
    }

    unsafe fn launch(&self, function: Function, launch: Launch, _: &[&[u8]]) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((_, _, shared)) = seen.get_mut(function.0) else {
            return Err(Error::kernel(format!("number {}", function.0), "not a function of this device"));
        };
        *shared = launch.shared.max(*shared);
        Ok(())
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
        Err(Error::device(&self.properties.name, "captures nothing", "use a device that executes"))
    }

    fn replay(&self, _: Captured) -> Result<()> {
        self.end_capture().map(drop)
    }

    fn memory(&self) -> Result<(usize, usize)> {
        // As much as an H200 has: no plan fails for the pretended device's sake.
        Ok((139 << 30, 139 << 30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernel::Source;

    #[test]
    fn notes_modules_entries_and_the_most_shared_memory() {
        // SAFETY: never compiled or launched.
        const SOURCE: Source = unsafe { Source::new("twice", "", &["forward", "backward"]) };
        let recorder = Recorder::new(Arch::ALL[1]);
        assert_eq!((recorder.properties().sm, recorder.properties().shared_per_block), (80, 163 << 10));
        let module = Module::new(&SOURCE).define("N", 1);
        let forward = recorder.function(&module, "forward").unwrap();
        assert_eq!(recorder.function(&module, "forward").unwrap(), forward);
        let backward = recorder.function(&module, "backward").unwrap();
        for (function, shared) in [(forward, 10), (forward, 30), (forward, 20), (backward, 5)] {
            let launch = Launch { grid: [1; 3], block: [1; 3], shared };
            // SAFETY: nothing is executed.
            unsafe { recorder.launch(function, launch, &[]) }.unwrap();
        }
        let expected = |entry, shared| GateItem::new(module.clone()).only(Arch::ALL[1]).shared(entry, shared);
        assert_eq!(recorder.items(), [expected("forward", 30), expected("backward", 5)]);
        let (first, second) = (recorder.alloc(1).unwrap(), recorder.alloc(300).unwrap());
        assert!(first % 256 == 0 && second == first + 256);
    }
}
