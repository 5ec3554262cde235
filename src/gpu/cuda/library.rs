//! Where NVIDIA's shared libraries lie on this machine. They come from a toolkit, from a Python package
//! (a user's PyTorch brings them along) or from our own cache, and mostly not on the loader's path.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use libloading::Library;

/// A library file and the major version in its name: 13 for `libnvrtc.so.13`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub path: PathBuf,
    pub major: u32,
}

/// Below a `site-packages` folder: CUDA 13's one folder for everything, and the folders by package before it.
const IN_SITE_PACKAGES: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib"];

/// The library folders below a `site-packages` (or `pip install --target`) folder.
pub(super) fn below_site_packages(folder: &Path) -> Vec<PathBuf> {
    IN_SITE_PACKAGES.iter().map(|f| folder.join(f)).filter(|f| f.is_dir()).collect()
}

/// The loader's own folders and the toolkit's.
pub(super) fn system_folders() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> =
        std::env::var_os("LD_LIBRARY_PATH").map(|paths| std::env::split_paths(&paths).collect()).unwrap_or_default();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        list.extend(std::env::var_os(name).map(|home| Path::new(&home).join("lib64")));
    }
    list.push("/usr/local/cuda/lib64".into());
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    list.extend([multiarch.into(), "/usr/lib64".into()]);
    // An empty entry of LD_LIBRARY_PATH means the current folder: nothing that we want to load from.
    list.retain(|folder| folder.is_absolute());
    list
}

/// The library folders in the Python installation on PATH. Asks the interpreter once, some 30 ms.
pub(super) fn python_folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let ask = |python: &str| {
            let print = ["-c", "import sys; print('\\n'.join(sys.path))"];
            let output = Command::new(python).args(print).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let Some(listing) = ask("python3").or_else(|| ask("python")) else { return Vec::new() };
        listing.lines().filter(|l| !l.is_empty()).flat_map(|l| below_site_packages(Path::new(l))).collect()
    })
}

/// The files `lib{stem}.so.MAJOR…` in these folders, in the folders' order, one per folder and major version.
pub(super) fn find(stem: &str, folders: &[PathBuf]) -> Vec<Found> {
    let prefix = format!("lib{stem}.so.");
    let mut list: Vec<Found> = Vec::new();
    for folder in folders {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .map(|entries| entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
            .unwrap_or_default();
        names.sort();
        let start = list.len();
        for name in names {
            let Some(version) = name.strip_prefix(&prefix) else { continue };
            let Some(major) = version.split('.').next().and_then(|m| m.parse().ok()) else { continue };
            if !list[start..].iter().any(|found| found.major == major) {
                list.push(Found { path: folder.join(&name), major });
            }
        }
    }
    list
}

/// Puts what the GPU's driver supports first, newest first, and keeps the order otherwise.
pub(super) fn prefer_supported(list: &mut [Found], driver_major: Option<u32>) {
    let supported = |found: &Found| driver_major.is_none_or(|major| found.major <= major);
    list.sort_by_key(|found| (!supported(found), std::cmp::Reverse(found.major)));
}

/// Loads a library so that later loads by its plain name, ours or cudarc's, find this very file.
pub(super) fn open(path: &OsStr) -> Result<Library, libloading::Error> {
    #[cfg(unix)]
    {
        use libloading::os::unix;
        // SAFETY: only NVIDIA's own libraries are opened here; their initialisers have no preconditions.
        unsafe { unix::Library::open(Some(path), unix::RTLD_LAZY | unix::RTLD_GLOBAL) }.map(Library::from)
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as above.
        unsafe { Library::new(path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_versions_and_prefers_what_the_driver_supports() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["libnvrtc.so.13", "libnvrtc.so.12.4.127", "libnvrtc.so.12", "libnvrtc-builtins.so.13.0"];
        for name in names.iter().chain(&["libnvrtc.alt.so.13", "libnvrtc.so"]) {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let mut list = find("nvrtc", &[folder.path().to_owned(), "/nowhere".into()]);
        assert_eq!(list.iter().map(|f| f.major).collect::<Vec<_>>(), [12, 13]);
        prefer_supported(&mut list, None);
        assert_eq!(list[0].major, 13);
        prefer_supported(&mut list, Some(12));
        assert_eq!(list[0].path, folder.path().join("libnvrtc.so.12"));
    }
}
