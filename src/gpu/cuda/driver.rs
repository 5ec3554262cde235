//! [`Driver`] on an NVIDIA GPU, over cudarc. The lower layers of cudarc are called where its safe one would add
//! events, waits or allocations: all of that breaks graph capture.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUevent, CUfunction, CUgraphExec, CUmodule, CUresult as Status, CUstream};
use cudarc::driver::{CudaContext, CudaStream};

use super::arch::Arch;
use super::cache::{self, Cache};
use super::cublaslt::{self, CublasLt};
use super::devices::{describe, driver_present, missing};
use super::loaded::{self, Loaded, Raw};
use super::nvrtc::{Compiled, Nvrtc};
use super::upload::Staging;
use crate::error::{Error, Result};
use crate::gpu::driver::{Captured, Driver, Event, Function, Launch, Matmul, Properties};
use crate::gpu::kernel::Module;

/// Marks that can be told apart at a time; older ones are reused.
const EVENTS: usize = 4096;

/// A GPU with one stream. Environment: `ATTN_KERNELS` (a folder of prebuilt kernels), `ATTN_NVRTC` (the compiler's
/// folder), `ATTN_CACHE`, `ATTN_MATMUL=own` (no cuBLASLt), `ATTN_SYNC=1` (wait after every launch, so that a
/// failing kernel is named).
pub struct Cuda {
    device: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    properties: Properties,
    arch: Arch,
    prebuilt: Option<PathBuf>,
    cache: Option<Cache>,
    code: Mutex<Code>,
    events: Mutex<Events>,
    graphs: Mutex<Vec<Raw<CUgraphExec>>>,
    staging: Mutex<Staging>,
    cublaslt: Option<CublasLt>,
    capturing: AtomicBool,
    last_launched: AtomicUsize,
    wait_always: bool,
}

/// What is loaded. Modules are told apart by the address of their text, which is static, and by their defines:
/// hashing the whole text at each launch would cost more than the launch.
#[derive(Default)]
struct Code {
    modules: HashMap<(usize, usize), Vec<LoadedModule>>,
    functions: Vec<Arc<Loaded>>,
}

struct LoadedModule {
    defines: Vec<(&'static str, String)>,
    handle: Raw<CUmodule>,
    entries: Vec<(String, Function)>,
}

#[derive(Default)]
struct Events {
    pool: Vec<Raw<CUevent>>,
    recorded: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these lists whole: each is changed in one step.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Cuda {
    /// Opens a GPU by its number, or says why it cannot be used and what to do.
    pub fn new(index: usize) -> Result<Cuda> {
        let device = format!("cuda:{index}");
        if !driver_present() {
            return Err(missing(&device, None));
        }
        let fail = |error| missing(&device, Some(error));
        let context = CudaContext::new(index).map_err(fail)?;
        // SAFETY: one stream does all work, in order; no CudaSlice is ever made.
        unsafe { context.disable_event_tracking() };
        // Not the default stream, which cannot be captured.
        let stream = context.new_stream().map_err(fail)?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| context.attribute(which).map(|value| value as u32).map_err(fail);
        let (major, minor) = context.compute_capability().map_err(fail)?;
        let sm = (major * 10 + minor) as u32;
        let properties = Properties {
            name: context.name().map_err(fail)?,
            sm,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        let mut cuda = Cuda {
            arch: Arch::from_capability(major as u32, minor as u32),
            device,
            context,
            stream,
            properties,
            prebuilt: std::env::var_os("ATTN_KERNELS").filter(|f| !f.is_empty()).map(PathBuf::from),
            cache: Cache::standard().ok(),
            code: Mutex::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
            staging: Mutex::default(),
            cublaslt: None,
            capturing: AtomicBool::new(false),
            last_launched: AtomicUsize::new(usize::MAX),
            wait_always: std::env::var_os("ATTN_SYNC").is_some_and(|v| !v.is_empty() && v != "0"),
        };
        if std::env::var_os("ATTN_MATMUL").is_none_or(|v| v != "own") && cublaslt::present() {
            let bytes = cublaslt::workspace_bytes(sm);
            let workspace = cuda.alloc(bytes)?;
            // SAFETY: the workspace is device memory of this context, freed in drop after the handle.
            cuda.cublaslt = unsafe { CublasLt::new(workspace, bytes) };
            if cuda.cublaslt.is_none() {
                // SAFETY: just allocated, used by nothing.
                unsafe { cuda.free(workspace, bytes) };
            }
        }
        Ok(cuda)
    }

    fn stream(&self) -> CUstream {
        self.stream.cu_stream()
    }

    /// Makes the context this thread's.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.error("the context", e))
    }

    /// As [`Cuda::bind`], for what a capture cannot hold.
    fn bind_outside_capture(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            let remedy = "do it before begin_capture or after end_capture";
            return Err(Error::device(&self.device, format!("{what} cannot be captured"), remedy));
        }
        self.bind()
    }

