//! Executes the kernels on a CPU: the host's C++ compiler translates the very same sources, and a small runtime
//! (`kernels/emulator/`) gives them CUDA's execution model.
//!
//! A thread is a fiber; barriers, warp collectives and asynchronous copies behave as CUDA defines them and no
//! better: the order of threads and the moment of a copy's arrival can be chosen ([`Emulator::set_schedule`]), fresh
//! memory is NaN, and a deadlock is an error that names the threads and the lines where they wait.

mod compile;
mod loaded;
mod runtime;
mod sanitize;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use compile::Compiler;
pub use compile::Mutation;
use loaded::{Arguments, Kernel, Modules};
use runtime::{Job, Runtime};
pub use sanitize::{Sanitizer, reexec_with};

use super::driver::{Captured, Driver, Event, Function, Launch, Matmul, Properties};
use super::kernel::Module;
use crate::error::{Error, Result};

/// In which order the threads of a block run, and the blocks of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// From the first.
    #[default]
    Forward,
    /// From the last.
    Reverse,
    /// At random, by a seed.
    Random(u64),
}

/// When an asynchronous copy arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CopyPolicy {
    /// When it is waited for; until then its destination is NaN. Finds missing waits.
    #[default]
    Late,
    /// At once. Finds buffers that are overwritten while they are read.
    Early,
    /// Each early or late at random, by a seed.
    Random(u64),
}

/// How an [`Emulator`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EmulatorOptions {
    /// OS threads over which blocks are spread; 0: as many as there are cores.
    pub threads: usize,
    /// The order of the threads, to begin with.
    pub order: Order,
    /// When copies arrive, to begin with.
    pub copies: CopyPolicy,
    /// Compile the kernels with a sanitizer. The process must run under it: see [`reexec_with`].
    pub sanitize: Option<Sanitizer>,
}

/// Bytes of shared memory a block may use, static and dynamic together: those of sm_80.
const SHARED_PER_BLOCK: u32 = 163 * 1024;

/// Blocks of a cooperative launch, at most: each has an OS thread of its own.
const MAX_COOPERATIVE: u32 = 64;

/// A [`Driver`] that executes kernels on the CPU.
pub struct Emulator {
    properties: Properties,
    compiler: Compiler,
    runtime_path: std::path::PathBuf,
    started: Instant,
    schedule: Mutex<(Order, CopyPolicy)>,
    modules: Mutex<Modules>,
    stream: Mutex<Stream>,
    allocated: AtomicUsize,
    runtime: Runtime,
}

#[derive(Default)]
struct Stream {
    capturing: Option<Vec<Work>>,
    captured: Vec<Arc<Vec<Work>>>,
}

enum Work {
    Fill { address: u64, value: u8, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Launch { kernel: Kernel, launch: Launch, arguments: Arguments, cooperative: bool },
}

/// No lock here is held across code that can leave its data half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Emulator {
    /// Finds the compiler, compiles the runtime unless it is cached, and starts the threads.
    pub fn new(options: EmulatorOptions) -> Result<Self> {
        if let Some(sanitizer) = options.sanitize.filter(|s| !s.is_active()) {
            return Err(Error::device(
                "emulator",
                format!("this process does not run under the {} sanitizer", sanitizer.name()),
                "start it through `reexec_with` (on the command line: --sanitize)",
            ));
        }
        let compiler = Compiler::find(options.sanitize)?;
        let runtime_path = compiler.runtime()?;
        let mut threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        if options.sanitize == Some(Sanitizer::Thread) {
            threads = threads.max(2); // races between blocks show only between OS threads
        }
        let threads = u32::try_from(threads.min(1024)).unwrap_or(1024);
        let properties = Properties {
            name: format!("emulator ({})", compiler.name()),
            sm: 80,
            multiprocessors: threads,
            shared_per_block: SHARED_PER_BLOCK,
        };
        Ok(Emulator {
            properties,
            runtime: Runtime::open(&runtime_path, threads)?,
            compiler,
            runtime_path,
            started: Instant::now(),
            schedule: Mutex::new((options.order, options.copies)),
            modules: Mutex::default(),
            stream: Mutex::default(),
            allocated: AtomicUsize::new(0),
        })
    }

    /// An emulator whose kernels lack a call.
    ///
    /// # Errors
    /// As [`Emulator::new`].
    pub fn mutated(options: EmulatorOptions, mutation: Mutation) -> Result<Self> {
        let mut emulator = Self::new(options)?;
        emulator.compiler.mutation = Some(mutation);
        Ok(emulator)
    }

    /// Which compiler it would use, such as `g++ 12.2.0`; the error says how to get one.
    pub fn available() -> Result<String> {
        Compiler::find(None).map(|compiler| compiler.name())
    }

