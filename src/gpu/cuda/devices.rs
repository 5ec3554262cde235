//! Which GPUs this machine has, asked without panicking where there is no driver.

use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, DriverError, sys};
use serde::Serialize;

use super::nvrtc::Nvrtc;
use crate::error::{Error, Result};

/// A GPU and what serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CudaDevice {
    /// The N of `--device cuda:N`.
    pub index: usize,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability times ten.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_total: usize,
    /// Bytes of it that are free.
    pub memory_free: usize,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    pub driver_version: String,
    /// Version and path of the compiler library, where there is one.
    pub nvrtc: Option<(String, String)>,
    /// Whether matrix products go to cuBLASLt.
    pub cublaslt: bool,
}

/// Whether the driver's library is there; cudarc panics where it is called without.
pub(super) fn driver_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens and closes NVIDIA's driver library, whose initialisers have no preconditions.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// The CUDA version of the driver, as 1000·major + 10·minor.
fn driver_version() -> Option<u32> {
    if !driver_present() {
        return None;
    }
    let mut version: c_int = 0;
    // SAFETY: the library is there, and this function needs no initialisation.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    (status == sys::CUresult::CUDA_SUCCESS && version > 0).then_some(version as u32)
}

/// Such as 13: an NVRTC of a later major version makes code that the driver may not load.
pub(super) fn driver_major() -> Option<u32> {
    driver_version().map(|version| version / 1000)
}

/// The error of a device that is not there or does not start, with what to do about it.
pub(super) fn missing(device: &str, error: Option<DriverError>) -> Error {
    use sys::CUresult as Status;
    let elsewhere = "or use --device cpu or --device emulator, which need no GPU";
    let Some(DriverError(status)) = error else {
        let remedy = format!("install NVIDIA's driver (in a container: start it with --gpus all), {elsewhere}");
        return Error::device(device, "NVIDIA's driver library (libcuda) is not on this machine", remedy);
    };
    let (problem, remedy) = match status {
        Status::CUDA_ERROR_NO_DEVICE => {
            ("the driver sees no GPU", "see what nvidia-smi says and whether CUDA_VISIBLE_DEVICES hides it")
        }
        Status::CUDA_ERROR_INVALID_DEVICE => ("there is no such GPU", "`attn devices` lists those that there are"),
        Status::CUDA_ERROR_STUB_LIBRARY => {
            ("libcuda is the toolkit's stub, not a driver", "take the stubs folder out of LD_LIBRARY_PATH")
        }
        Status::CUDA_ERROR_OUT_OF_MEMORY => {
            ("the GPU has no memory left for even a context", "end other programs on it (nvidia-smi lists them)")
        }
        Status::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            ("another program has the GPU to itself", "end it (nvidia-smi lists it), or leave the exclusive mode")
        }
        Status::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            ("the driver's library and its kernel module differ in version", "restart the machine after the update")
        }
        _ => ("", "see whether nvidia-smi works"),
    };
    let problem = if problem.is_empty() { describe(DriverError(status)) } else { problem.to_owned() };
    Error::device(device, problem, format!("{remedy}, {elsewhere}"))
}

/// `CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)`
pub(super) fn describe(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{:?} ({})", error.0, text.to_string_lossy()),
        Err(_) => format!("{:?}", error.0),
    }
}

/// `13.0`
fn dotted(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The GPUs of this machine, or why there is none and what to do about it. Makes a context on each, for the
/// driver tells the free memory only there.
pub fn devices() -> Result<Vec<CudaDevice>> {
    if !driver_present() {
        return Err(missing("cuda", None));
    }
    let count = CudaContext::device_count().map_err(|e| missing("cuda", Some(e)))?;
    if count <= 0 {
        return Err(missing("cuda", Some(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE))));
    }
    let nvrtc = Nvrtc::get().ok().map(|nvrtc| {
        let (major, minor) = nvrtc.version();
        (format!("{major}.{minor}"), nvrtc.path().display().to_string())
    });
    (0..count as usize)
        .map(|index| {
            let fail = |e| missing(&format!("cuda:{index}"), Some(e));
            let context = CudaContext::new(index).map_err(fail)?;
            let (major, minor) = context.compute_capability().map_err(fail)?;
            let (memory_free, memory_total) = context.mem_get_info().map_err(fail)?;
            let multiprocessors =
                context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(fail)?;
            Ok(CudaDevice {
                index,
                name: context.name().map_err(fail)?,
                sm: (major * 10 + minor) as u32,
                multiprocessors: multiprocessors as u32,
                memory_total,
                memory_free,
                driver_version: driver_version().map_or("unknown".into(), dotted),
                nvrtc: nvrtc.clone(),
                cublaslt: super::cublaslt::present(),
            })
        })
        .collect()
}