    fn error(&self, what: &str, error: DriverError) -> Error {
        let text = format!("{what}: {}", describe(error));
        match error.0 {
            Status::CUDA_ERROR_ILLEGAL_ADDRESS
            | Status::CUDA_ERROR_MISALIGNED_ADDRESS
            | Status::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Status::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Status::CUDA_ERROR_INVALID_PC
            | Status::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Status::CUDA_ERROR_ASSERT
            | Status::CUDA_ERROR_LAUNCH_FAILED
            | Status::CUDA_ERROR_LAUNCH_TIMEOUT => {
                let last = lock(&self.code).functions.get(self.last_launched.load(Ordering::Relaxed)).cloned();
                let last = last.map_or("a library's".to_owned(), |function| function.name.clone());
                let kernel = if self.wait_always { last } else { format!("{last} or one launched before it") };
                let hint = "the GPU's context is lost, start again; ATTN_SYNC=1 names the kernel, compute-sanitizer \
                            or `--device emulator` its line";
                Error::kernel(kernel, format!("{text}; {hint}"))
            }
            Status::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::device(&self.device, text, "use a smaller batch or length, or end other programs on the GPU")
            }
            Status::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | Status::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | Status::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | Status::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => {
                Error::device(&self.device, text, "run the step once before it is captured, on the same thread")
            }
            _ => Error::device(&self.device, text, "see what nvidia-smi and the kernel's log (dmesg) say"),
        }
    }

    fn out_of_memory(&self, needed: usize) -> Error {
        let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
        Error::Memory { device: self.device.clone(), needed, free }
    }

