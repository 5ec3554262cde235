//! Fetches NVRTC from the Python package index into our own cache folder: no toolkit, no root, no environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{cache, library};
use crate::error::{Error, Result};

/// The package, and the versions that the kernels are proven with.
const PACKAGE: &str = "nvidia-cuda-nvrtc>=13.0,<13.1";

/// Where [`install_nvrtc`] puts it; laid out like a `site-packages` folder.
pub(super) fn folder() -> Option<PathBuf> {
    cache::root().ok().map(|root| root.join("nvrtc"))
}

/// The folder of an installed library, if it is there.
fn installed(folder: &Path) -> Option<PathBuf> {
    let found = library::find("nvrtc", &library::below_site_packages(folder)).into_iter().next()?;
    found.path.parent().map(Path::to_owned)
}

/// Fetches NVRTC (90 MB) with `python3 -m pip` and returns its folder; does nothing where it was fetched before.
pub fn install_nvrtc() -> Result<PathBuf> {
    let folder = cache::root()?.join("nvrtc");
    if let Some(library) = installed(&folder) {
        return Ok(library);
    }
    let root = folder.parent().unwrap_or(Path::new("."));
    let write = |e: std::io::Error| Error::file(root, e.to_string(), "set ATTN_CACHE to a folder that can be written");
    std::fs::create_dir_all(root).map_err(write)?;
    // Into a temporary folder, then renamed: an interrupted download leaves nothing that looks like a library.
    let temporary = tempfile::tempdir_in(root).map_err(write)?;
    let remedy = "install Python 3 with pip and see that it reaches a package index, or copy libnvrtc.so.13 and \
                  libnvrtc-builtins.so.13.0 from another machine and set ATTN_NVRTC to their folder";
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--no-input", "--quiet"])
        .args(["--only-binary", ":all:"])
        .arg("--target")
        .arg(temporary.path())
        .arg(PACKAGE)
        .output()
        .map_err(|e| Error::argument("--install", format!("python3 does not start: {e}"), remedy))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = last[last.len().saturating_sub(4)..].join("\n");
        return Err(Error::argument("--install", format!("pip could not fetch {PACKAGE}:\n{last}\n"), remedy));
    }
    if installed(temporary.path()).is_none() {
        return Err(Error::argument("--install", format!("{PACKAGE} holds no libnvrtc.so for this machine"), remedy));
    }
    // Another process may have been faster, or a broken installation may stand there.
    if installed(&folder).is_none() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(temporary.path(), &folder).map_err(write)?;
    }
    installed(&folder).ok_or_else(|| Error::file(&folder, "the installation vanished", "run the command again"))
}
