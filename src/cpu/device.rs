//! The CPU as a device: memory of the process, and ops on a pool of threads.

use super::{Mut, Real, Ref, strided};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::op::{Backward, CpuOp, CpuUpdate, Forward, Gradient, Input, Kind, Mode, Op, Place, Update};
use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;

/// Ops in `R`: `Cpu<f32>` computes, `Cpu<f64>` in [`Mode::Definition`] is the oracle.
pub struct Cpu<R> {
    mode: Mode,
    rounded_to: Option<Precision>,
    pool: rayon::ThreadPool,
    real: PhantomData<fn() -> R>,
}

impl<R: Typed> Cpu<R> {
    /// With this many threads; 0: one a core.
    pub fn new(threads: usize) -> Self {
        Self::with_mode(threads, Mode::Fast)
    }

    /// Straight from the formulas, on one thread.
    pub fn definition() -> Self {
        Self::with_mode(1, Mode::Definition)
    }

    /// The same, with every [`Kind::Real`] result rounded as a device that stores this precision would (TF32: as its
    /// products take it): what storing alone costs. [`Device::precision`] stays what is computed in.
    pub fn definition_rounded_to(precision: Precision) -> Self {
        Cpu { rounded_to: Some(precision).filter(|p| p.is_half() || *p == Precision::Tf32), ..Self::definition() }
    }

    fn with_mode(threads: usize, mode: Mode) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        Cpu { mode, rounded_to: None, pool, real: PhantomData }
    }

    /// Rounds what an op has written.
    ///
    /// # Safety
    /// The places lie in live memory that nothing else touches meanwhile.
    unsafe fn round<'a>(&self, written: impl Iterator<Item = &'a Place>) {
        let Some(precision) = self.rounded_to else { return };
        for p in written.filter(|p| p.kind == Kind::Real) {
            let len = strided::span(&p.shape, &p.strides);
            // SAFETY: by the caller's word. Between a view's rows lie elements that are rounded already, or not yet set.
            let all = unsafe { std::slice::from_raw_parts_mut(p.address as *mut R, len) };
            all.iter_mut().for_each(|x| *x = R::from_f64(precision.round_factor(x.to_f64())));
        }
    }
}

/// The step from `dyn Op` to an op in this precision.
pub trait Typed: Real {
    /// As [`Device::precision`] says it.
    const PRECISION: Precision;
    /// The op in this precision.
    fn op(op: &dyn Op) -> &dyn CpuOp<Self>;
    /// The update in this precision.
    fn update(update: &dyn Update) -> &dyn CpuUpdate<Self>;
}

macro_rules! typed {
    ($t:ty, $precision:ident) => {
        impl Typed for $t {
            const PRECISION: Precision = Precision::$precision;
            fn op(op: &dyn Op) -> &dyn CpuOp<Self> {
                op
            }
            fn update(update: &dyn Update) -> &dyn CpuUpdate<Self> {
                update
            }
        }
    };
}
typed!(f32, F32);
typed!(f64, F64);

/// The tensor at a place, to be read.
///
/// # Safety
/// The place lies in live memory that nothing writes during `'a`.
unsafe fn read<'a, R: Real>(p: &'a Place) -> Input<'a, R> {
    let len = strided::span(&p.shape, &p.strides);
    match p.kind {
        // SAFETY: by the caller's word.
        Kind::Real | Kind::Full => Input::Real(Ref {
            data: unsafe { std::slice::from_raw_parts(p.address as *const R, len) },
            shape: &p.shape,
            strides: &p.strides,
        }),
        // SAFETY: by the caller's word.
        Kind::Int => {
            let data = unsafe { std::slice::from_raw_parts(p.address as *const i32, len) };
            Input::Int(Ref { data, shape: &p.shape, strides: &p.strides })
        }
    }
}

/// The tensor at a place, to be written.
///
/// # Safety
/// The place lies in live memory whose elements nothing else touches during `'a`.
unsafe fn write<'a, R: Real>(p: &'a Place) -> Mut<'a, R> {
    // SAFETY: by the caller's word.
    unsafe { Mut::from_raw(p.address as *mut R, &p.shape, &p.strides) }
}

const ALIGNMENT: usize = 256;

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, ALIGNMENT).ok()
}

impl<R: Typed> Device for Cpu<R> {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn precision(&self) -> Precision {
        R::PRECISION
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // Untouched pages cost nothing on Linux, so a failed allocation is rare: compare with what is free.
        let free = free_memory().unwrap_or(usize::MAX);
        let refused = || Error::Memory { device: "cpu".into(), needed: bytes, free };
        let layout = layout(bytes.max(1)).filter(|_| bytes <= free).ok_or_else(refused)?;
        // SAFETY: the layout's size is not zero.
        let address = unsafe { alloc(layout) };
        if address.is_null() { Err(refused()) } else { Ok(address as u64) }
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: allocated with this layout, by the caller's word.
        unsafe { dealloc(address as *mut u8, layout(bytes.max(1)).expect("the layout it was allocated with")) }
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: by the caller's word.
        unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        // SAFETY: by the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), address as *mut u8, data.len()) };
        Ok(())
    }

    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        // SAFETY: by the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: by the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn forward(&self, op: &dyn Op, io: &Forward<Place, Place>) -> Result<()> {
        // SAFETY: the plan keeps places apart, by the caller's word.
        let typed = unsafe {
            Forward {
                inputs: io.inputs.iter().map(|p| read::<R>(p)).collect(),
                outputs: io.outputs.iter().map(|p| write(p)).collect(),
                saved: io.saved.iter().map(|p| write(p)).collect(),
                scratch: write(&io.scratch),
            }
        };
        R::op(op).forward_cpu(typed, self.mode);
        // SAFETY: as above.
        unsafe { self.round(io.outputs.iter().chain(&io.saved)) };
        Ok(())
    }

    unsafe fn backward(&self, op: &dyn Op, io: &Backward<Place, Place>) -> Result<()> {
        // SAFETY: the plan keeps places apart, by the caller's word.
        let typed = unsafe {
            Backward {
                inputs: io.inputs.iter().map(|p| read::<R>(p)).collect(),
                outputs: io.outputs.iter().map(|p| read(p)).collect(),
                saved: io.saved.iter().map(|p| read(p)).collect(),
                d_outputs: io.d_outputs.iter().map(|p| p.as_ref().map(|p| read(p))).collect(),
                d_inputs: (io.d_inputs.iter())
                    .map(|g| g.as_ref().map(|g| Gradient { to: write(&g.to), accumulate: g.accumulate }))
                    .collect(),
                scratch: write(&io.scratch),
            }
        };
        R::op(op).backward_cpu(typed, self.mode);
        // SAFETY: as above.
        unsafe { self.round(io.d_inputs.iter().flatten().map(|d| &d.to)) };
        Ok(())
    }

    unsafe fn update(&self, update: &dyn Update, buffers: &[Place]) -> Result<()> {
        // SAFETY: flat, contiguous and apart, by the caller's word.
        let typed = buffers.iter().map(|p| unsafe { write::<R>(p) }.contiguous()).collect();
        R::update(update).update_cpu(typed, self.mode);
        Ok(())
    }

    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(work);
    }
}

/// Bytes of memory that the system could give without swapping; `None` where it does not say.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kib| kib * 1024)
}
