//! The runtime's library as Rust sees it. The structures mirror `kernels/emulator/interface.h` and `worker.h`.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;

use libloading::Library;

use crate::error::{Error, Result};

/// `emulator::Entry`
#[repr(C)]
pub struct Entry {
    run: *const c_void,
    name: *const c_char,
    /// What KERNEL(name, threads) says.
    pub threads: u32,
    arguments: u32,
    sizes: *const u32,
}

impl Entry {
    /// The bytes of each parameter.
    pub fn sizes(&self) -> &[u32] {
        // SAFETY: the library's own array, as long as `arguments` says.
        unsafe { std::slice::from_raw_parts(self.sizes, self.arguments as usize) }
    }
}

/// `emulator::Job`
#[repr(C)]
pub struct Job {
    pub entry: *const Entry,
    pub arguments: *const *const c_void,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub shared_limit: u32,
    pub order: i32,
    pub copies: i32,
    /// Whether all blocks run at once.
    pub cooperative: u32,
    pub unused: u32,
    pub seed: u64,
    pub copy_seed: u64,
}

/// A device of the runtime, and the functions that it offers.
pub struct Runtime {
    device: *mut c_void,
    launch: unsafe extern "C" fn(*mut c_void, *const Job) -> *const c_char,
    host: unsafe extern "C" fn(*mut c_void),
    alloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    close: unsafe extern "C" fn(*mut c_void),
    // Dropped last: the pointers above point into it.
    _library: Library,
}

// SAFETY: launches are serialised by the emulator's mutex, `alloc` and `free` are malloc's, and `host` only tells
// the sanitizer; none depends on which thread calls.
unsafe impl Send for Runtime {}
// SAFETY: as above.
unsafe impl Sync for Runtime {}

fn broken(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::file(path, format!("cannot be loaded: {problem}"), "remove it, so that it is compiled again")
}

/// Loads a library made by [`super::compile::Compiler`].
pub fn load(path: &Path) -> Result<Library> {
    // SAFETY: the library is our own; what runs when it is loaded is at most a sanitizer's set-up.
    unsafe { Library::new(path) }.map_err(|e| broken(path, e))
}

/// The description of a kernel in a loaded library.
pub fn entry(library: &Library, path: &Path, name: &str) -> Result<*const Entry> {
    // SAFETY: EMULATOR_ENTRY defines the symbol with this type.
    let symbol = unsafe { library.get::<*const Entry>(format!("emulator_entry_{name}")) };
    symbol.map(|s| *s as *const *const Entry as *const Entry).map_err(|e| broken(path, e))
}

impl Runtime {
    /// Loads the runtime and starts its threads.
    pub fn open(path: &Path, threads: u32) -> Result<Self> {
        let library = load(path)?;
        // SAFETY: the types are those of the definitions in kernels/emulator/device.h.
        unsafe {
            let get = |e| broken(path, e);
            let open = *library.get::<unsafe extern "C" fn(u32) -> *mut c_void>("emulator_open").map_err(get)?;
            let launch = *library.get("emulator_launch").map_err(get)?;
            let host = *library.get("emulator_host").map_err(get)?;
            let alloc = *library.get("emulator_alloc").map_err(get)?;
            let free = *library.get("emulator_free").map_err(get)?;
            let close = *library.get("emulator_close").map_err(get)?;
            let device = open(threads);
            if device.is_null() {
                let problem = format!("cannot start {threads} threads");
                return Err(Error::device("emulator", problem, "ask for fewer threads"));
            }
            Ok(Runtime { device, launch, host, alloc, free, close, _library: library })
        }
    }

    /// Runs a launch to its end; the error is the runtime's report.
    ///
    /// # Safety
    /// One at a time. The job's pointers are live, and its arguments are what the kernel's author asks for.
    pub unsafe fn launch(&self, job: &Job) -> Result<(), String> {
        // SAFETY: by this function's contract.
        let report = unsafe { (self.launch)(self.device, job) };
        if report.is_null() {
            return Ok(());
        }
        // SAFETY: a C string that lives until the next launch.
        Err(unsafe { CStr::from_ptr(report) }.to_string_lossy().into_owned())
    }

    /// Tells ThreadSanitizer that the host reads or writes device memory in stream order.
    pub fn host(&self) {
        // SAFETY: the device lives as long as `self`.
        unsafe { (self.host)(self.device) }
    }

    /// Uninitialised memory, 256-byte aligned; null where there is none.
    pub fn alloc(&self, bytes: usize) -> *mut u8 {
        // SAFETY: no precondition.
        unsafe { (self.alloc)(bytes) }.cast()
    }

    /// Frees what `alloc` gave.
    ///
    /// # Safety
    /// `address` came from `alloc` and is not used any more.
    pub unsafe fn free(&self, address: *mut u8) {
        // SAFETY: by this function's contract.
        unsafe { (self.free)(address.cast()) }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // SAFETY: nothing runs: a launch borrows `self`.
        unsafe { (self.close)(self.device) }
    }
}
