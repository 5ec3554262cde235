//! nvdisasm: NVIDIA's disassembler, found on this machine. Needs no GPU.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sass::{self, Loop};
use super::{install, library};
use crate::error::{Error, Result};

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvdisasm {
    path: PathBuf,
}

impl Nvdisasm {
    /// The one that `attn kernels report --install` fetched, else Python's, the toolkit's, or the one on PATH.
    ///
    /// # Errors
    /// If there is none that starts.
    pub fn find() -> Result<Nvdisasm> {
        let mut list: Vec<PathBuf> = install::disassembler_folder().map(|f| in_site_packages(&f)).into_iter().collect();
        // A library folder's neighbour, both in site-packages (lib) and in the toolkit (lib64).
        let folders = library::system_folders().into_iter().chain(library::python_folders().iter().cloned());
        list.extend(folders.filter_map(|folder| Some(folder.parent()?.join("bin/nvdisasm"))).filter(|p| p.is_file()));
        list.push("nvdisasm".into());
        list.into_iter().find(|path| starts(path)).map(|path| Nvdisasm { path }).ok_or_else(|| {
            let remedy = "add --install to fetch it with Python's pip, or install the CUDA toolkit";
            Error::argument("--sass", "nvdisasm, which reads compiled kernels, is not on this machine", remedy)
        })
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The main loop of every entry in a cubin.
    ///
    /// # Errors
    /// If the program refuses the cubin, as an old one does a new architecture's.
    pub fn main_loops(&self, cubin: &[u8]) -> Result<BTreeMap<String, Loop>> {
        let temporary = |e: std::io::Error| {
            Error::file(std::env::temp_dir(), format!("cannot be written: {e}"), "set TMPDIR to a folder that can")
        };
        // It reads files only.
        let mut file = tempfile::Builder::new().suffix(".cubin").tempfile().map_err(temporary)?;
        file.write_all(cubin).and_then(|()| file.flush()).map_err(temporary)?;
        let refused = |why: String| Error::file(&self.path, why, "use nvdisasm 13.2 or later: --install fetches it");
        let output = Command::new(&self.path)
            .arg("--print-code")
            .arg(file.path())
            .stdin(Stdio::null())
            .output()
            .map_err(|e| refused(format!("does not start: {e}")))?;
        if !output.status.success() {
            return Err(refused(format!("failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        Ok(sass::main_loops(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Where the Python package has it.
pub(super) fn in_site_packages(folder: &Path) -> PathBuf {
    folder.join("nvidia/cu13/bin/nvdisasm")
}

fn starts(path: &Path) -> bool {
    let mut command = Command::new(AsRef::<OsStr>::as_ref(path));
    let asked = command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}
