//! Fetches NVRTC and nvdisasm from the Python package index into our own cache folder: no toolkit, no root, no environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{cache, library, nvdisasm};
use crate::error::{Error, Result};

/// The package, and the versions that the kernels are proven with.
const NVRTC: &str = "nvidia-cuda-nvrtc>=13.0,<13.1";
/// This one reads what that one writes, and knows more instructions than its twin of 13.0.
const NVDISASM: &str = "nvidia-cuda-nvdisasm>=13.2,<13.3";

/// Where [`install_nvrtc`] puts it; laid out like a `site-packages` folder.
pub(super) fn folder() -> Option<PathBuf> {
    cache::root().ok().map(|root| root.join("nvrtc"))
}

/// Where [`install_nvdisasm`] puts it, laid out likewise.
pub(super) fn disassembler_folder() -> Option<PathBuf> {
    cache::root().ok().map(|root| root.join("nvdisasm"))
}

/// Fetches NVRTC (90 MB) with `python3 -m pip` and returns its folder; does nothing where it was fetched before.
pub fn install_nvrtc() -> Result<PathBuf> {
    let installed = |folder: &Path| {
        let found = library::find("nvrtc", &library::below_site_packages(folder)).into_iter().next()?;
        found.path.parent().map(Path::to_owned)
    };
    let remedy = "install Python 3 with pip and see that it reaches a package index, or copy libnvrtc.so.13 and \
                  libnvrtc-builtins.so.13.0 from another machine and set ATTN_NVRTC to their folder";
    install(NVRTC, &cache::root()?.join("nvrtc"), &installed, remedy)
}

/// Fetches nvdisasm (5 MB) with `python3 -m pip` and returns the program; does nothing where it was fetched before.
pub fn install_nvdisasm() -> Result<PathBuf> {
    let installed = |folder: &Path| Some(nvdisasm::in_site_packages(folder)).filter(|program| program.is_file());
    let remedy = "install Python 3 with pip and see that it reaches a package index, or install the CUDA toolkit";
    install(NVDISASM, &cache::root()?.join("nvdisasm"), &installed, remedy)
}

/// Fetches a package into a folder of its own. `installed` finds in such a folder what it was fetched for.
fn install(
    package: &str,
    folder: &Path,
    installed: &dyn Fn(&Path) -> Option<PathBuf>,
    remedy: &str,
) -> Result<PathBuf> {
    if let Some(found) = installed(folder) {
        return Ok(found);
    }
    let root = folder.parent().unwrap_or(Path::new("."));
    let write = |e: std::io::Error| Error::file(root, e.to_string(), "set ATTN_CACHE to a folder that can be written");
    std::fs::create_dir_all(root).map_err(write)?;
    // Into a temporary folder, then renamed: an interrupted download leaves nothing that looks like a library.
    let temporary = tempfile::tempdir_in(root).map_err(write)?;
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--no-input", "--quiet"])
        .args(["--only-binary", ":all:"])
        .arg("--target")
        .arg(temporary.path())
        .arg(package)
        .output()
        .map_err(|e| Error::argument("--install", format!("python3 does not start: {e}"), remedy))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = last[last.len().saturating_sub(4)..].join("\n");
        return Err(Error::argument("--install", format!("pip could not fetch {package}:\n{last}\n"), remedy));
    }
    if installed(temporary.path()).is_none() {
        return Err(Error::argument("--install", format!("{package} holds nothing for this machine"), remedy));
    }
    // Another process may have been faster, or a broken installation may stand there.
    if installed(folder).is_none() {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::rename(temporary.path(), folder).map_err(write)?;
    }
    installed(folder).ok_or_else(|| Error::file(folder, "the installation vanished", "run the command again"))
}
