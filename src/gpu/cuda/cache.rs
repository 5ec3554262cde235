//! Compiled kernels on disk: the cache that fills itself, and folders made by `attn kernels build`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::arch::Arch;
use super::nvdisasm::Nvdisasm;
use super::nvrtc::{self, Compiled, Inspected, Nvrtc, Usage};
use super::sass::{self, Loop};
use crate::error::{Error, Result};
use crate::gpu::kernel::{HEADERS, Module};

/// The folder of everything that can be made again: `$ATTN_CACHE`, else `attn-engine` in the user's cache folder.
pub fn root() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("ATTN_CACHE").filter(|f| !f.is_empty()) {
        return Ok(folder.into());
    }
    match dirs::cache_dir() {
        Some(folder) => Ok(folder.join("attn-engine")),
        None => Err(Error::argument("ATTN_CACHE", "not set, and there is no home folder", "set it to a folder")),
    }
}

/// The name of a compiled module's file. `version` is the compiler's where the file must be from this very
/// compiler (the cache), `None` where any will do (a prebuilt folder, used on machines without a compiler).
pub fn file_name(module: &Module, arch: Arch, ptx: bool, version: Option<(u32, u32)>) -> String {
    let mut hash = Sha256::new();
    // Lengths first, so that no two lists of texts run together into the same bytes.
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    text(module.source);
    text(module.text);
    HEADERS.iter().for_each(|(name, body)| {
        text(name);
        text(body);
    });
    nvrtc::options(module, arch, ptx).iter().for_each(|option| text(option));
    if let Some((major, minor)) = version {
        text(&format!("nvrtc {major}.{minor}"));
    }
    let digits = hash.finalize().iter().take(12).fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    format!("{}-{arch}-{digits}.{}", module.source, if ptx { "ptx" } else { "cubin" })
}

/// Writes a file that is either whole or not there: into a temporary one, then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    // Temporary files are their owner's alone by default; these are for whomever the umask lets read.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// A folder of compiled modules, shared by all processes of a user.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    usage: Vec<Usage>,
    warnings: Vec<String>,
    /// Counted by this version of the analysis.
    #[serde(default)]
    loops: Option<(u32, BTreeMap<String, Loop>)>,
}

impl Cache {
    /// The user's.
    pub fn standard() -> Result<Cache> {
        Ok(Cache::below(&root()?))
    }

    /// In `cubin/` below this folder.
    pub fn below(root: &Path) -> Cache {
        Cache { folder: root.join("cubin") }
    }

    /// The module's code, compiled where it is not there yet.
    pub fn compile(&self, module: &Module, arch: Arch, nvrtc: &Nvrtc) -> Result<Compiled> {
        let (target, ptx) = nvrtc.target(arch)?;
        let path = self.path(module, target, ptx, nvrtc);
        if let Ok(code) = std::fs::read(&path) {
            return Ok(Compiled { code, target, ptx, log: String::new(), cached: true });
        }
        let compiled = nvrtc::compile(module, arch, nvrtc)?;
        // A full or read-only disk costs time at the next run, no more.
        let _ = write_whole(&path, &compiled.code);
        Ok(compiled)
    }

    /// What the module takes on the GPU, and with a disassembler what its main loops do; asked of the compiler where
    /// it is not there yet.
    pub fn inspect(
        &self,
        module: &Module,
        arch: Arch,
        nvrtc: &Nvrtc,
        disassembler: Option<&Nvdisasm>,
    ) -> Result<Inspected> {
        let (target, ptx) = nvrtc.target(arch)?;
        let path = self.path(module, target, ptx, nvrtc).with_extension("json");
        let stored = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
        if let Some(Stored { usage, warnings, loops }) = stored {
            let loops = loops.filter(|(version, _)| *version == sass::ANALYSIS).map(|(_, loops)| loops);
            if loops.is_some() || disassembler.is_none() || ptx {
                return Ok(Inspected { usage, warnings, loops, target, ptx, cached: true });
            }
        }
        let (mut inspected, code) = nvrtc::inspect(module, arch, nvrtc)?;
        if let Some(disassembler) = disassembler.filter(|_| !ptx) {
            inspected.loops = Some(disassembler.main_loops(&code)?);
        }
        let stored = Stored {
            usage: inspected.usage.clone(),
            warnings: inspected.warnings.clone(),
            loops: inspected.loops.clone().map(|loops| (sass::ANALYSIS, loops)),
        };
        if let Ok(bytes) = serde_json::to_vec(&stored) {
            let _ = write_whole(&path, &bytes);
        }
        Ok(inspected)
    }

    /// Drops a module's code: it was read, and the GPU's driver refused it.
    pub fn forget(&self, module: &Module, arch: Arch, nvrtc: &Nvrtc) {
        if let Ok((target, ptx)) = nvrtc.target(arch) {
            let _ = std::fs::remove_file(self.path(module, target, ptx, nvrtc));
        }
    }

    fn path(&self, module: &Module, target: Arch, ptx: bool, nvrtc: &Nvrtc) -> PathBuf {
        self.folder.join(file_name(module, target, ptx, Some(nvrtc.version())))
    }
}

/// The module's code in a folder made by `attn kernels build`, for a device of this architecture.
pub fn prebuilt(folder: &Path, module: &Module, arch: Arch) -> Option<Compiled> {
    let kinds = arch.candidates().into_iter().flat_map(|target| [(target, false), (target, true)]);
    kinds.into_iter().find_map(|(target, ptx)| {
        let code = std::fs::read(folder.join(file_name(module, target, ptx, None))).ok()?;
        Some(Compiled { code, target, ptx, log: String::new(), cached: true })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernel::Source;

    fn module() -> Module {
        // SAFETY: the source is never compiled or launched.
        const SOURCE: Source = unsafe { Source::new("twice", "// nothing", &["twice"]) };
        Module::new(&SOURCE)
    }

    #[test]
    fn names_depend_on_all_that_goes_into_the_code() {
        let arch = Arch::ALL[1];
        let name = |m: &Module, a, v| file_name(m, a, false, v);
        let plain = name(&module(), arch, None);
        assert!(plain.starts_with("twice-sm_80-") && plain.ends_with(".cubin"), "{plain}");
        let others = [
            name(&module().define("N", 1), arch, None),
            name(&module().define("N", 2), arch, None),
            name(&module(), Arch::ALL[2], None),
            name(&module(), arch, Some((13, 0))),
            name(&module(), arch, Some((12, 9))),
            name(&Module { text: "// something", ..module() }, arch, None),
            file_name(&module(), arch, true, None),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(!others[..i].contains(other) && *other != plain, "{other}");
        }
    }

    #[test]
    fn prebuilt_code_is_found_for_devices_that_can_run_it() {
        let folder = tempfile::tempdir().unwrap();
        let sm_80 = Arch::ALL[1];
        write_whole(&folder.path().join(file_name(&module(), sm_80, false, None)), b"code").unwrap();
        let found = |major, minor| prebuilt(folder.path(), &module(), Arch::from_capability(major, minor));
        assert_eq!(found(8, 0).unwrap().code, b"code");
        assert_eq!(found(8, 9).unwrap().target, sm_80);
        assert!(found(9, 0).is_none() && found(7, 5).is_none());
    }
}
