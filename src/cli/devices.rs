//! `attn devices`: what is here to compute on, and how to get what is not.

use std::process::{Command, Stdio};

use crate::gpu::cuda::{CudaDevice, devices};
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Cpu {
    name: String,
    threads: usize,
    simd: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Compiler {
    command: String,
    version: String,
}

#[derive(Debug, Serialize)]
struct Here {
    cpu: Cpu,
    /// The emulator's compiler.
    emulator: Option<Compiler>,
    cuda: Vec<CudaDevice>,
    /// What is missing and how to get it.
    missing: Vec<String>,
}

/// Prints it to stdout, for people or as JSON.
pub fn run(json: bool) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    let emulator = compiler();
    if emulator.is_none() {
        missing.push(
            "emulator: no C++ compiler on PATH; install one (Debian and Ubuntu: apt install g++; macOS: \
             xcode-select --install), or set CXX"
                .to_owned(),
        );
    }
    let cuda = devices().unwrap_or_else(|error| {
        missing.push(error.to_string());
        Vec::new()
    });
    if cuda.iter().any(|device| device.nvrtc.is_none()) {
        missing.push(
            "cuda: no NVRTC to compile kernels; run `attn kernels build --install`, or make them elsewhere with \
             `attn kernels build` and set ATTN_KERNELS to that folder"
                .to_owned(),
        );
    }
    if cuda.iter().any(|device| !device.cublaslt) {
        missing.push("cuda: no cuBLASLt, large matrix products are slower; `pip install nvidia-cublas`".to_owned());
    }
    let here = Here { cpu: cpu(), emulator, cuda, missing };
    if json {
        super::print_line(serde_json::to_string_pretty(&here)?)?;
    } else {
        super::print(text(&here))?;
    }
    Ok(())
}

fn text(here: &Here) -> String {
    let Here { cpu, emulator, cuda, missing } = here;
    let simd = if cpu.simd.is_empty() { "no SIMD".into() } else { cpu.simd.join(" ") };
    let mut lines = vec![format!("cpu        {}, {} threads, {simd}", cpu.name, cpu.threads)];
    lines.extend(emulator.iter().map(|c| format!("emulator   {} ({})", c.command, c.version)));
    for device in cuda {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        let nvrtc =
            device.nvrtc.as_ref().map_or("no NVRTC".into(), |(version, path)| format!("NVRTC {version} ({path})"));
        lines.push(format!(
            "cuda:{:<5} {}, sm_{}, {} multiprocessors, {:.1} of {:.1} GiB free, driver for CUDA {}, {nvrtc}, {}",
            device.index,
            device.name,
            device.sm,
            device.multiprocessors,
            gib(device.memory_free),
            gib(device.memory_total),
            device.driver_version,
            if device.cublaslt { "cuBLASLt" } else { "no cuBLASLt" },
        ));
    }
    lines.extend(missing.iter().map(|what| format!("missing    {what}")));
    lines.join("\n") + "\n"
}

/// A device in words, by the name that `--device` has for it: `this CPU (AMD EPYC, 2 threads)`.
pub(super) fn describe(name: &str, threads: Option<usize>) -> String {
    let cpu = cpu();
    let threads = threads.unwrap_or(cpu.threads);
    let threads = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
    match name {
        "cpu" => format!("this CPU ({}, {threads})", cpu.name),
        "emulator" => "the emulator (whose times say nothing about a GPU's)".into(),
        _ => {
            let found = devices().unwrap_or_default().into_iter().find(|d| name == format!("cuda:{}", d.index));
            found.map_or(name.to_owned(), |d| format!("{} ({name})", d.name))
        }
    }
}

fn cpu() -> Cpu {
    // Linux names the model here; elsewhere the architecture has to do.
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned();
    Cpu { name, threads: std::thread::available_parallelism().map_or(1, |n| n.get()), simd: simd() }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let known = [
        ("AVX", is_x86_feature_detected!("avx")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", is_x86_feature_detected!("avx512bw")),
        ("F16C", is_x86_feature_detected!("f16c")),
    ];
    known.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn simd() -> Vec<&'static str> {
    vec!["NEON"]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}

/// The emulator's compiler: `$CXX`, or the first on PATH that answers.
fn compiler() -> Option<Compiler> {
    let chosen = std::env::var("CXX").ok().filter(|c| !c.trim().is_empty());
    let names = chosen.into_iter().chain(["c++", "g++", "clang++"].map(String::from));
    names.into_iter().find_map(|command| {
        // CXX may carry arguments or a wrapper: `ccache g++`.
        let mut words = command.split_whitespace();
        let mut asked = Command::new(words.next()?);
        let output = asked.args(words).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().next().unwrap_or_default().trim().to_owned();
        output.status.success().then_some(Compiler { command, version })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_remedy() {
        let here = Here { cpu: cpu(), emulator: None, cuda: Vec::new(), missing: vec!["cuda: none; buy one".into()] };
        let text = text(&here);
        assert!(text.starts_with("cpu ") && text.contains("threads"));
        assert!(text.ends_with("missing    cuda: none; buy one\n"), "{text}");
        assert!(here.cpu.threads > 0 && !here.cpu.name.is_empty());
    }
}