    /// While a capture goes on, lets this thread do what is not part of it: load code, allocate.
    fn beside_capture<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.capturing.load(Ordering::Relaxed) {
            return work();
        }
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps this thread's mode with the one in `mode`.
        let swapped = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) } == Status::CUDA_SUCCESS;
        let done = work();
        if swapped {
            // SAFETY: as above: puts the former one back.
            let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        }
        done
    }

    /// The module's code: prebuilt, cached or compiled now.
    fn compiled(&self, module: &Module) -> Result<Compiled> {
        if let Some(folder) = &self.prebuilt
            && let Some(compiled) = cache::prebuilt(folder, module, self.arch)
        {
            return Ok(compiled);
        }
        match (Nvrtc::get(), &self.cache) {
            (Ok(nvrtc), Some(cache)) => cache.compile(module, self.arch, nvrtc),
            (Ok(nvrtc), None) => super::nvrtc::compile(module, self.arch, nvrtc),
            (Err(error), _) => match &self.prebuilt {
                None => Err(error),
                Some(folder) => {
                    let file = cache::file_name(module, self.arch, false, None);
                    let problem = format!("holds no {file} for {module}, and there is no compiler here");
                    let remedy = format!("make it anew with this version: attn kernels build --arch {}", self.arch);
                    Err(Error::file(folder, problem, remedy))
                }
            },
        }
    }

    fn load(&self, module: &Module) -> Result<CUmodule> {
        let mut compiled = self.compiled(module)?;
        let mut loaded = loaded::load(&compiled.code);
        if loaded.is_err()
            && compiled.cached
            && let (Ok(nvrtc), Some(cache)) = (Nvrtc::get(), &self.cache)
        {
            // A damaged file must not stay in the way.
            cache.forget(module, self.arch, nvrtc);
            compiled = cache.compile(module, self.arch, nvrtc)?;
            loaded = loaded::load(&compiled.code);
        }
        loaded.map_err(|(error, log)| {
            let kind = if compiled.ptx { "PTX" } else { "code" };
            let remedy = match error.0 {
                Status::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | Status::CUDA_ERROR_NO_BINARY_FOR_GPU
                | Status::CUDA_ERROR_INVALID_IMAGE => {
                    "the compiler may be newer than the GPU's driver: update the driver, or set ATTN_NVRTC to the \
                     folder of an NVRTC of its major version"
                }
                Status::CUDA_ERROR_OUT_OF_MEMORY => "the GPU's memory is full",
                _ => "please report this with the text above",
            };
            let text = [describe(error), log, remedy.to_owned()];
            let text: Vec<String> = text.into_iter().filter(|t| !t.is_empty()).collect();
            Error::kernel(module.to_string(), format!("{kind} for {}: {}", compiled.target, text.join("; ")))
        })
    }

    fn loaded(&self, function: Function) -> Result<Arc<Loaded>> {
        let unknown = || Error::kernel(format!("number {}", function.0), "not a function of this device");
        lock(&self.code).functions.get(function.0).cloned().ok_or_else(unknown)
    }

    /// Launches, `cooperative` with all blocks at once.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn submit(&self, function: Function, launch: Launch, arguments: &[&[u8]], cooperative: bool) -> Result<()> {
        let loaded = self.loaded(function)?;
        self.bind()?;
        loaded.prepare(launch, arguments, self.properties.shared_per_block)?;
        let mut pointers: Vec<*mut std::ffi::c_void> =
            arguments.iter().map(|argument| argument.as_ptr().cast_mut().cast()).collect();
        let [grid_x, grid_y, grid_z] = launch.grid;
        let [block_x, block_y, block_z] = launch.block;
        let handle: CUfunction = loaded.handle.0;
        // SAFETY: number and sizes of the parameters were checked where the driver tells them, and the caller vouches
        // for what they describe; the driver copies them before it returns.
        let launched = unsafe {
            let launch_kernel = if cooperative { result::launch_cooperative_kernel } else { result::launch_kernel };
            launch_kernel(
                handle,
                (grid_x, grid_y, grid_z),
                (block_x, block_y, block_z),
                launch.shared,
                self.stream(),
                &mut pointers,
            )
        };
        self.last_launched.store(function.0, Ordering::Relaxed);
        launched.map_err(|error| match error.0 {
            Status::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE => {
                let problem = format!("{launch:?}: not all of these blocks can run at once on this GPU");
                Error::kernel(&loaded.name, problem)
            }
            Status::CUDA_ERROR_INVALID_VALUE | Status::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
                Error::kernel(&loaded.name, format!("{launch:?} is refused: {}", describe(error)))
            }
            _ => self.error(&format!("launching {}", loaded.name), error),
        })?;
        if self.wait_always && !self.capturing.load(Ordering::Relaxed) {
            self.synchronize()?;
        }
        Ok(())
    }

    fn event(&self, events: &Events, event: Event) -> Result<CUevent> {
        let known = event.0 < events.recorded && events.recorded - event.0 <= EVENTS;
        let raw = events.pool.get(event.0 % EVENTS).filter(|_| known).map(|raw| raw.0);
        let problem = || format!("mark {} is not among the last {EVENTS}", event.0);
        raw.ok_or_else(|| Error::device(&self.device, problem(), "read times sooner"))
    }
}

