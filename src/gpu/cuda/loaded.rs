//! Code on the GPU: modules loaded by the driver, and what it tells about their entries.

use std::ffi::{CString, c_void};
use std::sync::Mutex;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute as Attribute, CUmodule};

use super::devices::describe;
use crate::error::{Error, Result};
use crate::gpu::driver::Launch;

/// A handle of the driver's. SAFETY of both impls: such handles belong to a context, not to a thread.
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub T);
// SAFETY: see `Raw`.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: see `Raw`.
unsafe impl<T> Sync for Raw<T> {}

/// A function of the driver's that older drivers lack.
pub(super) fn optional<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: callers pass the type that cuda.h declares for this name. The library stays loaded.
    unsafe { sys::culib().get::<F>(name.as_bytes()).ok().map(|symbol| *symbol) }
}

/// Loads a cubin or zero-terminated PTX into the current context. The text of an error is the driver's compiler's.
pub(super) fn load(code: &[u8]) -> std::result::Result<CUmodule, (DriverError, String)> {
    let mut log = vec![0u8; 16 << 10];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // A number is passed in place of a pointer, as cuModuleLoadDataEx wants it.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module: CUmodule = std::ptr::null_mut();
    // SAFETY: the code is whole (written atomically, PTX zero-terminated), the log has the size that is told.
    let status = unsafe {
        sys::cuModuleLoadDataEx(&mut module, code.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    status.result().map(|()| module).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        (error, String::from_utf8_lossy(&log[..end]).trim().to_owned())
    })
}

/// An entry of a loaded module.
pub(super) struct Loaded {
    /// `forward of softmax_attention[HEAD_DIM=64]`
    pub name: String,
    pub handle: Raw<CUfunction>,
    /// Bytes of each parameter, where the driver tells (CUDA 12.4).
    parameters: Option<Vec<usize>>,
    static_shared: u32,
    max_threads: u32,
    /// The dynamic shared memory that has been asked for so far.
    dynamic_shared: Mutex<u32>,
}

impl Loaded {
    /// Looks the entry up and asks the driver about it.
    pub fn new(module: CUmodule, entry: &str, name: String) -> Result<Loaded> {
        let fail = |error| Error::kernel(&name, describe(error));
        let symbol = CString::new(entry).map_err(|_| Error::kernel(&name, "a zero byte in the entry's name"))?;
        // SAFETY: the module is loaded in the current context and never unloaded before the driver is dropped.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => Error::kernel(&name, "the module has no such entry"),
            _ => fail(error),
        })?;
        // Loads it now: lazily it would be at the first launch, which may be inside a capture.
        if let Some(load) = optional::<unsafe extern "C" fn(CUfunction) -> u32>("cuFuncLoad") {
            // SAFETY: the function exists. A failure shows at the next call.
            unsafe { load(function) };
        }
        // SAFETY: the function exists.
        let attribute = |which| unsafe { result::function::get_function_attribute(function, which) };
        let static_shared = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).map_err(fail)? as u32;
        let max_threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK).map_err(fail)? as u32;
        Ok(Loaded {
            parameters: parameters(function),
            handle: Raw(function),
            static_shared,
            max_threads,
            dynamic_shared: Mutex::new(0),
            name,
        })
    }

    /// Refuses what cannot be launched, and makes room for the shared memory.
    pub fn prepare(&self, launch: Launch, arguments: &[&[u8]], shared_per_block: u32) -> Result<()> {
        let fail = |problem: String| Err(Error::kernel(&self.name, problem));
        if let Some(sizes) = &self.parameters {
            let given: Vec<usize> = arguments.iter().map(|a| a.len()).collect();
            if given != *sizes {
                return fail(format!("its parameters have {sizes:?} bytes, the launch passes {given:?}"));
            }
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return fail(format!("a grid of {x}×{y}×{z} blocks: from 1 to 2³¹−1, 65,535 and 65,535 are possible"));
        }
        let threads = launch.block.iter().map(|t| u64::from(*t)).product::<u64>();
        if threads == 0 || threads > u64::from(self.max_threads) {
            return fail(format!("{threads} threads a block: from 1 to {} are possible", self.max_threads));
        }
        let shared = u64::from(self.static_shared) + u64::from(launch.shared);
        if shared > u64::from(shared_per_block) {
            return fail(format!(
                "{shared} bytes of shared memory a block ({} static, {} dynamic): this GPU has {shared_per_block}",
                self.static_shared, launch.shared
            ));
        }
        self.make_room(launch)
    }

    /// Whether the GPU has the shared memory and the threads.
    pub fn fits(&self, launch: Launch, shared_per_block: u32) -> bool {
        let threads = launch.block.iter().map(|t| u64::from(*t)).product::<u64>();
        let shared = u64::from(self.static_shared) + u64::from(launch.shared);
        threads <= u64::from(self.max_threads) && shared <= u64::from(shared_per_block)
    }

    /// Leave to use as much shared memory as the launch wants; up to 48 KiB in all need none.
    pub fn make_room(&self, launch: Launch) -> Result<()> {
        let shared = u64::from(self.static_shared) + u64::from(launch.shared);
        let mut granted = self.dynamic_shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if shared > 48 << 10 && launch.shared > *granted {
            // SAFETY: the function exists; its context is current.
            let set = unsafe {
                result::function::set_function_attribute(
                    self.handle.0,
                    Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.shared as i32,
                )
            };
            set.map_err(|e| {
                Error::kernel(&self.name, format!("{} bytes of dynamic shared memory: {}", launch.shared, describe(e)))
            })?;
            *granted = launch.shared;
        }
        Ok(())
    }
}

/// The sizes of the function's parameters: asked one by one until there is no more.
fn parameters(function: CUfunction) -> Option<Vec<usize>> {
    type Info = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> u32;
    let info: Info = optional("cuFuncGetParamInfo")?;
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function exists; past the last parameter the driver answers CUDA_ERROR_INVALID_VALUE.
        match unsafe { info(function, sizes.len(), &mut offset, &mut size) } {
            0 => sizes.push(size),
            1 => return Some(sizes),
            _ => return None,
        }
    }
}