    /// Changes the order of threads and the arrival of copies for the launches that follow.
    pub fn set_schedule(&self, order: Order, copies: CopyPolicy) {
        *lock(&self.schedule) = (order, copies);
    }

    /// Bytes allocated and not freed.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Compiles modules into the cache, several at a time. The first error ends it.
    pub fn prefetch(&self, modules: &[Module]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let compile = || {
            while let Some(module) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = self.compiler.module(module, &self.runtime_path) {
                    next.store(modules.len(), Ordering::Relaxed);
                    return Err(e);
                }
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(modules.len());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(compile)).collect();
            let mut result = compile();
            for worker in workers {
                result = result.and(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            result
        })
    }

    fn check(&self, kernel: &Kernel, launch: &Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: the library stays loaded as long as `self`.
        let entry = unsafe { &*kernel.entry };
        let fail = |problem: String| Err(Error::kernel(&*kernel.name, problem));
        let sizes = entry.sizes();
        if sizes.len() != arguments.len() {
            return fail(format!("takes {} arguments, and the launch gives {}", sizes.len(), arguments.len()));
        }
        for (i, (size, argument)) in sizes.iter().zip(arguments).enumerate() {
            if *size as usize != argument.len() {
                return fail(format!("argument {i} has {size} bytes, and the launch gives {}", argument.len()));
            }
        }
        let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
        if threads == 0 || threads > 1024 || launch.block[2] > 64 {
            return fail(format!("a block of {:?} threads: at least 1, at most 1024, and 64 along z", launch.block));
        }
        if threads > u64::from(entry.threads) {
            return fail(format!("a block of {threads} threads, and KERNEL allows {}", entry.threads));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return fail(format!("a grid of {:?} blocks: at least 1, and at most 65535 along y and z", launch.grid));
        }
        if launch.shared > SHARED_PER_BLOCK {
            return fail(format!("{} bytes of shared memory, and a block may have {SHARED_PER_BLOCK}", launch.shared));
        }
        Ok(())
    }

