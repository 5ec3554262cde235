//! NVRTC: CUDA's compiler as a library, found at run time. Needs no GPU.
//!
//! Its functions are looked up here rather than through cudarc: cudarc picks the first library that the loader
//! offers and panics where it finds none, while this must choose by the driver's version and say what is missing.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libloading::Library;

use super::arch::Arch;
use super::sass::Loop;
use super::{library, usage};
use crate::error::{Error, Result};
use crate::gpu::kernel::{HEADERS, Module};

pub use super::usage::Usage;

/// Options of every compilation, besides the architecture and the module's defines. Fused multiply-add is
/// rounding once instead of twice; fast-math is never on: it would flush denormals and drop NaN.
pub(super) const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=true"];

/// What to do where NVRTC is missing.
const REMEDY: &str = "run `attn kernels build --install` (needs Python with pip), or `pip install nvidia-cuda-nvrtc`, \
                      or install the CUDA toolkit 12 or 13, or set ATTN_NVRTC to the folder that holds libnvrtc.so";

type Program = *mut c_void;
type Strings = *const *const c_char;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;

/// The loaded compiler. Thread-safe: several modules can be compiled at once.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    archs: Vec<u32>,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    log: (Size, Text),
    cubin: (Size, Text),
    ptx: (Size, Text),
    // The functions above point into these; the builtins are found by NVRTC under their plain name.
    _libraries: Vec<Library>,
}

/// What a compilation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The cubin, or PTX with its closing zero: what `cuModuleLoadData` takes.
    pub code: Vec<u8>,
    /// What it was compiled for. Not what was asked for where NVRTC does not know that architecture.
    pub target: Arch,
    /// Whether `code` is PTX, which the GPU's driver has still to compile.
    pub ptx: bool,
    /// The compiler's remarks; empty where it was found in the cache.
    pub log: String,
    /// Whether it was found in the cache.
    pub cached: bool,
}

/// What a compilation would take on the GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// By entry; empty for PTX, whose registers the GPU's driver assigns.
    pub usage: Vec<Usage>,
    /// Warnings of the compiler and of ptxas.
    pub warnings: Vec<String>,
    /// Each entry's main loop, where it was asked for and there is a cubin to read.
    pub loops: Option<BTreeMap<String, Loop>>,
    /// As in [`Compiled`].
    pub target: Arch,
    /// As in [`Compiled`].
    pub ptx: bool,
    /// As in [`Compiled`].
    pub cached: bool,
}