impl Driver for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: the memory is uninitialised, as `alloc` says. cuMemAlloc aligns to 256 bytes at least and
        // refuses 0.
        let allocated = self.beside_capture(|| unsafe { result::malloc_sync(bytes.max(1)) });
        allocated.map_err(|error| match error.0 {
            Status::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(bytes),
            _ => self.error("an allocation", error),
        })
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        // Nobody could act on a failure here; a lost context frees everything anyway.
        if self.bind().is_err() {
            return;
        }
        if !self.capturing.load(Ordering::Relaxed) {
            // Work that was submitted before may still use it, and cuMemFree is not said to wait for other streams.
            // SAFETY: the stream lives.
            let _ = unsafe { result::stream::synchronize(self.stream()) };
        }
        // SAFETY: the caller's promise.
        let _ = self.beside_capture(|| unsafe { result::free_sync(address) });
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(address, value, bytes, self.stream()) }.map_err(|e| self.error("a fill", e))
    }

    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        self.bind_outside_capture("an upload")?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise; one context and one stream for ever.
        unsafe { lock(&self.staging).upload(address, data, self.stream()) }.map_err(|e| self.error("an upload", e))
    }

    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.bind_outside_capture("a download")?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise; `data` is there until the copy is over, which is waited for.
        unsafe {
            result::memcpy_dtoh_async(data, address, self.stream())
                .and_then(|()| result::stream::synchronize(self.stream()))
        }
        .map_err(|e| self.error("a download", e))
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }.map_err(|e| self.error("a copy", e))
    }

    fn function(&self, module: &Module, entry: &str) -> Result<Function> {
        let key = (module.text.as_ptr() as usize, module.text.len());
        self.bind()?;
        let mut code = lock(&self.code);
        let Code { modules, functions } = &mut *code;
        let same_text = modules.entry(key).or_default();
        let index = match same_text.iter().position(|loaded| loaded.defines == module.defines) {
            Some(index) => index,
            None => {
                let handle = Raw(self.beside_capture(|| self.load(module))?);
                same_text.push(LoadedModule { defines: module.defines.clone(), handle, entries: Vec::new() });
                same_text.len() - 1
            }
        };
        let loaded = &mut same_text[index];
        if let Some((_, function)) = loaded.entries.iter().find(|(name, _)| name == entry) {
            return Ok(*function);
        }
        let name = format!("{entry} of {module}");
        let function = self.beside_capture(|| Loaded::new(loaded.handle.0, entry, name))?;
        functions.push(Arc::new(function));
        let function = Function(functions.len() - 1);
        loaded.entries.push((entry.to_owned(), function));
        Ok(function)
    }

    unsafe fn launch(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit(function, launch, arguments, false) }
    }

    unsafe fn launch_cooperative(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit(function, launch, arguments, true) }
    }

    fn cooperative_blocks(&self, function: Function, launch: Launch) -> Result<u32> {
        use sys::CUdevice_attribute as Attribute;
        let loaded = self.loaded(function)?;
        self.bind()?;
        let fail = |e| self.error("asking how many blocks run at once", e);
        let able = self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH).map_err(fail)?;
        if able == 0 || !loaded.fits(launch, self.properties.shared_per_block) {
            return Ok(0);
        }
        loaded.make_room(launch)?;
        let threads: u32 = launch.block.iter().product();
        let mut blocks = 0;
        // SAFETY: the function belongs to the current context; the answer goes to a place of its own.
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                loaded.handle.0,
                threads as i32,
                launch.shared as usize,
            )
        };
        status.result().map_err(fail)?;
        Ok(blocks.max(0) as u32 * self.properties.multiprocessors)
    }

    unsafe fn matmul(&self, product: &Matmul) -> Result<bool> {
        if product.m == 0 || product.n == 0 {
            return Ok(true);
        }
        let Some(cublaslt) = self.cublaslt.as_ref().filter(|_| product.k > 0) else { return Ok(false) };
        self.bind()?;
        // SAFETY: the caller's promise; the context is current.
        unsafe { cublaslt.run(product, self.stream()) }.map_err(|error| {
            Error::kernel(
                "cuBLASLt's matrix product",
                format!("{:?} for {product:?}; ATTN_MATMUL=own avoids it", error.0),
            )
        })
    }

    fn synchronize(&self) -> Result<()> {
        self.bind_outside_capture("waiting")?;
        // SAFETY: the stream lives as long as self.
        unsafe { result::stream::synchronize(self.stream()) }.map_err(|e| self.error("waiting for the GPU", e))
    }

    fn record(&self) -> Result<Event> {
        self.bind_outside_capture("a mark")?;
        let fail = |e| self.error("a mark", e);
        let mut events = lock(&self.events);
        let id = events.recorded;
        if events.pool.len() <= id % EVENTS {
            events.pool.push(Raw(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(fail)?));
        }
        // SAFETY: event and stream live as long as self and belong to its context.
        unsafe { result::event::record(events.pool[id % EVENTS].0, self.stream()) }.map_err(fail)?;
        events.recorded += 1;
        Ok(Event(id))
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64> {
        self.bind_outside_capture("reading a time")?;
        let fail = |e| self.error("reading a time", e);
        type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> Status;
        // The second version came with CUDA 12.8; cudarc would panic on a driver before it.
        let elapsed = loaded::optional::<Elapsed>("cuEventElapsedTime_v2")
            .or_else(|| loaded::optional("cuEventElapsedTime"))
            .ok_or_else(|| fail(DriverError(Status::CUDA_ERROR_NOT_SUPPORTED)))?;
        let events = lock(&self.events);
        let (from, to) = (self.event(&events, from)?, self.event(&events, to)?);
        let mut milliseconds = 0f32;
        // SAFETY: both events were recorded in this context and live as long as self.
        unsafe { result::event::synchronize(to).and_then(|()| elapsed(&mut milliseconds, from, to).result()) }
            .map_err(fail)?;
        Ok(f64::from(milliseconds))
    }

    fn begin_capture(&self) -> Result<bool> {
        self.bind_outside_capture("a capture within a capture")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and is not the default one.
        unsafe { result::stream::begin_capture(self.stream(), mode) }.map_err(|e| self.error("a capture", e))?;
        self.capturing.store(true, Ordering::Relaxed);
        Ok(true)
    }

    fn end_capture(&self) -> Result<Captured> {
        if !self.capturing.swap(false, Ordering::Relaxed) {
            return Err(Error::device(&self.device, "no capture is going on", "call begin_capture first"));
        }
        self.bind()?;
        let fail = |e| self.error("a capture", e);
        // SAFETY: the stream is capturing. A graph that comes back is destroyed below; what is instantiated, in drop.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.stream()).map_err(fail)?;
            if graph.is_null() {
                return Err(fail(DriverError(Status::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)));
            }
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            let executable = executable.map_err(fail)?;
            lock(&self.graphs).push(Raw(executable));
            executable
        };
        // SAFETY: just instantiated. Moves it to the GPU now rather than at the first replay.
        unsafe { result::graph::upload(executable, self.stream()) }.map_err(fail)?;
        Ok(Captured(lock(&self.graphs).len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<()> {
        self.bind_outside_capture("a replay")?;
        // The lock is held over the launch: one graph must not be launched from two threads at once.
        let graphs = lock(&self.graphs);
        let Some(graph) = graphs.get(captured.0) else {
            return Err(Error::device(
                &self.device,
                format!("nothing was captured as {}", captured.0),
                "capture first",
            ));
        };
        // SAFETY: instantiated in this context, and lives as long as self.
        let launched = unsafe { result::graph::launch(graph.0, self.stream()) };
        launched.map_err(|e| self.error("a replay", e))
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| self.error("asking for the free memory", e))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // With a lost context nothing can be freed, and the driver frees it all.
        if self.bind().is_err() {
            return;
        }
        // SAFETY: everything was made in this context by self, nothing uses it after the wait, and each is freed once.
        unsafe {
            let _ = result::stream::synchronize(self.stream());
            lock(&self.staging).free();
            for graph in lock(&self.graphs).drain(..) {
                let _ = result::graph::exec_destroy(graph.0);
            }
            for event in lock(&self.events).pool.drain(..) {
                let _ = result::event::destroy(event.0);
            }
            if let Some(cublaslt) = self.cublaslt.take() {
                let workspace = cublaslt.workspace;
                drop(cublaslt);
                let _ = result::free_sync(workspace);
            }
            let mut code = lock(&self.code);
            code.functions.clear();
            for module in code.modules.drain().flat_map(|(_, modules)| modules) {
                let _ = result::module::unload(module.handle.0);
            }
        }
    }
}