    /// # Safety
    /// As [`Driver::launch`], after `check`, with the stream locked.
    unsafe fn run(&self, kernel: &Kernel, launch: &Launch, arguments: &Arguments, cooperative: bool) -> Result<()> {
        let (order, copies) = *lock(&self.schedule);
        let (order, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let (copies, copy_seed) = match copies {
            CopyPolicy::Late => (0, 0),
            CopyPolicy::Early => (1, 0),
            CopyPolicy::Random(seed) => (2, seed),
        };
        let pointers = arguments.pointers();
        let job = Job {
            entry: kernel.entry,
            arguments: pointers.as_ptr(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            shared_limit: SHARED_PER_BLOCK,
            order,
            copies,
            cooperative: cooperative as u32,
            unused: 0,
            seed,
            copy_seed,
        };
        // SAFETY: the stream's lock makes it one at a time; the rest is the caller's promise.
        unsafe { self.runtime.launch(&job) }.map_err(|report| Error::kernel(&*kernel.name, report))
    }

    /// # Safety
    /// As the [`Driver`] method that asked for the work.
    unsafe fn perform(&self, work: &Work) -> Result<()> {
        match work {
            Work::Fill { address, value, bytes } => {
                self.runtime.host();
                // SAFETY: by this function's contract.
                unsafe { std::ptr::write_bytes(*address as *mut u8, *value, *bytes) };
                self.runtime.host();
                Ok(())
            }
            Work::Copy { to, from, bytes } => {
                self.runtime.host();
                // SAFETY: by this function's contract.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                self.runtime.host();
                Ok(())
            }
            // SAFETY: by this function's contract.
            Work::Launch { kernel, launch, arguments, cooperative } => unsafe {
                self.run(kernel, launch, arguments, *cooperative)
            },
        }
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn submit_launch(
        &self,
        function: Function,
        launch: Launch,
        arguments: &[&[u8]],
        cooperative: bool,
    ) -> Result<()> {
        let kernel = lock(&self.modules).kernels.get(function.0).cloned();
        let Some(kernel) = kernel else {
            return Err(Error::kernel(format!("{function:?}"), "belongs to another driver"));
        };
        self.check(&kernel, &launch, arguments)?;
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let most = self.cooperative_blocks(function, launch)?;
        if cooperative && blocks > u64::from(most) {
            let problem = format!("a cooperative launch of {blocks} blocks, and at most {most} run at once");
            return Err(Error::kernel(&*kernel.name, problem));
        }
        // SAFETY: by the trait's contract.
        unsafe { self.submit(Work::Launch { kernel, launch, arguments: Arguments::new(arguments), cooperative }) }
    }

    /// # Safety
    /// As the [`Driver`] method that asked for the work.
    unsafe fn submit(&self, work: Work) -> Result<()> {
        let mut stream = lock(&self.stream);
        match &mut stream.capturing {
            Some(list) => {
                list.push(work);
                Ok(())
            }
            // SAFETY: by this function's contract.
            None => unsafe { self.perform(&work) },
        }
    }

    /// The stream, for what a capture cannot hold.
    fn outside_capture(&self, what: &str) -> Result<MutexGuard<'_, Stream>> {
        let stream = lock(&self.stream);
        match stream.capturing {
            None => Ok(stream),
            Some(_) => Err(Error::device("emulator", format!("{what} during a capture"), "end the capture first")),
        }
    }
}

impl Driver for Emulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // Small ones are not worth a look into /proc.
        let short = |free| Error::Memory { device: "emulator".to_string(), needed: bytes, free };
        if bytes > 64 << 20 {
            let (free, _) = self.memory()?;
            if bytes > free {
                return Err(short(free));
            }
        }
        let address = self.runtime.alloc(bytes);
        if address.is_null() {
            return Err(short(self.memory()?.0));
        }
        // SAFETY: just allocated with that size.
        unsafe { std::ptr::write_bytes(address, 0xff, bytes) };
        self.runtime.host();
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(address as u64)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
        self.runtime.host();
        // SAFETY: by the trait's contract.
        unsafe { self.runtime.free(address as *mut u8) }
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit(Work::Fill { address, value, bytes }) }
    }

    unsafe fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        let _stream = self.outside_capture("a copy from the host")?;
        self.runtime.host();
        // SAFETY: by the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), address as *mut u8, data.len()) };
        self.runtime.host();
        Ok(())
    }

    unsafe fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let _stream = self.outside_capture("a copy to the host")?;
        self.runtime.host();
        // SAFETY: by the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, data.as_mut_ptr(), data.len()) };
        self.runtime.host();
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit(Work::Copy { to, from, bytes }) }
    }

    fn function(&self, module: &Module, entry: &str) -> Result<Function> {
        if let Some(found) = lock(&self.modules).find(module, entry) {
            return found;
        }
        // Without the lock: others may compile meanwhile.
        let path = self.compiler.module(module, &self.runtime_path)?;
        let library = runtime::load(&path)?;
        let mut modules = lock(&self.modules);
        if let Some(found) = modules.find(module, entry) {
            return found;
        }
        modules.add(module, library, &path)?;
        match modules.find(module, entry) {
            Some(found) => found,
            None => Err(Error::kernel(entry, format!("{module} is not loaded"))),
        }
    }

    unsafe fn launch(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit_launch(function, launch, arguments, false) }
    }

    unsafe fn launch_cooperative(&self, function: Function, launch: Launch, arguments: &[&[u8]]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { self.submit_launch(function, launch, arguments, true) }
    }

    fn cooperative_blocks(&self, _: Function, _: Launch) -> Result<u32> {
        // ThreadSanitizer keeps at most 8,128 threads apart, and each fiber is one.
        Ok(if self.compiler.sanitizer() == Some(Sanitizer::Thread) { MAX_COOPERATIVE / 4 } else { MAX_COOPERATIVE })
    }

    unsafe fn matmul(&self, _product: &Matmul) -> Result<bool> {
        Ok(false)
    }

    fn synchronize(&self) -> Result<()> {
        self.outside_capture("synchronising").map(|_| ())
    }

    fn record(&self) -> Result<Event> {
        let _stream = self.outside_capture("an event")?;
        // Launches end before they return, so that an event is no more than the host's clock.
        Ok(Event(self.started.elapsed().as_nanos() as usize))
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64> {
        Ok((to.0 as f64 - from.0 as f64) / 1e6)
    }

    fn begin_capture(&self) -> Result<bool> {
        self.outside_capture("another capture")?.capturing = Some(Vec::new());
        Ok(true)
    }

    fn end_capture(&self) -> Result<Captured> {
        let mut stream = lock(&self.stream);
        let Some(list) = stream.capturing.take() else {
            return Err(Error::device("emulator", "no capture has begun", "call begin_capture first"));
        };
        stream.captured.push(Arc::new(list));
        Ok(Captured(stream.captured.len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<()> {
        let stream = self.outside_capture("a replay")?;
        let Some(list) = stream.captured.get(captured.0).cloned() else {
            return Err(Error::device(
                "emulator",
                format!("{captured:?} does not exist"),
                "replay what end_capture gave",
            ));
        };
        for work in list.iter() {
            // SAFETY: who recorded it promised that its memory is live whenever it is replayed.
            unsafe { self.perform(work)? };
        }
        Ok(())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let path = "/proc/meminfo";
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e.to_string(), "mount /proc"))?;
        let kilobytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<usize>().ok()
        };
        match (kilobytes("MemAvailable:"), kilobytes("MemTotal:")) {
            (Some(free), Some(total)) => Ok((free << 10, total << 10)),
            _ => Err(Error::file(path, "names neither MemAvailable nor MemTotal", "use --device cpu")),
        }
    }
}
