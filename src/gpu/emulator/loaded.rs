//! What is loaded: modules, their kernels, and the arguments of a launch.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use libloading::Library;

use super::runtime::Entry;
use crate::error::{Error, Result};
use crate::gpu::driver::Function;
use crate::gpu::kernel::Module;

/// The modules in this process.
#[derive(Default)]
pub struct Modules {
    /// By the address of the source's text, because hashing the text at every launch would cost more than the launch;
    /// then by the defines.
    loaded: HashMap<(&'static str, usize, usize), Vec<Loaded>>,
    /// Index by `Function`.
    pub kernels: Vec<Kernel>,
    libraries: Vec<Library>,
}

struct Loaded {
    defines: Vec<(&'static str, String)>,
    /// The functions of `entries`, in this order.
    entries: &'static [&'static str],
    functions: Vec<Function>,
}

impl Modules {
    /// Where a module is filed.
    fn place(module: &Module) -> (&'static str, usize, usize) {
        (module.source, module.text.as_ptr() as usize, module.text.len())
    }

    /// Nothing where the module is not loaded; an error where it is, and has no such entry.
    pub fn find(&self, module: &Module, entry: &str) -> Option<Result<Function>> {
        let same = |l: &&Loaded| l.entries == module.entries && l.defines == module.defines;
        let loaded = self.loaded.get(&Self::place(module))?.iter().find(same)?;
        let missing = || Error::kernel(entry, format!("{module} has no such entry, but {:?}", module.entries));
        let place = loaded.entries.iter().position(|&name| name == entry);
        Some(place.map(|i| loaded.functions[i]).ok_or_else(missing))
    }

    /// Files a library that was just loaded.
    pub fn add(&mut self, module: &Module, library: Library, path: &Path) -> Result<()> {
        let mut functions = Vec::new();
        for &name in module.entries {
            let kernel = Kernel {
                name: format!("{name} ({module})").into(),
                entry: super::runtime::entry(&library, path, name)?,
            };
            functions.push(Function(self.kernels.len()));
            self.kernels.push(kernel);
        }
        let loaded = Loaded { defines: module.defines.clone(), entries: module.entries, functions };
        self.loaded.entry(Self::place(module)).or_default().push(loaded);
        self.libraries.push(library);
        Ok(())
    }
}

/// An entry point.
#[derive(Clone)]
pub struct Kernel {
    /// With its module, for messages.
    pub name: Arc<str>,
    pub entry: *const Entry,
}

// SAFETY: an entry is constant data of a library that stays loaded as long as the emulator.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The arguments of a launch, each at an aligned place of its own.
pub struct Arguments {
    storage: Vec<u128>,
    starts: Vec<usize>,
}

impl Arguments {
    pub fn new(arguments: &[&[u8]]) -> Self {
        let mut starts = Vec::with_capacity(arguments.len());
        let mut words = 0;
        for argument in arguments {
            starts.push(words);
            words += argument.len().div_ceil(16);
        }
        let mut storage = vec![0u128; words];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut storage);
        for (argument, start) in arguments.iter().zip(&starts) {
            bytes[start * 16..start * 16 + argument.len()].copy_from_slice(argument);
        }
        Arguments { storage, starts }
    }

    pub fn pointers(&self) -> Vec<*const c_void> {
        self.starts.iter().map(|&start| self.storage[start..].as_ptr().cast()).collect()
    }
}