impl Nvrtc {
    /// The one of this process: loaded at the first call. Of several, the newest that the GPU's driver supports.
    pub fn get() -> Result<&'static Nvrtc> {
        // A success stays; a failure is looked into again, for `--install` may have mended it.
        static LOADED: Mutex<Option<&'static Nvrtc>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if loaded.is_none() {
            *loaded = Some(Box::leak(Box::new(Nvrtc::find(super::devices::driver_major())?)));
        }
        Ok(loaded.expect("set above"))
    }

    fn find(driver_major: Option<u32>) -> Result<Nvrtc> {
        let mut failures = Vec::new();
        let mut try_all = |mut list: Vec<library::Found>| {
            library::prefer_supported(&mut list, driver_major);
            list.into_iter().find_map(|found| Nvrtc::load(&found.path).map_err(|e| failures.push(e)).ok())
        };
        if let Some(folder) = std::env::var_os("ATTN_NVRTC") {
            let folder = PathBuf::from(folder);
            if let Some(nvrtc) = try_all(library::find("nvrtc", std::slice::from_ref(&folder))) {
                return Ok(nvrtc);
            }
            let problem =
                if failures.is_empty() { "holds no libnvrtc.so.12 or .13".into() } else { failures.join("; ") };
            return Err(Error::file(folder, problem, "correct or unset ATTN_NVRTC"));
        }
        let mut folders = super::install::folder().map(|f| library::below_site_packages(&f)).unwrap_or_default();
        folders.extend(library::system_folders());
        let mut list = library::find("nvrtc", &folders);
        if !list.iter().any(|found| driver_major.is_none_or(|major| found.major <= major)) {
            list.extend(library::find("nvrtc", library::python_folders()));
        }
        // Last, whatever the loader's own cache knows.
        let plain = |major| library::Found { path: format!("libnvrtc.so.{major}").into(), major };
        if let Some(nvrtc) = try_all(list).or_else(|| try_all([13, 12].map(plain).into())) {
            return Ok(nvrtc);
        }
        // Failures of the plain names say only that they are not there.
        let problem = match failures.iter().find(|f| f.starts_with('/')) {
            Some(failure) => format!("the CUDA compiler library (NVRTC) does not load: {failure}"),
            None => "the CUDA compiler library (NVRTC) is not on this machine".into(),
        };
        Err(Error::device("cuda", problem, REMEDY))
    }

    /// Loads this very file, and its builtins beside it.
    pub(super) fn load(path: &Path) -> std::result::Result<Nvrtc, String> {
        let fail = |e: libloading::Error| format!("{}: {e}", path.display());
        let mut libraries = Vec::new();
        if let Some(folder) = path.parent() {
            for found in library::find("nvrtc-builtins", &[folder.to_owned()]) {
                libraries.push(library::open(found.path.as_os_str()).map_err(fail)?);
            }
        }
        let library = library::open(path.as_os_str()).map_err(fail)?;
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.2; nvrtcResult is a C enum. The pointers
        // are kept no longer than the library, which is stored beside them.
        unsafe {
            let symbol = |name: &str| library.get::<Text>(name).map(|symbol| *symbol);
            let size_and_text = |name: &str| -> std::result::Result<(Size, Text), libloading::Error> {
                Ok((*library.get::<Size>(format!("{name}Size"))?, symbol(name)?))
            };
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                *library.get("nvrtcVersion").map_err(fail)?;
            let count: unsafe extern "C" fn(*mut c_int) -> c_int =
                *library.get("nvrtcGetNumSupportedArchs").map_err(fail)?;
            let supported: unsafe extern "C" fn(*mut c_int) -> c_int =
                *library.get("nvrtcGetSupportedArchs").map_err(fail)?;
            let (mut major, mut minor, mut number) = (0, 0, 0);
            let mut status = version(&mut major, &mut minor) | count(&mut number);
            let mut archs = vec![0; number.max(0) as usize];
            status |= supported(archs.as_mut_ptr());
            if status != 0 || major < 12 {
                return Err(format!("{}: NVRTC {major}.{minor} (status {status}), 12 or 13 is needed", path.display()));
            }
            Ok(Nvrtc {
                path: path.to_owned(),
                version: (major as u32, minor as u32),
                archs: archs.into_iter().map(|a| a as u32).collect(),
                create: *library.get("nvrtcCreateProgram").map_err(fail)?,
                destroy: *library.get("nvrtcDestroyProgram").map_err(fail)?,
                compile: *library.get("nvrtcCompileProgram").map_err(fail)?,
                error_string: *library.get("nvrtcGetErrorString").map_err(fail)?,
                log: size_and_text("nvrtcGetProgramLog").map_err(fail)?,
                cubin: size_and_text("nvrtcGetCUBIN").map_err(fail)?,
                ptx: size_and_text("nvrtcGetPTX").map_err(fail)?,
                _libraries: {
                    libraries.push(library);
                    libraries
                },
            })
        }
    }

    /// Such as (13, 0).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The library file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What code for `arch` is compiled for, and whether to PTX: where this NVRTC does not know `arch`, PTX of the
    /// highest plain architecture below it that it does know, which the GPU's driver compiles.
    pub fn target(&self, arch: Arch) -> Result<(Arch, bool)> {
        if self.archs.contains(&arch.sm) {
            return Ok((arch, false));
        }
        match self.archs.iter().filter(|&&sm| sm < arch.sm).max() {
            Some(&sm) => Ok((Arch { sm, specific: false }, true)),
            None => {
                let problem = format!("NVRTC {}.{} no longer compiles for {arch}", self.version.0, self.version.1);
                Err(Error::device("cuda", problem, "install an older NVRTC (12) and set ATTN_NVRTC to its folder"))
            }
        }
    }

    fn run(&self, module: &Module, arch: Arch, verbose: bool) -> Result<Compiled> {
        let (target, ptx) = self.target(arch)?;
        let fail = |problem: String| Error::kernel(format!("{module} for {target}"), problem);
        let text = |text: &str| CString::new(text).map_err(|_| fail("a zero byte in the source".into()));
        let texts = |list: &mut dyn Iterator<Item = String>| list.map(|s| text(&s)).collect::<Result<Vec<_>>>();

        let (source, name) = (text(module.text)?, text(&format!("{}.cu", module.source))?);
        let header_texts = texts(&mut HEADERS.iter().map(|(_, text)| text.to_string()))?;
        let header_names = texts(&mut HEADERS.iter().map(|(name, _)| name.to_string()))?;
        let mut options = options(module, target, ptx);
        if verbose && !ptx {
            options.push("--ptxas-options=-v".into());
        }
        let options = texts(&mut options.into_iter())?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (header_texts, header_names, options) =
            (pointers(&header_texts), pointers(&header_names), (pointers(&options), options));

        let mut program = Handle { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: all strings live to the end of this function, the arrays have the lengths that are passed,
        // and `program` is destroyed by its guard.
        let status = unsafe {
            (self.create)(
                &mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                header_names.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        if status != 0 {
            return Err(fail(self.describe(status)));
        }
        // SAFETY: as above; the program was created.
        let status = unsafe { (self.compile)(program.program, options.0.len() as c_int, options.0.as_ptr()) };
        let log = program.text(self.log).map_err(&fail)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
        if status != 0 {
            return Err(fail(format!("{}\n{log}", self.describe(status))));
        }
        let code = program.text(if ptx { self.ptx } else { self.cubin }).map_err(&fail)?;
        Ok(Compiled { code, target, ptx, log, cached: false })
    }

    fn describe(&self, status: c_int) -> String {
        // SAFETY: returns a static string for every number.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("NVRTC status {status}");
        }
        // SAFETY: not null, zero-terminated, static.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// The options of a compilation: they are part of the cache's key.
pub(super) fn options(module: &Module, target: Arch, ptx: bool) -> Vec<String> {
    let mut list: Vec<String> = OPTIONS.map(String::from).into();
    list.push(target.option(ptx));
    list.extend(module.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    list
}

struct Handle<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Handle<'_> {
    /// One of the program's texts: its log, cubin or PTX.
    fn text(&self, (size, text): (Size, Text)) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program was created and compiled.
        let status = unsafe { size(self.program, &mut bytes) };
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer has the size that the library asked for.
        let status = if status == 0 { unsafe { text(self.program, buffer.as_mut_ptr().cast()) } } else { status };
        if status == 0 { Ok(buffer) } else { Err(self.nvrtc.describe(status)) }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created once, destroyed once; nothing refers to it afterwards.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

/// Compiles to a cubin, or to PTX where this NVRTC does not know the architecture. An error carries the
/// compiler's log. Not cached: see [`super::cache::Cache::compile`].
pub fn compile(module: &Module, arch: Arch, nvrtc: &Nvrtc) -> Result<Compiled> {
    nvrtc.run(module, arch, false)
}

/// Compiles once more, verbosely, for what the kernels take; with the code, which says what they do. Verbosity changes
/// a cubin's bytes, though no instruction, hence apart.
pub fn inspect(module: &Module, arch: Arch, nvrtc: &Nvrtc) -> Result<(Inspected, Vec<u8>)> {
    let compiled = nvrtc.run(module, arch, true)?;
    let (usage, warnings) = usage::parse(&compiled.log);
    let (target, ptx) = (compiled.target, compiled.ptx);
    Ok((Inspected { usage, warnings, loops: None, target, ptx, cached: false }, compiled.code))
}
